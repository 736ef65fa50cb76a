"""`retool play`: a person solves a problem at the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium as gym

from retool_env.commands.checkpoints import (
    add_ignore,
    checkpoint_task,
    say,
    task_lines,
    with_test_split,
)
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser("play", help="solve a problem yourself, at the terminal")
    parser.add_argument(
        "--env",
        help="an environment's id (the id in the model's retool.json, or ReTool-Arithmetic-v0)",
    )
    parser.add_argument(
        "--model", help="a checkpoint's folder or a Hub id: play the task of its retool.json"
    )
    parser.add_argument("--seed", type=int, help="the seed that draws the problem (random)")
    add_ignore(parser)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool play`: a person is the policy."""
    from retool_env.checkpoint_task import merged
    from retool_env.task import registered_settings

    given = parse_settings(arguments.settings)
    task, lines = checkpoint_task(arguments) if arguments.model else (None, [])
    arguments.env = arguments.env or (task and task.id) or "ReTool-Arithmetic-v0"
    registered_settings(arguments.env)
    settings: dict[str, Any] = {"void_turn": "continue"}
    if task is not None:
        settings |= task.settings_for(arguments.env)
    lines += task_lines(task, arguments, given)
    if settings.pop("max_tokens", None) is not None:
        lines.append("max_tokens is left out: what a person writes is text")
    settings = merged(settings, given)
    if task is not None:
        settings = with_test_split(arguments.env, settings)
    try:
        env = gym.make(arguments.env, render_mode="human", **settings)
    except (TypeError, gym.error.Error) as error:  # Gymnasium's own settings
        raise SettingsError(str(error)) from error
    say(lines)
    env.reset(seed=arguments.seed)
    ended = False
    while not ended:
        action = read_turn()
        *_, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    print(f"the answer is {info['transcript'].problem.answer}")
    env.close()
    return 0


def read_turn() -> str:
    """Reads a turn from the terminal.

    A turn ends at a closing tag, at an empty line outside a program, or with the input.

    Returns:
        The turn. It is empty at the end of the input alone, and an empty turn ends the episode.
    """
    text = ""
    print("\nyour turn, up to </code>, </answer> or an empty line (Ctrl-D ends the episode):")
    for line in sys.stdin:
        text += line
        empty = not line.strip() and "<code>" not in text  # programs have empty lines
        if empty and not text.strip():
            print("the turn is empty: write a text, a program or an answer")
            text = ""
        elif empty or "</code>" in line or "</answer>" in line:
            break
    return text.strip("\n")
