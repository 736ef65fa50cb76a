"""`retool serve`: the sandbox of this machine runs the programs of other machines."""

from __future__ import annotations

import argparse
import dataclasses
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from retool_env.commands.keys import refuse_key
from retool_env.errors import MissingPackage, SettingsError

_MOST_TOKEN_FILE = 8192


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "serve", help="run other machines' programs in the sandbox here", allow_abbrev=False
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8080, help="port; 0: a free port (8080)")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="the file of the token that clients must send (the variable RETOOL_SANDBOX_TOKEN)",
    )
    refuse_key(parser, "--token", "--token-file FILE, or RETOOL_SANDBOX_TOKEN")
    parser.add_argument(
        "--max-in-flight", type=int, help="programs at once (16 for each processor)"
    )
    parser.add_argument(
        "--max-seconds", type=float, default=120.0, help="most seconds of a program (120)"
    )
    parser.add_argument(
        "--grace",
        type=int,
        default=30,
        help="seconds that running programs have once the server is stopped (30)",
    )
    parser.add_argument("--unsafe", action="store_true", help="run programs without a jail")


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool serve`."""
    from retool_env.sandbox import make_sandbox

    try:
        from retool_env.sandbox.server import MAXIMUM, serve
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{error}; pip install 'retool-env[serve]'") from error
    try:
        maximum = dataclasses.replace(MAXIMUM, wall_seconds=arguments.max_seconds)
    except SettingsError as error:
        raise SettingsError(f"--max-seconds: {error}") from None
    if arguments.token_file is not None:
        token: str | None = read_token(arguments.token_file)
    else:
        token = os.environ.get("RETOOL_SANDBOX_TOKEN")
    serve(
        lambda: make_sandbox("unsafe" if arguments.unsafe else "nsjail"),
        arguments.host,
        arguments.port,
        token,
        max_in_flight=arguments.max_in_flight,
        maximum=maximum,
        grace_seconds=arguments.grace,
    )
    return 0


def read_token(path: Path) -> str:
    """Reads the token in a file, without the line break at its end.

    A warning is printed if other users can read the file.

    Raises:
        OSError: The file does not exist, or can't be read.
        ValueError: The file is not a regular file, is larger than a token, or is not text.
    """
    # A FIFO would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise SettingsError(f"--token-file: {path} is not a regular file")
        content = os.read(descriptor, _MOST_TOKEN_FILE + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MOST_TOKEN_FILE:
        raise SettingsError(f"--token-file: {path} is larger than a token can be")
    if mode & 0o077:
        print(
            f"warning: others than its owner may use {path}: chmod 600 {path}",
            file=sys.stderr,
        )
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise SettingsError(f"--token-file: {path} holds more than ASCII text") from None
    return text.removesuffix("\n").removesuffix("\r")
