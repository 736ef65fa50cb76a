"""Keys are refused on the command line, which everybody on the machine can read."""

from __future__ import annotations

import argparse
from typing import Any


def refuse_key(parser: argparse.ArgumentParser, option: str, cure: str) -> None:
    """Give a parser an option that would take a key, and ends the command.

    Args:
        parser: The command's.
        option: The option's name.
        cure: What to give in its place.
    """
    parser.add_argument(option, action=_KeyRefused, nargs="?", help=argparse.SUPPRESS, const=cure)


class _KeyRefused(argparse.Action):
    """An option that would take a key; its `const` says what to give in its place."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Ends the command, without showing the key."""
        parser.error(
            f"{option_string} would show the key to everybody who lists the processes: give {self.const}"
        )
