"""Removes one defence at a time, and lists the attacks that then succeed.

Run it from a clone, as root, on an idle machine: `python tests/sandbox/attacks/mutations.py [WORD
...]`. The words choose defences by their names. Each defence takes about half a minute. The output
marks a defence whose removal no test notices; the exit status is then 1.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[2]
_SANDBOX = Path("retool_env/sandbox")
_WHOLE_RUN_SECONDS = 400


@dataclass(frozen=True)
class Mutation:
    """One defence, and the edits that remove it."""

    defence: str
    """The defence's name."""
    edits: tuple[tuple[str, str, str], ...]
    """Each edit: a file of the sandbox, a text that stands there exactly once, and its
    replacement."""


def _one(defence: str, file: str, old: str, new: str) -> Mutation:
    return Mutation(defence, ((file, old, new),))


def _without_limit(name: str) -> Mutation:
    return _one(
        f"limit {name}",
        "guest/confine.py",
        "    for number, value in limits.items():\n",
        f"    limits.pop(resource.RLIMIT_{name}, None)\n    for number, value in limits.items():\n",
    )


_LIMITS = ("AS", "CPU", "FSIZE", "NOFILE", "MEMLOCK", "MSGQUEUE", "SIGPENDING", "NPROC")

MUTATIONS = [
    _one("inner filter", "guest/process.py", "        confine.install_filter(code)\n", ""),
    _one("outer filter", "nsjail.py", "[SECCOMP_POLICY]", '["DEFAULT ALLOW"]'),
    _one("network namespace", "nsjail.py", "iface_no_lo=True", "clone_newnet=False"),
    _one("PID namespace", "guest/confine.py", " | 0x2000_0000  #", "  #"),
    _one("mount namespace", "guest/confine.py", "0x0002_0000 | 0x0800", "0x0800"),
    _one("IPC namespace", "guest/confine.py", " | 0x0800_0000", ""),
    _one("private /tmp", "guest/process.py", "        confine.private_tmp(bounds.tmp)\n", ""),
    _one("size of /tmp", "guest/confine.py", "size={size},", "size=64m,"),
    _one("number of files in /tmp", "guest/confine.py", ",nr_inodes=4096", ""),
    *map(_without_limit, _LIMITS),
    Mutation(
        "limit CORE",
        (
            *_without_limit("CORE").edits,  # nsjail sets it as well
            ("nsjail.py", "iface_no_lo=True", "iface_no_lo=True, rlimit_core_type=unlimited"),
        ),
    ),
    _one("capabilities given up", "guest/confine.py", '_call("capset", header, bytes(24))\n', "\n"),
    _one(
        "user id of its own",
        "guest/confine.py",
        "        os.setresgid(uid, uid, uid)\n        os.setresuid(uid, uid, uid)\n",
        "        pass\n",
    ),
    Mutation(
        "no new privileges",
        (
            ("guest/confine.py", '    _call("prctl", _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)\n', ""),
            ("nsjail.py", "iface_no_lo=True", "iface_no_lo=True, disable_no_new_privs=True"),
            ("nsjail.py", "[SECCOMP_POLICY]", "[]"),  # nsjail also sets it for its policy
        ),
    ),
    _one("non-traceability", "guest/supervisor.py", "        confine.hide()\n", "        pass\n"),
    _one(
        "closed descriptors", "guest/process.py", "            os.closerange(first + 1, last)\n",
        "            pass\n",
    ),
    _one(
        "record without descriptor", "guest/process.py", "sorted((0, 1, 2, source,",
        "sorted((0, 1, 2, record, source,",
    ),
    _one("session of its own", "guest/process.py", "        os.setsid()  #", "        pass  #"),
    _one("/dev/null of its own", "guest/process.py", "        os.dup2(null, 0)\n", ""),
    _one("bell", "job.py", "        return bool(self._began)\n", (
        "        if self._header()[0] != self._number:\n            return False\n"
        "        self._began = self._began or time.monotonic()\n        return True\n"
    )),
    _one("record is doubted", "record.py",
         "error, trace\n    except (ValueError, TypeError, AttributeError, RecursionError)",
         "error, trace\n    except ValueError"),
    _one("output limit", "job.py", " if len(chunk) > room:\n", " if False:\n"),
    _one("wall-clock limit", "job.py", "            allowed = self.limits.wall_seconds\n",
         "            allowed = 12 + self.limits.wall_seconds\n"),
    _one("read-only mounts", "nsjail.py", "is_bind=True, nosuid=True", "is_bind=True, rw=True"),
    _one("empty environment", "nsjail.py", "        hostname=", "        keep_env=True, hostname="),
    _one("socket pairs", "guest/syscalls.py", '"socketpair": (0, (1,)),  # the Unix family\n', ""),
    _one("requests of devices", "guest/syscalls.py", "(0x5401,", "(0x5412, 0x8008_6601, 0x5401,"),
    _one("cache: advice", "guest/syscalls.py", "(2, (0, 1, 2, 4,", "(2, (0, 1, 2, 3, 20, 21, 4,"),
    _one("cache: flags", "guest/syscalls.py", '"preadv2": (5, (0,)', '"preadv2": (5, (0, 8, 0x80)'),
    _one("cache: calls", "guest/syscalls.py", "msync 26 227,",
         "msync 26 227, mincore 27 232, fadvise64 221 223, readahead 187 213,"),
    _one("bind", "guest/syscalls.py", "socket 41 198,",
         "socket 41 198, bind 49 200, listen 50 201,"),
    Mutation(
        "number of the block",
        (
            ("job.py", "over = ended and number == self._number and", "over = ended and"),
            ("job.py", "if ended and number == self._number:  #", "if ended:  #"),
        ),
    ),
    _one("clock outranks the record", "job.py",
         "        if self._timed_out and self._code in (None, -signal.SIGKILL):",
         "        if self._timed_out and not recorded:"),
    _one("exit status outranks the record", "job.py",
         "        recorded = read_record(text, limits)\n",
         "        recorded = read_record(text, limits)\n        if recorded:\n"
         "            return recorded\n"),
    _one("end of a session's process", "job.py", "if self._code or self.session", "if self._code"),
    Mutation(
        "own processes earn no time",
        (
            ("job.py", "        if burden.running:", "        if False:"),
            ("job.py", "max(waited - (burden.seconds - self._burdened), 0.0)\n", "waited\n"),
        ),
    ),
    _one("programs go first", "guest/supervisor.py", "    confine.go_first(int(proc))\n", ""),
    _one("leases", "guest/syscalls.py", "_LEASES = (1024, 1030)", "_LEASES = (1, 1)"),
]  # fmt: skip


