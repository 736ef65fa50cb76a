r"""Text of others, such as a model's, made safe to show: nothing in it steers the reader's screen.

A control character moves a terminal's cursor or changes its colours, and a direction mark turns the
order of the letters around, so that a text reads as another text. Both are shown as escapes:
`\x1b`, `\u202e`. Line breaks and tabs stay.
"""

from __future__ import annotations

import os
import re
import sys

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, all but tab and line feed
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"  # directions, separators, no width
    "\ud800-\udfff"  # halves of surrogate pairs, which no encoding can write
    "\ufff9-\ufffb\U000e0000-\U000e007f]"  # annotations and tags
)


def reader_left() -> bool:
    """Whether the reader of standard output has closed its pipe, as `retool compare A B | head`."""
    try:
        print(flush=True)  # the failed write itself may have left nothing to flush
    except BrokenPipeError:  # the interpreter flushes once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def printable(text: str) -> str:
    r"""The text with its control characters and direction marks as escapes.

    Args:
        text: Any text.

    Example:
        >>> print(printable("red: \x1b[31m, turned: \u202e"))
        red: \x1b[31m, turned: \u202e
    """
    return _HIDDEN.sub(lambda found: _escape(ord(found[0])), text)


def one_line(text: str, limit: int = 80) -> str:
    r"""The text on one line, without runs of blanks, and cut at a length.

    Args:
        text: Any text.
        limit: The largest number of characters of the result, at least 1.

    Example:
        >>> one_line("a\n\n  b\x07")
        'a b\\x07'
    """
    line = printable(" ".join(text[: 4 * limit + 1000].split()))
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
