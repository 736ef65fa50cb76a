"""Faults beneath the programs: in guests, nsjail, the disk, descriptors, and the host process.

Every program has exactly one outcome, nothing hangs, and nothing is left: no process, no
descriptor, no folder.
"""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.marks import Mark
from helpers.tree import Process, children, descendants, descriptors, left_of, settled_descriptors

from retool_env.sandbox import (
    Execution,
    Limits,
    NsjailSandbox,
    Outcome,
    SandboxUnavailable,
    binaries,
    job,
    pool,
)

pytestmark = pytest.mark.timeout(90)

SLEEP = "import time\ntime.sleep(60)"
NAP = "import time\ntime.sleep(0.3)\n"


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the time after which a silent guest is given up."""
    monkeypatch.setattr(job, "START_SECONDS", 3.0)
    monkeypatch.setattr(job, "GONE_SECONDS", 0.5)


@pytest.fixture
def box() -> Iterator[NsjailSandbox]:
    """One guest of each kind, fully warm; at the end nothing of the guests is left."""
    before = descriptors()
    with NsjailSandbox(guests=1, concurrency=16) as made:
        warm(made)
        yield made
        seen = family(made)
    assert left_of(seen) == []
    assert settled_descriptors(before) <= before


def warm(sandbox: NsjailSandbox) -> None:
    """Waits until the guests have loaded their packages."""
    assert sandbox.run("import sympy").outcome is Outcome.OK
    deadline = time.monotonic() + 20
    while sandbox.pool.spares and not all(spare.ready for spare in sandbox.pool.spares):
        for spare in sandbox.pool.spares:
            spare.step()
        time.sleep(0.01)
        assert time.monotonic() < deadline


PLAIN, LOADED = 0, 1
"""The index of the guest without packages, and with packages, in a sandbox with one of each."""


def family(sandbox: NsjailSandbox, which: int | None = None) -> list[Process]:
    guests = sandbox.pool.guests if which is None else [sandbox.pool.guests[which]]
    return [p for guest in guests for p in descendants(guest.process.pid)]


def nsjail(sandbox: NsjailSandbox, which: int = PLAIN) -> int:
    """The nsjail process of a living guest; the next program replaces a guest that has died."""
    for _ in range(100):
        guest = sandbox.pool.guests[which]
        if guest.alive and len(descendants(guest.process.pid)) >= 2:
            return guest.process.pid
        sandbox.run("1")
    raise AssertionError("the guest did not start again")


def supervisor(sandbox: NsjailSandbox, which: int = PLAIN) -> int:
    return children(nsjail(sandbox, which))[0].pid


def template(sandbox: NsjailSandbox, which: int = PLAIN) -> int:
    return children(supervisor(sandbox, which))[0].pid


MEMBERS: dict[str, Callable[..., int]] = {
    "nsjail": nsjail,
    "supervisor": supervisor,
    "template": template,
}


def twelve(sandbox: NsjailSandbox, asynchronously: bool) -> "list[Execution]":
    """Twelve programs at once; each takes a moment and prints its number."""
    codes = [f"{NAP}print({n})" for n in range(12)]
    if not asynchronously:
        with ThreadPoolExecutor(12) as threads:
            return list(threads.map(sandbox.run, codes))

    async def gather() -> list[Execution]:
        return await asyncio.gather(*(sandbox.run_async(code) for code in codes))

    return asyncio.run(gather())


def meanwhile(action: Callable[[], None], after: float = 0.15) -> threading.Timer:
    timer = threading.Timer(after, action)
    timer.start()
    return timer


# --- guests


@pytest.mark.some(2)
@pytest.mark.parametrize("asynchronously", [False, True], ids=["threads", "loop"])
@pytest.mark.parametrize("member", MEMBERS)
def test_killed_with_programs_in_flight(
    box: NsjailSandbox, member: str, asynchronously: bool
) -> None:
    """The programs run again on a fresh guest, and callers do not notice."""
    old = family(box, PLAIN)
    pid = MEMBERS[member](box)
    timer = meanwhile(lambda: os.kill(pid, signal.SIGKILL))
    executions = twelve(box, asynchronously)
    timer.join()
    assert executions == [Execution(Outcome.OK, f"{n}\n") for n in range(12)]
    assert left_of(old) == []


@pytest.mark.some(1)
@pytest.mark.parametrize("member", MEMBERS)
def test_killed_while_nothing_runs(box: NsjailSandbox, member: str) -> None:
    for number in range(3):
        pid, old = MEMBERS[member](box), family(box, PLAIN)
        os.kill(pid, signal.SIGKILL)
        assert box.run(f"print({number})") == Execution(Outcome.OK, f"{number}\n")
        assert left_of(old) == []


@pytest.mark.some(2)
@pytest.mark.parametrize("asynchronously", [False, True], ids=["threads", "loop"])
@pytest.mark.parametrize("member", MEMBERS)
def test_stopped_with_programs_in_flight(
    box: NsjailSandbox, member: str, asynchronously: bool, soon: None
) -> None:
    """A guest that hangs is replaced; programs that had not begun run on the new guest."""
    old = family(box, PLAIN)
    pid = MEMBERS[member](box)
    os.kill(pid, signal.SIGSTOP)
    executions = twelve(box, asynchronously)
    assert executions == [Execution(Outcome.OK, f"{n}\n") for n in range(12)]
    assert box.run("print(1)") == Execution(Outcome.OK, "1\n")
    if member == "nsjail":  # its part was over: it is only waited for
        os.kill(pid, signal.SIGCONT)
    else:
        assert left_of(old) == []


def test_a_program_that_its_guest_cannot_end(box: NsjailSandbox, soon: None) -> None:
    """The supervisor is stopped when the program's time is up, so the guest itself is ended."""
    mark = Mark()
    timer = meanwhile(lambda: os.kill(supervisor(box), signal.SIGSTOP), 0.1)
    execution = box.run(mark.code + SLEEP, Limits(wall_seconds=0.5))
    timer.join()
    assert execution.outcome is Outcome.TIMEOUT
    assert mark.wait_for(0) == []
    assert box.run("print(1)") == Execution(Outcome.OK, "1\n")


