"""The board shows a run's progress on a terminal, and prints lines without a terminal."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from agents.base import board as progress
from agents.base.board import Bar, sparkline


def figures(step):
    return {
        "reward": 0.25 * step,
        "env/accuracy": 0.1 * step,
        "env/code_ratio": 1.0,
        "completions/mean_length": 31.26,
        "offpolicy/kl": 1.5e-4,
        "rollout/seconds": 2.5,
        "clip_fraction": 0.5,
    }


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 80 columns, and the text on it."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    return text


class Writing:
    tokens = 0

    def __str__(self):
        return "3 generating"


def last_frame(text):
    """The last state of the screen."""
    return text.getvalue().rpartition("ppo")[2]


def test_a_terminal_shows_figures_and_curves(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = Writing()
    past = [{"step": step, **figures(step)} for step in (1, 2)]
    with Bar("ppo", 9, live=live, past=past) as bar:
        bar.set_total(9, 2)
        for step in (3, 4, 5):
            now[0] += 20
            live.tokens += 5000
            bar.show(step, figures(step))
    shown = last_frame(screen)
    for part in (
        "5/9",
        "0:01:00, about 0:01:20 to go",  # 3 steps a minute; the two earlier ones do not count
        "accuracy 50.0 %",
        "with code 100.0 %",
        "tokens 31.3",
        "off-policy KL 0.00015",
        "rollout s 2.5",
        "tokens/s 250",
        "▁▂▃▄▅",  # with the two steps before this start
        "█████",
        "3 generating",
    ):
        assert part in " ".join(shown.split()), shown
    assert "clip" not in shown and max(map(len, shown.splitlines())) <= 80


def test_the_accuracy_on_held_out_problems_stays_until_the_next_evaluation(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = Writing()
    past = [{"step": 0, "eval/accuracy": 0.25, "eval/code_ratio": 1.0}]
    with Bar("ppo", 2, live=live, past=past) as bar:
        bar.show_held_out({"step": 1, "eval/accuracy": 0.75})
        now[0] += 50  # the evaluation's tokens are not counted, nor is its time
        bar.show_held_out({"step": 1, "eval/accuracy": 0.5})
        now[0] += 10
        live.tokens = 100
        bar.show(2, figures(2))
    shown = " ".join(last_frame(screen).split())
    assert "held-out 50.0 %" in shown and "accuracy 20.0 %" in shown and "tokens/s 10" in shown
    assert "▃▇▅" in shown


def test_a_step_that_is_shown_after_its_evaluation_has_no_speed(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = Writing()
    with Bar("ppo", 2, live=live) as bar:
        now[0] += 10
        live.tokens = 500
        bar.show_held_out({"step": 1, "eval/accuracy": 0.75})
        now[0] += 0.001
        bar.show(1, figures(1))
        assert "tokens/s" not in " ".join(last_frame(screen).split())
        now[0] += 10
        live.tokens = 600
        bar.show(2, figures(2))
    assert "tokens/s 10" in " ".join(last_frame(screen).split())


def test_elsewhere_there_are_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO()))
    with Bar("rl", 2, every=0.0) as bar:
        bar.show(1, figures(1))
        bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rl: 1/2, 0 s  reward 0.25  accuracy 0.1  with code 1")
    assert lines[1].startswith("rl: 2/2") and lines[-1].startswith("rl: 2/2")


def test_a_curve_of_more_steps_than_columns_shows_means():
    values = [i / 999 for i in range(1000)]
    line = sparkline(values, 16)
    assert line == "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"
    assert sparkline([0.0, 1.0] * 4, 4) == "▅▅▅▅"
    assert sparkline([-1.0, 2.0], 9) == "▁█"