def attack(mutation: Mutation) -> str:
    """Runs the attacks against a copy of the package without a defence.

    Args:
        mutation: The defence.

    Returns:
        The output of pytest.

    Raises:
        ValueError: The source has changed, so that a text to edit does not stand there exactly
            once; or the attacks cannot run.
    """
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="mutation-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copytree(_ROOT / "retool_env", folder / "retool_env")
        shutil.copytree(_HERE, folder / "attacks")
        shutil.copytree(_ROOT / "tests" / "helpers", folder / "helpers")
        for file, old, new in mutation.edits:
            path = folder / _SANDBOX / file
            text = path.read_text()
            if text.count(old) != 1:
                raise ValueError(
                    f"{file} has changed; {old!r} stands there {text.count(old)} times"
                )
            path.write_text(text.replace(old, new))
        command = [sys.executable, "-m", "pytest", "attacks", "-q", "-rfE", "--tb=no"]
        command += ["-p", "no:cacheprovider", "--timeout=25", "--maxfail=12", "-o", "addopts="]
        command += ["-k", "not ordinary_user and not table"]
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True,
                timeout=_WHOLE_RUN_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return "FAILED ::all_of_them_since_the_run_hung"
        if done.returncode not in (0, 1, 2):  # passed, failed, or cut short
            raise ValueError(f"the attacks could not be run: {done.stderr[-500:]}")
        return done.stdout


def got_through(output: str) -> list[str]:
    """The tests that failed, each once, without parameters."""
    found = re.findall(r"^(?:FAILED|ERROR) \S*?::(\w+)", output, re.MULTILINE)
    return list(dict.fromkeys(found))


def main() -> int:
    words = sys.argv[1:]
    print(f"| defence removed | attacks that got through |\n|{'-' * 30}|{'-' * 30}|")
    unnoticed = 0
    for mutation in MUTATIONS:
        if words and not any(word in mutation.defence for word in words):
            continue
        output = attack(mutation)
        names = got_through(output)
        unnoticed += not names
        more = f", and {len(names) - 4} more" if len(names) > 4 else ""
        shown = ", ".join(f"`{name}`" for name in names[:4]) or "**none**"
        if " passed" not in output:
            shown, more = "none: no program runs without it", ""
        print(f"| {mutation.defence} | {shown}{more} |", flush=True)
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
