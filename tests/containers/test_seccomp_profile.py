"""The seccomp profile for containers: the jail works under the filter that runtimes make of it."""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import HELPERS, ROOT

from retool_env.sandbox.guest import syscalls

PATH = ROOT / "docs" / "containers" / "seccomp.json"
PROFILE = json.loads(PATH.read_text())

FOR_THE_JAIL = ("clone", "mount", "umount2", "pivot_root", "sethostname")
"""What it needs and a container's default profile refuses, beside `unshare` of a user namespace."""
NEW_USER = 0x1000_0000

TRY = """
import sys
sys.path[:0] = sys.argv[1].split(":")
from test_seccomp_profile import load
import json
load(json.loads(sys.argv[2]))
from retool_env.sandbox import make_sandbox
from retool_env.execution import SandboxUnavailable
try:
    with make_sandbox("nsjail", guests=1) as sandbox:
        print(sandbox.run("import numpy\\nprint(6 * 7)").stdout)
except SandboxUnavailable as error:
    print("refused:", error)
"""


class Compared(ctypes.Structure):
    """libseccomp's `struct scmp_arg_cmp`."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("a", ctypes.c_uint64),
        ("b", ctypes.c_uint64),
    )


OPERATIONS = {"SCMP_CMP_NE": 1, "SCMP_CMP_EQ": 4, "SCMP_CMP_MASKED_EQ": 7}
UNKNOWN = -1


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return seccomp_library() or pytest.skip("there is no libseccomp")


def seccomp_library() -> ctypes.CDLL | None:
    name = ctypes.util.find_library("seccomp")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def action(entry: dict) -> int:
    if entry["action"] == "SCMP_ACT_ALLOW":
        return 0x7FFF_0000
    assert entry["action"] == "SCMP_ACT_ERRNO"
    return 0x0005_0000 | entry["errnoRet"]


def load(profile: dict) -> None:
    """Apply a profile to this process and its children, as runc does."""
    library = seccomp_library()
    default = {"action": profile["defaultAction"], "errnoRet": profile["defaultErrnoRet"]}
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(action(default))))
    for entry in profile["syscalls"]:
        if action(entry) == action(default):  # which the library refuses, and runtimes leave out
            continue
        compared = [
            Compared(each["index"], OPERATIONS[each["op"]], each["value"], each.get("valueTwo", 0))
            for each in entry.get("args", [])
        ]
        for name in entry["names"]:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:  # of another machine, or newer than the library
                continue
            done = library.seccomp_rule_add_array(
                context,
                ctypes.c_uint32(action(entry)),
                number,
                len(compared),
                (Compared * len(compared))(*compared),
            )
            assert done == 0, (name, os.strerror(-done))
    assert library.seccomp_load(context) == 0


def under(profile: dict) -> str:
    """What a sandbox does that is made under a profile."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            TRY,
            f"{Path(__file__).parent}:{HELPERS.parent}",
            json.dumps(profile),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names(**wanted: object) -> list[str]:
    """Of the entries with these values."""
    return [
        name
        for entry in PROFILE["syscalls"]
        if all(entry.get(key) == value for key, value in wanted.items())
        for name in entry["names"]
    ]


def without(*left_out: str) -> dict:
    entries = [
        {**entry, "names": [name for name in entry["names"] if name not in left_out]}
        for entry in PROFILE["syscalls"]
    ]
    return {**PROFILE, "syscalls": [entry for entry in entries if entry["names"]]}


