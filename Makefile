# `make run` shows one launch; `make test` checks everything. Both set up what they need, and say what they did.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: run test coverage check lint format mutants sweep fuzz bench clean help setup-run setup-test

# The system's own interpreter first: an ordinary user must be able to execute what the environment is made of.
PYTHON ?= $(shell for python in /usr/bin/python3 python3; do \
	if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo $$python; break; fi; done)
BIN := .venv/bin
PROVISION = $(PYTHON) tests/setup/provision.py
# mypy reports the files below the links that pyproject.toml explains; show them where they are.
MYPY = $(BIN)/mypy --no-error-summary | sed 's,^\.venv/typing/nucleus_gvisor/,,'
# It judges what an interpreter can import, and does not follow an editable install.
PYRIGHT = env PYTHONPATH="$(CURDIR)/.venv/typing" $(BIN)/pyright --pythonpath $(BIN)/python --ignoreexternal --verifytypes

run: setup-run ## Launch one program under gVisor and show its states and its record
	@$(BIN)/nucleus-gvisor run --show --platform auto -- echo "hello from gVisor"

test: setup-test lint ## Set up everything, then lint, types and all tests
	@$(TESTS)

coverage: setup-test ## The same tests, measured (long); fails where model/ or runtime/ has an unexplained line
	@rm -rf .coverage .coverage.* $(MEASURED) && mkdir -p $(MEASURED)
	@status=0; ( PYTEST='$(BIN)/pytest --cov --cov-report='; $(TESTS) ) || status=$$?; \
	$(BIN)/coverage combine --quiet $(MEASURED)/*; $(BIN)/coverage report || status=$$?; \
	$(BIN)/coverage report --include='model/*,runtime/*' --fail-under=100 >/dev/null || status=$$?; exit $$status

# In two processes, because a launch waits for others most of the time; each without threads, because a launch from a
# process with threads goes another way (pytest-xdist's workers have some).
HALF = tests/hostile tests/sandbox
# Under --cov each collects what its own children have left beside its file, and would take the other's.
MEASURED = $(CURDIR)/.venv/coverage
TESTS = pytest="$${PYTEST:-$(BIN)/pytest}"; status=0; \
	COVERAGE_FILE=$(MEASURED)/half $$pytest -m "not campaign" $(HALF) >.venv/half.log 2>&1 & half=$$!; \
	COVERAGE_FILE=$(MEASURED)/rest $$pytest -m "not campaign" $(addprefix --ignore=,$(HALF)) || status=$$?; \
	wait $$half || status=$$?; cat .venv/half.log; [ $$status = 0 ]

# The model, the graph, the steps by themselves, and one real launch a kind of caller: a minute at most.
QUICK = tests/model tests/spec/test_graph_equality.py tests/spec/test_names.py tests/test_repository.py tests/test_typing.py \
	tests/spec/test_correspondence.py::test_document_is_fresh \
	tests/test_deviations.py $(addprefix tests/runtime/test_,$(addsuffix .py,reference options identity paths runsc \
	audit cleanup elf resolve stage prepare exec))

check: setup-test lint ## The quick part, before each commit: lint, types, the model and the steps by themselves
	@$(BIN)/pytest -q -m "not slow" $(QUICK)

lint: setup-test ## ruff, mypy, and pyright's word that every public name has a type
	@$(BIN)/ruff check --quiet .
	@$(MYPY)
	@for package in model runtime; do $(PYRIGHT) nucleus_gvisor.$$package >.venv/pyright.log \
		|| { sed -n 's,$(CURDIR)/.venv/typing/nucleus_gvisor/,,; /error/p' .venv/pyright.log; exit 1; }; done

format: setup-test ## Let ruff lay out the code
	@$(BIN)/ruff format .

mutants: setup-test ## Take each check out of the code, and see that the test on record misses it (as root, long)
	@$(BIN)/python -m tests.mutation

sweep: setup-test ## Every fault at every system call of a launch, in every kind of caller (as root, long)
	@$(BIN)/python -m tests.hostile.sweep
	@$(BIN)/pytest -m campaign

MINUTES ?= 10
fuzz: setup-test ## Everything that parses, with inputs that were never tried, for MINUTES=10
	@$(BIN)/python -m tests.fuzz $(MINUTES)

bench: setup-test ## Measure launches and sandboxes
	@$(BIN)/python benchmarks/run.py
	@$(BIN)/python benchmarks/sandbox.py
	@$(BIN)/python benchmarks/bounds.py --runsc "$$($(BIN)/python -c \
		'from tests.setup import provision; print(provision.test_base())')/releases/20260831/runsc"

clean: ## Remove what was built here (not the machine's packages, nor the test base)
	@rm -rf .venv build dist *.egg-info htmlcov .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## Show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

# ---- setting up: each stamp is made once, and again when pyproject.toml changes ----

setup-run: $(firstword $(wildcard .venv/installed-test) .venv/installed-run)
	@$(PROVISION) run

setup-test: .venv/installed-test
	@$(PROVISION) test

.venv/installed-run: WANTED = .
.venv/installed-test: WANTED = .[test]
.venv/installed-run .venv/installed-test: pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "setup: needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv)" >&2; exit 1; fi
	@echo "setup: installing $(WANTED) into .venv ($(PYTHON))"
	@mkdir -p .venv
	@{ [ -x $(BIN)/pip ] || $(PYTHON) -m venv .venv; $(BIN)/pip install -e '$(WANTED)'; } >.venv/setup.log 2>&1 \
		|| { cat .venv/setup.log >&2; exit 1; }
	@mkdir -p .venv/typing/nucleus_gvisor
	@ln -sfn "$(CURDIR)/model" "$(CURDIR)/runtime" "$(CURDIR)/spec" .venv/typing/nucleus_gvisor/
	@touch $@
