"""The catalogue of attacks and faults: what strikes, where, what must come of it, and which test shows it.

An id begins with the state in which it strikes: U(nresolved), R(esolved), P(repared), S(taged), C(onfined), X
(execution and after). `F:E` is the typed error E: the machine is in Failed, nothing was executed but the question what
the binary is, nothing is left, and the same process launches at once when the fault is gone. OK: the launch is not
affected.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.support.modes import NAMES

EVERY = ("root", "user", "userns")
ELSEWHERE = "elsewhere"
"""Stands for the kind of caller where a test of another file shows the case."""
FILE = "NUCLEUS_GVISOR_CATALOGUE"
"""Names the file that the table is written to as well."""
UNPRIVILEGED = ("user", "userns")


@dataclass(frozen=True)
class Case:
    """One line of the catalogue."""

    id: str
    what: str
    expected: str
    modes: tuple[str, ...] = ()
    """The kinds of caller with which the catalogue's own test runs it; none where only `shown` does."""
    shown: tuple[str, ...] = ()
    """Tests elsewhere that show it: the function, and in brackets what its parameters must contain."""


def _weakness(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/hostile/test_weaknesses.py::test_weakness_{name}" for name in names)


_SPECIAL = "16_a_special_file_is_refused_at_once"
_NO_PROGRAM = "19_what_is_no_program_is_not_staged"
_ABOVE_BASE = "25_every_directory_above_the_base_is_judged"
_KEPT = (("bytes", "rewritten"), ("swap", "another file in its place"), ("another-set", "another release's, whole"),
         ("mode", "another mode"), ("link", "another name"), ("owner", "another owner"))  # fmt: skip
_WORKSPACE = "tests/sandbox/test_workspace.py"
_CHANGE = "17_a_change_during_the_copy_is_found"

CASES = (
    # ---- bad input ----
    Case("U-runsc-absent", "no runsc at the path given", "F:NotFound", EVERY),
    Case("U-runsc-nowhere", "no runsc at any candidate; all are listed", "F:NotFound",
         shown=_weakness("13_only_absolute_items_of_path_count")),
    *(Case(f"U-runsc-{kind}", f"a {kind} in runsc's place", "F:NotRegular", UNPRIVILEGED,
           _weakness(f"{_SPECIAL}[{kind}]")) for kind in ("directory", "fifo", "device", "socket")),
    *(Case(f"U-runsc-{kind.replace(' ', '-')}", f"{kind} in runsc's place", "F:NotElf", UNPRIVILEGED,
           _weakness(f"{_NO_PROGRAM}[{kind}]")) for kind in ("empty", "script", "text", "half", "other machine")),
    *(Case(f"U-mode-{mode}", f"runsc of mode {mode}", "F:Untrusted", EVERY) for mode in ("0666", "0775", "0777")),
    Case("U-owner", "runsc of a third party", "F:Untrusted", ("root", "user"),
         _weakness("05_a_given_path_is_judged")),
    Case("U-no-x", "runsc without an execute bit", "F:NotExecutable", UNPRIVILEGED, _weakness(f"{_NO_PROGRAM}[text]")),
    *(Case(f"U-{name}", f"{name} runsc", "F:Untrusted", UNPRIVILEGED,
           _weakness(f"42_privileged_binaries_are_refused[{bits}]"))
      for name, bits in (("setuid", "4755"), ("setgid", "2755"))),
    Case("U-capable", "runsc with a file capability", "F:Untrusted",
         shown=_weakness("42_privileged_binaries_are_refused[capability]")),
    Case("S-pin-wrong", "a pin that is wrong by one byte", "F:PinMismatch", EVERY),
    *(Case(f"U-sparse-{size}g", f"a sparse source of {size} GB: refused with less than 100 MB of memory", "F:TooBig",
           shown=_weakness(f"15_18_a_huge_file_costs_nothing[{size}]")) for size in (3, 8)),
    Case("U-id", "ids that are empty, dots, flags, paths, too long, not ASCII, with NUL or newline", "F:BadId", EVERY,
         _weakness("29_ids_are_judged_before_the_disk")),
    Case("U-path-bytes", "runsc and bundle paths that are not UTF-8", "OK",
         shown=_weakness("11_names_are_bytes", "11_bundles_and_bases_are_bytes")),
    *(Case(f"P-config-{kind}", f"config.json {words}", "F:BadBundle", EVERY) for kind, words in (
        ("link", "is a link"), ("fifo", "is a FIFO"), ("huge", "of 2 GB"), ("text", "is no JSON"),
        ("twice", "with a key twice"), ("types", "with values of wrong types"), ("absent", "is not there"))),
    Case("P-hooks", "a bundle with hooks", "F:Refused", UNPRIVILEGED, _weakness("36_hooks_are_refused")),
    Case("P-flag-annotation", "a dev.gvisor.flag annotation", "F:Refused", EVERY),
    Case("U-argument", "NUL, 128 KiB, too many arguments, too large an environment", "F:BadArgument",
         shown=_weakness("30_what_cannot_be_passed_on_is_no_request", "30_nul_in_paths_is_found_before_staging")),
    # ---- a hostile file system ----
    Case("U-parent-owner", "the directory of runsc belongs to someone else", "F:Untrusted", ("user",),
         _weakness("07_every_directory_above_is_judged[owner]")),
    Case("U-grandparent-0777", "a directory above can be written by all", "F:Untrusted", UNPRIVILEGED,
         _weakness("07_every_directory_above_is_judged[0777]")),
    Case("U-link-loop", "links in a circle", "F:Symlink", EVERY),
    Case("U-link-foreign", "someone else's link on the way", "F:Symlink", ("root", "user"),
         _weakness("12_a_link_is_judged")),
    Case("U-link-env", "root's link to /usr/bin/env: followed, and the bytes are refused", "F:NotRunsc",
         ("root", "user"), _weakness("12_a_link_to_another_program_is_not_runsc[/usr/bin/env]")),
    Case("U-hard-link", "a hard link of another program of root's", "F:NotRunsc", ("root", "user")),
    Case("S-hard-link-pinned", "the same past a pin", "F:PinMismatch", EVERY),
    Case("U-dots", ".. in the path of runsc", "F:BadPath", EVERY, _weakness("09_dots_are_refused")),
    Case("P-dots-base", ".. in the artifact base", "F:BadBase", EVERY),
    Case("U-wrapper", "a Nix wrapper that others can write; of 10,000 lines; of a wrapper", "F:Untrusted, F:NotElf",
         shown=_weakness("08_a_wrapper_is_judged_before_it_is_read", "08_a_wrapper_is_no_program")),
    Case("U-path-variable", "PATH empty, `:`, relative", "F:NotFound",
         shown=_weakness("13_only_absolute_items_of_path_count", "13_root_does_not_search_path")),
    *(Case(f"P-base-{kind}", f"the artifact base is {words}", "F:BadBase", modes,
           _weakness(f"{_ABOVE_BASE}[{inside}]")) for kind, words, modes, inside in (
        ("file", "a file", UNPRIVILEGED, "file"), ("link", "a link", UNPRIVILEGED, "link"),
        ("foreign", "someone else's", ("user",), "owner"), ("0777", "open to all", UNPRIVILEGED, "0777"))),
    Case("P-base-read-only", "the artifact base is on a read-only mount", "F:StepFailed", ("root",)),
    Case("P-base-immutable", "the artifact base is immutable", "F:StepFailed", ("root",)),
    Case("P-base-shared", "the artifact base is open to readers and holds other things, as /etc", "F:BadBase", EVERY),
    Case("P-base-noexec", "the artifact base is mounted noexec: only a copy minds", "OK",
         shown=_weakness("21_noexec_is_found_before_execve")),
    Case("P-base-full", "the artifact base has no room, or no inodes, for a copy", "F:NoSpace, F:StepFailed",
         shown=_weakness("22_a_full_disk_leaves_no_partial_file")),
    Case("P-bundle-foreign", "the bundle is someone else's", "F:BadBundle", ("user",),
         _weakness("36_a_bundle_that_others_can_change_is_refused")),
    Case("P-bundle-writable", "the bundle can be written by others", "F:BadBundle", UNPRIVILEGED,
         _weakness("36_a_bundle_that_others_can_change_is_refused")),
    Case("P-note-forged", "a supervisor forges the note of a checkpoint, or leaves foreign names", "F:Untrusted, OK",
         shown=("tests/sandbox/test_checkpoint.py::test_a_supervisor_forges_a_note",
                "tests/sandbox/test_checkpoint.py::test_foreign_names_never_reach_runsc")),
    Case("P-workspace-given-away", "a workspace that is the host, ours, or a link to these", "F:Refused",
         shown=(f"{_WORKSPACE}::test_what_is_no_workspace",)),
    Case("P-secret-source", "a secret's source that others can read, or may have put there", "F:BadArgument",
         shown=("tests/sandbox/test_secret_files.py::test_sources_that_are_refused",)),
    Case("P-cwd-deleted", "a relative artifact base in a directory that is gone", "F:BadBase", EVERY,
         _weakness("34_a_relative_base_in_a_deleted_directory")),
    Case("U-proc-absent", "no /proc", "F:StepFailed", ("root",)),
    Case("U-uid-map", "a uid_map that is empty, junk or overflows", "F:StepFailed",
         shown=_weakness("28_a_map_is_parsed_strictly", "28_a_complete_map_does_not_make_the_host_s_root")),
    # ---- races ----
    Case("R-swapped", "runsc is another file after it was judged", "OK or F:Changed",
         shown=_weakness("06_a_swapped_path_does_not_run", "06_a_race_on_the_path_never_wins")),
    *(Case(f"S-{name}", f"runsc is {name} during the copy", "F:Changed", shown=_weakness(f"{_CHANGE}[{how}]"))
      for name, how in (("truncated", "truncate"), ("appended", "append"), ("rewritten", "rewrite"))),
    Case("S-unlinked", "runsc loses its name during the copy", "OK",
         shown=_weakness("17_removal_during_the_copy_does_no_harm")),
    *(Case(f"{state}-kept-{name}", f"a kept file: {what}, {when}", expected,
           shown=(f"tests/hostile/test_kept.py::test_a_change_{test}[{name.replace('-', ' ')}",))
      for state, when, expected, test in (
          ("S", "before a launch", "OK", "before_a_launch"),
          ("C", "between its comparison and its bind", "F:KeptChanged", "between_the_comparison_and_the_bind"))
      for name, what in _KEPT),
    Case("S-kept-cache-0777", "the cache is opened to others", "F:BadCache",
         shown=("tests/runtime/test_kept.py::test_a_cache_that_others_can_write",)),
    Case("S-kept-disk-full", "no room in the cache", "OK",
         shown=("tests/hostile/test_kept.py::test_a_full_disk_keeps_nothing",)),
    Case("S-kept-killed", "SIGKILL at any point while something is kept", "OK",
         shown=("tests/runtime/test_kept.py::test_a_maker_that_is_killed",)),
    Case("S-sealed", "a write to what was staged", "EPERM", shown=_weakness("03_what_was_staged_cannot_be_written")),
    Case("PX-swap", "a directory above base or runsc is another one from any call on", "OK or F:*, never foreign code",
         EVERY, _weakness("25_a_swapped_grandparent_is_not_followed")),
    Case("PX-exchange", "base and runsc are exchanged all the time", "OK or F:*, never foreign code", EVERY),
    Case("P-one-id", "20 launches of one id at once: one runs", "OK, F:Busy",
         shown=_weakness("40_of_many_launches_of_one_id_one_runs")),
    Case("P-many-ids", "20 launches of different ids from threads", "OK",
         shown=_weakness("40_different_ids_all_run")),
    # ---- inherited state ----
    Case("U-closed", "descriptors 0 to 2 are closed", "OK",
         shown=_weakness("32_closed_standard_descriptors_do_no_harm")),
    Case("X-leaked", "descriptors 3, 9, 200, and one of /, are open", "OK", EVERY,
         _weakness("31_no_descriptor_is_inherited")),
    Case("X-signals", "all signals are blocked and ignored", "OK", EVERY, _weakness("33_signals_are_reset")),
    Case("U-umask", "umask 0 and 0777", "OK", shown=_weakness("24_the_umask_decides_nothing")),
    Case("U-limits", "RLIMIT_NOFILE, FSIZE, AS, NPROC that leave no room", "F:Limit",
         shown=_weakness("34_limits_are_judged", "22_a_file_size_limit_does_not_kill")),
    Case("X-environment", "LD_PRELOAD, GODEBUG, GVISOR_SIDECAR_BINARIES_DIR, RUNSC_PATH are set", "OK", EVERY,
         _weakness("34_the_environment_is_the_six")),
    # ---- confinement ----
    Case("C-required", "required, with every combination of options", "confined or F:*", EVERY),
    Case("C-eperm", "EPERM at each confining call", "F:ConfineFailed",
         shown=_weakness("02_no_fault_of_a_confining_call_launches_unconfined")),
    Case("C-enospc", "ENOSPC at each confining call", "F:ConfineFailed", ("root",)),
    Case("C-enosys", "a kernel without each of the calls that a launch makes", "OK or F:*, as KERNEL.md says", EVERY),
    Case("C-no-user-namespaces", "user.max_user_namespaces is 0", "F:ConfineFailed",
         shown=_weakness("01_required_policy_is_not_ignored")),
    Case("C-canaries", "host exec, loader, mapping, copy, /proc/PID/root, undo, from inside", "refused",
         shown=_weakness("03_nothing_writable_can_be_executed", "03_the_confinement_can_fail_its_own_proof")),
    Case("C-host-files", "a static program in runsc's place reads root's and the caller's files, by /proc/PID/root too",
         "refused", shown=("tests/e2e/test_inside.py::test_host_files_cannot_be_reached",
                           "tests/e2e/test_inside.py::test_processes_outside_are_no_way_around")),
    Case("C-processes", "it signals its parent, init and others, uses an abstract socket and shared memory of theirs",
         "refused", shown=("tests/e2e/test_inside.py::test_no_other_process_can_be_reached",)),
    Case("X-attendant", "a taken-over supervisor signals or traces the sandbox's attendant", "refused",
         shown=("tests/e2e/test_inside.py::test_the_attendant_is_out_of_reach",)),
    Case("C-no-scope", "a kernel without the scope of signals", "scope none, or F:ConfineFailed where it is required",
         EVERY),
    Case("C-memfd", "a memfd is executed from inside", "ran, and the record says so",
         shown=_weakness("03_nothing_writable_can_be_executed")),
    # ---- execution and after ----
    Case("X-workspace-hostile", "a guest leaves links out, devices, set-id bits, holes and deep trees in its workspace",
         "left out, or refused, and the host as it was", shown=(
             f"{_WORKSPACE}::test_what_a_guest_leaves", f"{_WORKSPACE}::test_a_file_without_end",
             f"{_WORKSPACE}::test_a_deep_tree")),
    Case("X-workspace-full", "a workspace on a full disk is written back", "SyncFailed, and as it was",
         shown=(f"{_WORKSPACE}::test_a_full_disk",)),
    Case("X-workspace-killed", "SIGKILL at any call while a workspace is written back", "as it was, or as meant",
         shown=(f"{_WORKSPACE}::test_a_killed_owner",)),
    Case("X-workspace-edited", "another edits a workspace before, and while, it is written back",
         "WorkspaceConflict, and the edit stays", shown=(
             f"{_WORKSPACE}::test_conflicts", f"{_WORKSPACE}::test_an_edit_while_it_is_written")),
    Case("X-execve", "execve answers ENOEXEC, EACCES, ENOMEM, E2BIG, EIO", "F:ExecFailed",
         shown=_weakness("37_every_answer_of_execve_is_told", "37_a_refused_execve_leaves_the_caller_free")),
    Case("C-child-killed", "the child is killed before it has reported", "F:StepFailed", EVERY),
    Case("X-child-killed", "the child is killed when it was told to execute", "F:ChildDied", EVERY),
    Case("C-link-broken", "the child loses its link", "F:NotProved", EVERY),
    Case("UX-kill", "SIGKILL, SIGTERM, SIGINT at every call", "nothing executed, collected by the next launch",
         shown=("tests/hostile/test_sweep.py::test_",)),
    Case("UX-lines", "KeyboardInterrupt and MemoryError at every Python line", "F:*", EVERY),
)  # fmt: skip

BY_ID = {case.id: case for case in CASES}
Observe = Callable[[str], None]
"""Tells what came of a case."""


def case(*ids: str) -> pytest.MarkDecorator:
    """Runs a test for the cases `ids`, by each kind of caller that the table names for them and that can be had."""
    wanted = [(id, mode) for id in ids for mode in BY_ID[id].modes if mode in NAMES]
    return pytest.mark.parametrize(
        ("case", "mode"),
        [pytest.param(BY_ID[id], mode, id=f"{id}-{mode}") for id, mode in wanted],
        indirect=["mode"],
    )
