"""Keys are refused on the command line, which everybody on the machine can read."""

from __future__ import annotations

import argparse
from typing import Any


def refuse_key(parser: argparse.ArgumentParser, option: str, cure: str) -> None:
    """Adds an option that users may expect to take a key, and that ends the command.

    Args:
        parser: The parser of the command.
        option: The name of the option.
        cure: The safe way to give the key, for the error text.
    """
    parser.add_argument(option, action=_KeyRefused, nargs="?", help=argparse.SUPPRESS, const=cure)


class _KeyRefused(argparse.Action):
    """An option that refuses a key; its `const` names the safe way."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Ends the command, without showing the key."""
        parser.error(
            f"{option_string} would show the key to everybody who lists the processes: give "
            f"{self.const}"
        )
