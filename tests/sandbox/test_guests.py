"""A guest's process on the host's side: its start, its log and its end."""

import os
import signal

import pytest
from helpers.services import wait_until
from helpers.tree import descriptors

from retool_env.sandbox import SandboxUnavailable
from retool_env.sandbox.command import Command
from retool_env.sandbox.guests import Guest, end_later, start_guest


def start(script: str) -> Guest:
    return start_guest(Command(["/bin/sh", "-c", script], {}, ()), ())


def test_the_log_holds_the_last_errors_also_after_the_end() -> None:
    before = descriptors()
    guest = start("echo first >&2; echo broken >&2; exec sleep 60")
    wait_until(lambda: guest.log() == "first; broken")
    assert guest.alive
    guest.end()
    guest.end()
    assert not guest.alive and guest.process.returncode == -signal.SIGTERM
    assert guest.log() == "first; broken"
    assert descriptors() == before


def test_a_guest_that_ends_when_its_socket_is_closed_gets_no_signal() -> None:
    guest = start("read line; exit 7")
    guest.end()
    assert guest.process.returncode == 7


def test_a_condemned_guest_gets_no_programs_and_ends_in_another_thread() -> None:
    guest = start("exec sleep 60")
    guest.condemned = True
    assert not guest.alive
    end_later(guest)
    assert guest.process.wait(10) == -signal.SIGTERM


def test_a_command_that_cannot_run_leaves_no_descriptor() -> None:
    before = descriptors()
    given = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(SandboxUnavailable, match="cannot start /nonexistent/guest"):
        start_guest(Command(["/nonexistent/guest"], {}, (given,)), ())
    assert descriptors() == before


def test_a_forked_copy_closes_its_descriptors_of_the_guests_processes() -> None:
    class Child:
        gone = closed = False

        def close(self) -> None:
            self.closed = True

    guest, child = start("exec sleep 60"), Child()
    guest.jobs.add(child)
    guest.abandon()
    assert child.gone and child.closed and guest.control.fileno() < 0
    guest.end()