def test_cancelled_while_its_guest_hangs(box: NsjailSandbox, soon: None) -> None:
    mark = Mark()

    async def play() -> None:
        run = asyncio.create_task(box.run_async(mark.code + SLEEP, Limits(wall_seconds=60)))
        while not mark.find():
            await asyncio.sleep(0.01)
        os.kill(supervisor(box), signal.SIGSTOP)
        run.cancel()
        await asyncio.wait({run})
        assert run.cancelled()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert mark.wait_for(0) == []
    assert box.pool.slots.free == 16


@pytest.mark.some(1)
@pytest.mark.parametrize("member", MEMBERS)
def test_a_session_whose_guest_dies_says_so(box: NsjailSandbox, member: str) -> None:
    with box.session() as session:
        session.run("x = 1")
        pid = MEMBERS[member](box, LOADED)
        timer = meanwhile(lambda: os.kill(pid, signal.SIGKILL))
        execution = session.run(NAP * 3)
        timer.join()
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert session.run("x").error == "NameError: name 'x' is not defined"
        os.kill(MEMBERS[member](box, LOADED), signal.SIGKILL)  # and between two blocks
        time.sleep(0.3)
        session.run("y = 1")
        assert session.run("z = 2\nprint(z)") == Execution(Outcome.OK, "2\n")


def test_a_guest_that_fails_by_itself_is_replaced(box: NsjailSandbox) -> None:
    box.pool.guests[0].control.send(b"no request")
    executions = [box.run(f"print({n})") for n in range(10)]
    assert executions == [Execution(Outcome.OK, f"{n}\n") for n in range(10)]