def test_it_has_the_shape_that_docker_and_the_oci_s_runtimes_read():
    assert set(PROFILE) == {"defaultAction", "defaultErrnoRet", "architectures", "syscalls"}
    assert (PROFILE["defaultAction"], PROFILE["defaultErrnoRet"]) == (
        "SCMP_ACT_ERRNO",
        errno.ENOSYS,
    )
    machines = [f"SCMP_ARCH_{name.upper()}" for name in syscalls.MACHINES]
    assert PROFILE["architectures"] == machines
    for entry in PROFILE["syscalls"]:
        assert set(entry) <= {"comment", "names", "action", "errnoRet", "args"}
        assert entry["comment"].endswith(".") and entry["names"] == sorted(entry["names"])
        assert ("errnoRet" in entry) == (entry["action"] == "SCMP_ACT_ERRNO")
        for each in entry.get("args", []):
            assert set(each) == {"index", "value", "op"} and each["op"] in OPERATIONS
        # Conditions on one argument would be alternatives.
        places = [each["index"] for each in entry.get("args", [])]
        assert len(set(places)) == len(places)
    plain = [
        name for entry in PROFILE["syscalls"] if "args" not in entry for name in entry["names"]
    ]
    assert len(plain) == len(set(plain))


def test_its_system_calls_exist(library):
    """In libseccomp's own table, but for some that are newer than a library may be."""
    newer = {"fchmodat2", "futex_requeue", "futex_wait", "futex_wake", "map_shadow_stack", "mseal"}
    unknown = {
        name for name in names() if library.seccomp_syscall_resolve_name(name.encode()) == UNKNOWN
    }
    assert unknown <= newer
    assert library.seccomp_syscall_resolve_name(b"no_such_call") == UNKNOWN


def test_it_allows_what_a_program_may_call_and_what_the_guest_needs():
    allowed = set(names(action="SCMP_ACT_ALLOW"))
    programs = {row.split()[0] for row in syscalls.ALLOWED.split(",")}
    guests = {row.split()[0] for row in syscalls._NEEDED.split(",")}
    assert programs <= allowed
    assert guests - {"clone3"} <= allowed
    assert set(FOR_THE_JAIL) <= set(names(action="SCMP_ACT_ALLOW", args=None))
    [unshare] = [
        e for e in PROFILE["syscalls"] if e["names"] == ["unshare"] and "errnoRet" not in e
    ]
    assert unshare["args"] == [{"index": 0, "value": NEW_USER, "op": "SCMP_CMP_EQ"}]


def test_it_allows_nothing_that_is_the_whole_machine_s():
    refused = "bpf init_module kexec_load keyctl open_by_handle_at perf_event_open reboot setns"
    refused += " settimeofday swapon userfaultfd io_uring_setup fsopen move_mount mount_setattr"
    assert not set(refused.split()) & set(names(action="SCMP_ACT_ALLOW"))


def test_the_jail_works_under_it(library):
    assert under(PROFILE) == "42\n\n"


@pytest.mark.parametrize("name", FOR_THE_JAIL)
def test_each_call_that_it_adds_for_the_jail_is_needed(name, library):
    if name == "clone":  # as a container's default allows it: without new namespaces
        profile = without("clone")
        mask = {"index": 0, "value": 0x7E02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
        clone = {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [mask]}
        profile["syscalls"].append(clone)
    else:
        profile = without(name)
    said = under(profile)
    assert said.startswith("refused: ") and "docs/containers" in said


def test_it_refuses_and_a_newer_call_is_said_not_to_exist(library):
    """A library then takes an older call; of what is refused the reason is plain."""
    code = """
import ctypes, errno, json, os, socket, sys
sys.path[:0] = sys.argv[1].split(":")
from test_seccomp_profile import load
load(json.loads(sys.argv[2]))
libc = ctypes.CDLL(None, use_errno=True)
def call(*numbers):
    return errno.errorcode[ctypes.get_errno()] if libc.syscall(*numbers) < 0 else "done"
print(call(435, 0, 0), call(9999), libc.unshare(0x20000), os.strerror(ctypes.get_errno()))
try:
    socket.socket(40, socket.SOCK_STREAM)
except OSError as error:
    print(errno.errorcode[error.errno])
"""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            f"{Path(__file__).parent}:{HELPERS.parent}",
            json.dumps(PROFILE),
        ],
        capture_output=True,
        text=True,
    )
    assert done.stdout == "ENOSYS ENOSYS -1 Operation not permitted\nENOSYS\n", done.stderr
