"""The supervisor, in a process of its own; a child plays the template and the host."""

import subprocess
import sys
from pathlib import Path

import pytest

from retool_env import sandbox

PATH = str(Path(sandbox.__file__).parent)

SETTING = """
import os, socket, struct, sys, tempfile, time
sys.path.append({path!r})
from guest import wire
from guest.supervisor import Supervisor

made, announce = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours, status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.settimeout(10)
program = os.fork()
if program == 0:
    os.setsid()
    {program}
    os._exit(0)
folder = tempfile.mkdtemp()
template = os.fork()
if template == 0:
    def tell():
        head = struct.pack(wire.MADE, program)
        socket.send_fds(announce, [head + folder.encode()], [status.fileno()])
    def ended():
        return struct.unpack(wire.ENDED, ours.recv(64))[0], os.path.exists(folder)
    {template}
    os._exit(0)
status.close()
announce.close()
Supervisor(made, template, {jailed}).serve()
"""


@pytest.fixture(params=[True, False], ids=["jail", "bare"])
def jailed(request: pytest.FixtureRequest) -> bool:
    return request.param


def shown(jailed: bool, program: str, template: str) -> str:
    """The output of the program and the template under a supervisor.

    Args:
        jailed: Whether the supervisor is in a jail.
        program: A statement of the program.
        template: Statements of the template, separated by semicolons.
    """
    code = SETTING.format(path=PATH, jailed=jailed, program=program, template=template)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


def test_the_end_of_a_program_is_reported_and_its_folder_removed(jailed: bool) -> None:
    assert shown(jailed, "os._exit(3)", "tell(); print(ended(), flush=True)") == "(3, False)\n"


def test_an_end_before_the_announcement_is_also_reported(jailed: bool) -> None:
    template = "time.sleep(0.2); tell(); print(ended(), flush=True)"
    assert shown(jailed, "os._exit(3)", template) == "(3, False)\n"


def test_a_program_is_killed_when_the_host_shuts_its_end(jailed: bool) -> None:
    template = "tell(); ours.shutdown(socket.SHUT_WR); print(ended(), flush=True)"
    assert shown(jailed, "time.sleep(60)", template) == "(-9, False)\n"


def test_programs_end_with_the_template(jailed: bool) -> None:
    """A program that lived on would hold the output open for longer than the test may take."""
    assert shown(jailed, "time.sleep(60)", "tell(); time.sleep(0.2)") == ""
