"""The attacks again as an ordinary user, whose guests use user namespaces.

The user may be unable to read this interpreter, because it lies below a closed home directory. A
mount namespace then shows the same folders at the same paths, below open folders.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import retool_env

_USER = 54_321
_FOLDER = Path(__file__).parent
_SUBSET = (
    "syscalls and (ptrace or mount or bind or namespace or leases or cache) or identity or "
    "processes and (signals or exist or priority or number or daemon or waiting) or "
    "record and (not_begun or keeps) or files and (neighbour or outside) or "
    "network and (abstract or flags) or layers"
)
_OPEN_UP = r"""
set -e
stage=$1; user=$2; shift 2
mount -t tmpfs -o mode=755 none "$stage"
while [ "$1" != -- ]; do  # pairs: a closed folder, and what is needed below it
    number=$((number + 1))
    mkdir "$stage/$number"
    mount --bind "$2" "$stage/$number"
    tops="$tops $1"
    pairs="$pairs $stage/$number $2"
    shift 2
done
shift
for top in $(printf '%s\n' $tops | sort -u); do mount -t tmpfs -o mode=755 none "$top"; done
set -- $pairs -- "$@"
while [ "$1" != -- ]; do
    mkdir -p "$2"
    mount --bind "$1" "$2"
    shift 2
done
shift
exec setpriv --reuid="$user" --regid="$user" --clear-groups "$@"
"""


def needed() -> list[Path]:
    """The folders that the tests read."""
    folders = [sys.base_prefix, sys.prefix, sysconfig.get_path("purelib"), _FOLDER]
    folders.append(Path(retool_env.__file__).parents[1])
    return sorted({Path(folder).resolve() for folder in folders})


def closed(folder: Path) -> Path | None:
    """The topmost parent folder that other users cannot enter."""
    above = reversed([folder, *folder.parents])
    return next((top for top in above if not top.stat().st_mode & 0o001), None)


@pytest.mark.slow
def test_attacks_of_an_ordinary_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        return  # this whole suite is run by one already
    if os.environ.get("RETOOL_MUTATION"):
        return
    folders = [(closed(folder), folder) for folder in needed()]
    pairs = [str(path) for pair in folders if pair[0] is not None for path in pair]
    if len({top for top, _ in folders if top}) > 1 or any(" " in path for path in pairs):
        pytest.skip(f"the interpreter and the tests lie below more than one closed folder: {pairs}")
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("there is no unshare or setpriv (Debian's util-linux)")
    stage = tmp_path / "stage"
    stage.mkdir()
    run = [sys.executable, "-m", "pytest", str(_FOLDER), "-q", "-k", _SUBSET, "--timeout=60"]
    run += ["-p", "no:cacheprovider", "--basetemp", f"/tmp/attacks-{os.getpid()}", "-o", "addopts="]
    mounts = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _OPEN_UP, "sh"]
    environment = {"HOME": "/tmp", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    environment |= {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    done = subprocess.run(
        [*mounts, str(stage), str(_USER), *pairs, "--", *run],
        env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
        cwd=_FOLDER,
        capture_output=True,
        text=True,
        timeout=240,
    )
    shutil.rmtree(f"/tmp/attacks-{os.getpid()}", ignore_errors=True)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    assert " passed" in done.stdout
