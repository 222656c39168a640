"""Who the caller is: decided strictly, and never taken for more than it is."""

import os
import subprocess
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from nucleus_gvisor.runtime.identity import Identity, parse_uid_map
from tests.support.modes import Mode

SHOW = """
from nucleus_gvisor.runtime.identity import Identity
i = Identity.current()
print(i.uid, i.gid, i.host_root, i.unmapped, i.elevated)
"""
WITHIN = """
import ctypes, os, sys
ready, done = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0  # CLONE_NEWUSER
    os.write(ready[1], b"x")
    os.read(done[0], 1)
    os.setgid(0)
    os.setuid(0)
    exec(sys.argv[2])
    sys.stdout.flush()
    os._exit(0)
os.read(ready[0], 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write(sys.argv[1])
os.write(done[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
WHOLE = b"         0          0 4294967295\n"


def kernel(ranges: list[tuple[int, int, int]]) -> bytes:
    """A uid_map as the kernel prints it."""
    return b"".join(b"%10d %10d %10d\n" % entry for entry in ranges)


def overlap(starts: list[tuple[int, int]]) -> bool:
    """Do two of the (start, length) ranges meet."""
    ordered = sorted(starts)
    return any(a + n > b for (a, n), (b, _) in pairwise(ordered))


entries = st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2), st.integers(1, 2**32 - 1)).filter(
    lambda e: e[0] + e[2] < 2**32 and e[1] + e[2] < 2**32  # 2^32 - 1 is nobody's id
)


@given(ranges=st.lists(entries, min_size=1, max_size=5))
def test_what_the_kernel_writes_is_read(ranges: list[tuple[int, int, int]]) -> None:
    """Any map that a kernel can have is read as the numbers that it was printed from."""
    assume(not overlap([(a, n) for a, _, n in ranges]) and not overlap([(b, n) for _, b, n in ranges]))
    assert parse_uid_map(kernel(ranges)) == tuple(ranges)


@given(text=st.binary(max_size=60) | st.text(" 0123456789\n-+x\t\r", max_size=40).map(str.encode))
@example(WHOLE[:-2])
def test_what_makes_no_sense_is_refused(text: bytes) -> None:
    """Any bytes give ValueError, or ranges whose printed numbers are exactly those in the text."""
    try:
        ranges = parse_uid_map(text)
    except ValueError:
        return
    assert [int(word) for word in text.split()] == [number for entry in ranges for number in entry]
    assert all(n > 0 and a + n <= 2**32 and b + n <= 2**32 for a, b, n in ranges)
    assert text.count(b"\n") in (len(ranges), len(ranges) - 1)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b" \n",
        b"0 0\n",
        b"0 0 1 1\n",
        b"0 0 0\n",
        b"0 0 -1\n",
        b"+0 0 1\n",
        b"0 0 0x1\n",
        b"0\t0\t1\n",
        b"0 0 1 \n",
        b"0 0 1\n\n",
        b"0 0 1\njunk\n",
        b"junk\n0 0 4294967295\n",
        b"0 0 4294967297\n",
        b"4294967295 0 2\n",
        b"0 4294967295 2\n",
        b"0 0 99999999999\n",
        b"00000000000 0 1\n",
        b"0 0 1\r\n",
        b"0 0 1\r1 1 1\n",
        b"\xef\xbb\xbf0 0 1\n",
        "\u0660 \u0660 \u0661\n".encode(),
        b"0 0 1\0\n",
        b"0 0 5\n3 9 1\n",
        b"0 0 5\n9 3 1\n",
        b"0 0 4294967295\n0 0 4294967295\n",
    ],
    ids=repr,
)
def test_no_map_of_a_kernel_is_refused(text: bytes) -> None:
    """Empty, short, long, signed, overflowing, overlapping: the reference skips such lines (gvisor.rs:551)."""
    with pytest.raises(ValueError, match="uid_map"):
        parse_uid_map(text)


def test_each_mode_is_known_for_what_it_is(mode: Mode) -> None:
    """Root is host root, a user is not, and root of a namespace is neither host root nor sees all ids."""
    done = mode.run([mode.python, "-c", SHOW])
    assert done.returncode == 0, done.stderr
    uid, gid, host_root, unmapped, elevated = done.stdout.split()
    assert elevated == "False"
    assert host_root == str(mode.name == "root")
    assert (uid, gid) == (("0", "0") if mode.name != "user" else (str(mode.account.pw_uid), str(mode.account.pw_gid)))
    assert (unmapped == "None") == (mode.name != "userns")


@pytest.mark.parametrize(
    ("mapping", "unmapped"),
    [("0 0 1", "65534"), ("0 0 1000", "65534"), ("0 0 4294967294", "65534"), ("0 0 4294967295", "None")],
)
def test_root_of_a_namespace_is_not_host_root(mapping: str, unmapped: str, modes: dict[str, Mode]) -> None:
    """Root that maps to the host's root is not host root, be the map as whole as the host's (gvisor.rs:545)."""
    mode = modes["root"]
    done = mode.run([mode.python, "-c", WITHIN, mapping, SHOW])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", "False", unmapped, "False"]


def test_without_proc_nothing_is_guessed(modes: dict[str, Mode]) -> None:
    """Where /proc is absent, the identity is a failure that says what to mount."""
    mode = modes["root"]
    script = f"try:\n    exec({SHOW!r})\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    done = mode.run(
        ["unshare", "--mount", "--", "sh", "-c", 'umount -l /proc && exec "$0" -c "$1"', mode.python, script]
    )
    assert done.stdout.startswith("StepFailed Resolve: cannot tell which user namespace"), done.stdout + done.stderr
    assert "hint: mount /proc" in done.stdout


def test_an_elevated_program_believes_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment is used by a program that was given privilege."""
    monkeypatch.setenv("NUCLEUS_GVISOR_ARTIFACT_BASE", "/planted")
    here = Identity.current()
    assert replace(here, elevated=False).environment()["NUCLEUS_GVISOR_ARTIFACT_BASE"] == "/planted"
    assert not replace(here, elevated=True).environment()


def test_a_set_id_program_is_elevated(modes: dict[str, Mode]) -> None:
    """A process whose real and effective ids differ is elevated, in either direction."""
    mode = modes["root"]
    script = f"import os; os.setresuid({modes['user'].account.pw_uid}, 0, 0)\n{SHOW}"
    done = mode.run([mode.python, "-c", script])
    assert done.stdout.split()[4] == "True", done.stderr


def test_current_is_the_effective_user() -> None:
    """The ids are those that the kernel judges by."""
    identity = Identity.current()
    assert (identity.uid, identity.gid) == (os.geteuid(), os.getegid())
    assert str(identity.uid) == subprocess.check_output(["id", "-u"], text=True).strip()
