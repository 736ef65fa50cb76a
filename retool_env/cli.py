"""`retool`: evaluate models, look at runs, play, check this machine, serve the sandbox."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from retool_env import __version__
from retool_env.commands import (
    compare,
    evaluation,
    export,
    leaderboard,
    play,
    recover,
    replay,
    report,
    score,
    serve,
    view,
)
from retool_env.commands.clone import forward
from retool_env.errors import RetoolError
from retool_env.printable import printable, reader_left
from retool_env.servers.address import redact

MODULES = {
    "eval": evaluation,
    "recover": recover,
    "view": view,
    "report": report,
    "compare": compare,
    "score": score,
    "replay": replay,
    "leaderboard": leaderboard,
    "export": export,
    "play": play,
    "serve": serve,
}
"""The module of each command, in the order of the help text."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="retool", description=__doc__)
    parser.add_argument("--version", action="version", version=f"retool-env {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for module in MODULES.values():
        module.add_parser(commands)
    commands.add_parser("doctor", help="check this machine, and say how to mend faults")
    commands.add_parser("train", help="forwards to `python -m agents`", add_help=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv else None
    rest = argv[1:]
    if command == "train":
        arguments = argparse.Namespace(command=command)
    elif command in commands.choices:
        # By itself, so that options and settings may stand in any order.
        arguments, rest = commands.choices[command].parse_known_intermixed_args(rest)
        arguments.command = command
    else:
        arguments = parser.parse_args(argv)
    if rest and command != "train":
        # Without their values, which may be a key's.
        options = [each.partition("=")[0] for each in rest if each.startswith("-")]
        parser.error(f"unknown arguments: {' '.join(options or rest)}")
    # A model's name may hold bytes that the terminal's encoding lacks: they are shown escaped.
    if isinstance(sys.stdout, io.TextIOWrapper):  # not a notebook's output
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        runs = {name: module.run for name, module in MODULES.items()}
        runs |= {"doctor": run_doctor, "train": run_train}
        status = runs[arguments.command](arguments, rest)
        sys.stdout.flush()  # a closed pipe shows here at the latest
        return status
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (RetoolError, OSError) as error:  # the latter: no room on the disk, a port in use
        if isinstance(error, BrokenPipeError) and reader_left():
            return 141  # as a program that SIGPIPE ends
        if os.environ.get("RETOOL_TRACEBACK"):
            raise
        print(f"retool {arguments.command}: {printable(redact(str(error)))}", file=sys.stderr)
        return 1


def run_doctor(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`retool doctor`."""
    from retool_env.doctor import Status, examine

    found = []
    for finding in examine():
        print(finding, flush=True)
        found.append(finding.status)
    if Status.MISSING in found:
        print("\nprograms cannot be run here until that is mended", file=sys.stderr)
        return 1
    print("\nthe sandbox works here")
    return 0


def run_train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool train`: forwards to the clone's trainers."""
    return forward("retool train", rest)


if __name__ == "__main__":
    sys.exit(main())