def test_every_guest_of_several_dies(soon: None) -> None:
    with NsjailSandbox(guests=3, concurrency=12) as sandbox:
        warm(sandbox)
        old = family(sandbox)

        def kill_all() -> None:
            for guest in list(sandbox.pool.guests):
                guest.process.kill()

        timer = meanwhile(kill_all)
        assert twelve(sandbox, True) == [Execution(Outcome.OK, f"{n}\n") for n in range(12)]
        timer.join()
        assert left_of(old) == []


def test_guests_that_cannot_be_started_again(tmp_path: Path) -> None:
    """The outcome says why; once guests can start again, programs run."""
    count, link, broken = tmp_path / "count", tmp_path / "nsjail", tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\necho x >> {count}\necho 'no room for a jail' >&2\nexit 255\n")
    broken.chmod(0o755)

    def put(binary: str | Path) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(binary)

    put(binaries.packaged_binary())
    with NsjailSandbox(guests=1, binary=link) as box:
        put(broken)
        guest = box.pool.guests[0].process
        guest.kill()
        guest.wait()
        execution = box.run("print(1)")
        assert execution.outcome is Outcome.INFRASTRUCTURE and execution.stdout == ""
        assert "no room for a jail" in execution.error
        assert count.read_text().count("x") == 3
        execution = asyncio.run(box.run_async("print(1)"))
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert count.read_text().count("x") == 6
        put("/nonexistent/nsjail")
        execution = box.run("print(1)")
        assert execution.outcome is Outcome.INFRASTRUCTURE
        assert f"cannot start {link}" in execution.error
        put(binaries.packaged_binary())
        assert box.run("print(1)") == Execution(Outcome.OK, "1\n")


# --- closing


@pytest.mark.parametrize("asynchronously", [False, True], ids=["threads", "loop"])
def test_closed_with_work_in_flight(asynchronously: bool) -> None:
    """Programs that run and programs that wait get an outcome at once."""
    sandbox = NsjailSandbox(guests=1, concurrency=4)
    warm(sandbox)
    mark = Mark()
    codes = [f"{mark.code}{SLEEP}"] * 12
    timer = threading.Timer(0, lambda: (mark.wait_for(4), sandbox.close()))
    began = time.monotonic()
    if asynchronously:

        async def gather() -> list[Execution]:
            runs = asyncio.gather(*(sandbox.run_async(code) for code in codes))
            timer.start()
            return await runs

        executions = asyncio.run(gather())
    else:
        with ThreadPoolExecutor(12) as threads:
            results = [threads.submit(sandbox.run, code) for code in codes]
            while len(sandbox.pool.slots) < 8:
                time.sleep(0.01)
            timer.start()
            executions = [result.result() for result in results]
    timer.join()
    assert time.monotonic() - began < 30
    assert {e.outcome for e in executions} == {Outcome.INFRASTRUCTURE} and len(executions) == 12
    assert all("the sandbox was closed" in execution.error for execution in executions)
    assert mark.wait_for(0) == []


def test_closed_from_its_own_loop() -> None:
    sandbox = NsjailSandbox(guests=1)

    async def play() -> Execution:
        run = asyncio.create_task(sandbox.run_async(SLEEP))
        await asyncio.sleep(0.2)
        sandbox.close()
        return await run

    assert asyncio.run(play()).outcome is Outcome.INFRASTRUCTURE


def test_a_session_in_flight_when_the_sandbox_closes() -> None:
    sandbox = NsjailSandbox(guests=1)
    session = sandbox.session()
    session.run("x = 1")
    timer = meanwhile(sandbox.close, 0.3)
    assert session.run(SLEEP).outcome is Outcome.INFRASTRUCTURE
    timer.join()
    session.close()


# --- the host process


HEAD = """
import asyncio, os, resource, signal, sys, threading, time
from retool_env.sandbox import *
"""


def host(code: str, *command: str, **settings: object) -> subprocess.Popen[str]:
    """A separate process that runs programs.

    Args:
        code: The text of its main function.
        command: A command in front of the interpreter's.
        **settings: Arguments of `subprocess.Popen`.
    """
    script = HEAD + textwrap.dedent(code)
    arguments = [*command, sys.executable, "-c", script]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, **(pipes | settings))


