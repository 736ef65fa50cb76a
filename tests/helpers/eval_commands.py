"""The parsed command line of one evaluation."""

from __future__ import annotations

import argparse

from retool_env.commands import evaluation

ARITHMETIC = "ReTool-Arithmetic-v0"


def eval_arguments(
    *given: str, model: str = "m", env: str | None = ARITHMETIC
) -> argparse.Namespace:
    """The options of `retool eval` for one model and one environment.

    Args:
        given: The other options and settings.
        model: The model's name.
        env: The environment's id; `None`: none is named.
    """
    commands = argparse.ArgumentParser().add_subparsers()
    evaluation.add_parser(commands)
    arguments = commands.choices["eval"].parse_intermixed_args(["--model", model, *given])
    arguments.model, arguments.env = model, env
    return arguments
