"""A stopped command says how to go on, and leaves no folder without episodes."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from retool_env.commands.stopping import closing, terminable
from retool_env.rollout.policy import Usage


class FakeRecords(SimpleNamespace):
    """Records of which only the end is noted."""

    def __init__(self, ended):
        super().__init__(folder=Path("a folder"), ended=ended, usage=Usage(), closed=[], gone=False)

    def close(self, status, seconds, cost):
        self.closed.append((status, cost))

    def remove(self):
        self.gone = True


def stopped(records, keys):
    with pytest.raises(KeyboardInterrupt), closing(records, keys, None):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("keys", "words"), [({1, 2, 3}, "1 of 3 episodes"), (None, "1 episodes")])
def test_the_kept_episodes_are_named_with_the_command_to_go_on(keys, words, capsys):
    records = FakeRecords({1: False})
    stopped(records, keys)
    assert records.closed == [("stopped", None)] and not records.gone
    err = capsys.readouterr().err
    assert err.startswith(f"{words} are kept in a folder") and "--resume --out 'a folder'" in err


def test_a_folder_without_episodes_is_removed():
    records = FakeRecords({})
    stopped(records, None)
    assert records.gone


def test_a_finished_work_is_closed_as_finished():
    records = FakeRecords({1: False})
    with closing(records, None, None) as finish:
        finish(True)
    assert records.closed == [("finished", None)]


def test_a_signal_of_a_scheduler_is_an_interrupt():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    assert signal.getsignal(signal.SIGTERM) is before