RUNS = {
    "run": """
        with make_sandbox(guests=2) as sandbox:
            try:
                sandbox.run(CODE, Limits(wall_seconds=60))
            except KeyboardInterrupt:
                print("interrupted", sandbox.run("print(6 * 7)").stdout, flush=True)
    """,
    "waiting": """
        with make_sandbox(guests=1, concurrency=1) as sandbox:
            worker = threading.Thread(target=sandbox.run, args=[CODE, Limits(wall_seconds=3)])
            worker.start()
            time.sleep(0.5)
            try:
                sandbox.run("print(1)")
            except KeyboardInterrupt:
                worker.join()
                print("interrupted", sandbox.run("print(6 * 7)").stdout, flush=True)
    """,
    "asyncio": """
        async def main():
            with make_sandbox(guests=2) as sandbox:
                try:
                    limits = Limits(wall_seconds=60)
                    await asyncio.gather(*(sandbox.run_async(CODE, limits) for _ in range(3)))
                except asyncio.CancelledError:
                    execution = await sandbox.run_async("print(6 * 7)")
                    print("interrupted", execution.stdout, flush=True)
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            pass
    """,
    "session": """
        with make_sandbox(guests=1) as sandbox, sandbox.session(Limits(wall_seconds=60)) as session:
            try:
                session.run(CODE)
            except KeyboardInterrupt:
                print("interrupted", session.run("print(6 * 7)").stdout, flush=True)
    """,
}


@pytest.mark.some(2)
@pytest.mark.parametrize("way", RUNS)
def test_ctrl_c(way: str) -> None:
    """A terminal signals the whole process group: the program ends, and the sandbox lives on."""
    mark = Mark()
    process = host(
        f"CODE = {mark.code + SLEEP!r}\n" + textwrap.dedent(RUNS[way]), start_new_session=True
    )
    try:
        assert mark.wait_for(3 if way == "asyncio" else 1)
        time.sleep(0.8 if way == "waiting" else 0.2)
        guests = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        stdout, stderr = process.communicate(timeout=40)
    finally:
        process.kill()
    assert stdout == "interrupted 42\n\n" and process.returncode == 0, stderr
    assert mark.find() == [] and left_of(guests) == []


@pytest.mark.some(2)
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "os._exit", "an exception", "its end"])
def test_the_host_is_gone(how: str, tmp_path: Path) -> None:
    """However the host ends, and even without a close, its guests end with it."""
    mark = Mark()
    ends = {
        "os._exit": "os._exit(0)",
        "an exception": "raise SystemExit(1)",
        "its end": "",
    }.get(how, "time.sleep(60)")
    process = host(
        f"""
        sandbox = make_sandbox(guests=2)
        threading.Thread(target=sandbox.run, args=[{mark.code + SLEEP!r}], daemon=True).start()
        sys.stdin.readline()
        {ends}
        """,
        stdin=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        assert len(mark.wait_for(1)) == 1
        guests = descendants(process.pid)
        assert len(guests) >= 6
        if how.startswith("SIG"):
            process.send_signal(getattr(signal, how))
        process.communicate("\n", timeout=30)
    finally:
        process.kill()
    assert left_of(guests) == [] and mark.find() == []
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_mounted_on_the_host(box: NsjailSandbox) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    box.run("open('/tmp/x', 'w').write('y')")
    with NsjailSandbox(guests=1) as other:
        other.run("1")
        assert Path("/proc/self/mountinfo").read_text() == before
    assert Path("/proc/self/mountinfo").read_text() == before


# --- what the host lacks


@pytest.mark.some(1)
@pytest.mark.parametrize("files", [24, 40, 64, 128])
def test_few_descriptors(files: int) -> None:
    """A refusal with a reason, or an outcome of each program; with enough descriptors all run."""
    process = host(f"""
        async def many(sandbox):
            return await asyncio.gather(*(sandbox.run_async(f"print({{n}})") for n in range(40)))
        resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, 20_000))
        try:
            sandbox = make_sandbox(guests=2)
        except SandboxUnavailable as error:
            print("refused", error)
            raise SystemExit
        with sandbox:
            for executions in (asyncio.run(many(sandbox)), [sandbox.run("print(0)")]):
                for number, execution in enumerate(executions):
                    good = execution == Execution(Outcome.OK, f"{{number}}\\n")
                    if not good and execution.outcome is not Outcome.INFRASTRUCTURE:
                        print("bad", execution)
                    if not good and "open files" not in execution.error:
                        print("unclear", execution)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 20_000))
            print(sandbox.run("print(6 * 7)").stdout.strip())
    """)
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    assert stdout == "42\n" or (stdout.startswith("refused") and "open files" in stdout), stdout
    assert stdout == "42\n" or files < 128


def test_the_usual_limit_on_open_files_is_enough() -> None:
    """1024 files, and the default number of programs at once."""
    process = host("""
        async def many(sandbox):
            nap = "import time\\ntime.sleep(1)\\n"
            runs = (sandbox.run_async(f"{nap}print({n})") for n in range(300))
            return await asyncio.gather(*runs)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 20_000))
        with make_sandbox(guests=2) as sandbox:
            executions = asyncio.run(many(sandbox))
            print(sandbox.concurrency, [e.outcome for e in executions].count(Outcome.OK))
    """)
    try:
        stdout, stderr = process.communicate(timeout=80)
    finally:
        process.kill()
    concurrency, good = map(int, stdout.split())
    assert good == 300, stderr
    assert 100 < concurrency < 256


def with_folders(options: str) -> str:
    """The message of a sandbox when every folder for temporary files is a full file system."""
    folders = [f for f in ("/tmp", "/var/tmp", "/dev/shm", "/run") if os.path.isdir(f)]
    mounts = "".join(
        f"mount -t tmpfs -o {options} none {folder}; cat /dev/zero 2>&- >{folder}/fill; "
        for folder in folders
    )
    root, execute = Path(pool.__file__).parents[2], 'exec "$@"'
    if any(path.is_relative_to(f) for path in (root, Path(sys.prefix)) for f in folders):
        # What runs there must stay to be seen.
        mounts = f"mount --bind {sys.prefix} /mnt; mount --bind {root} /media; {mounts}"
        root, execute = Path("/media"), 'shift; exec /mnt/bin/python "$@"'
    process = host(
        """
        import tempfile
        try:
            tempfile.TemporaryFile().write(b"x" * 100_000)
            print("there is room")
        except OSError:
            pass
        try:
            with make_sandbox(guests=1) as sandbox:
                print(sandbox.run("open('x', 'w').write('y' * 10**6); print(6 * 7)").stdout, end="")
        except SandboxUnavailable as error:
            print(error)
        """,
        *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
        f"{mounts} cd /tmp; {execute}",
        "sh",
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, stderr
    return stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can fill /tmp for one process alone")
def test_a_full_disk_does_not_matter() -> None:
    assert with_folders("size=16k") == "42\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can fill /tmp for one process alone")
def test_nowhere_to_mount_is_said() -> None:
    message = with_folders("size=16k,ro")
    assert message.startswith("nsjail could make no folder to mount on")
    assert "--tmpfs /tmp" in message


def test_a_missing_nsjail_and_a_missing_guest_file_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "guest"
    shutil.copytree(Path(pool.__file__).with_name("guest"), broken)
    (broken / "supervisor.py").write_text("raise RuntimeError('a broken installation')")
    from retool_env.sandbox import guest

    monkeypatch.setattr(guest, "__file__", str(broken / "__init__.py"))
    with pytest.raises(SandboxUnavailable, match="a broken installation"):
        NsjailSandbox(guests=1)
    monkeypatch.undo()
    before = descriptors()
    with pytest.raises(SandboxUnavailable, match="cannot start"):
        NsjailSandbox(guests=3, binary=str(tmp_path / "nsjail"))
    assert settled_descriptors(before) <= before
