"""Wrong values: an output in which one number is changed, or two lines are swapped."""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Iterator
from itertools import accumulate

_NUMBER = re.compile(r"(?<![\w.])([0-9]+)(\.[0-9]+)?([eE][-+]?[0-9]+)?(?!\w|\.[0-9])")
_BEFORE_SIGN = " \t\n\r([{=:"
_MARGIN = 2
_MOST_DIGITS = 1000
"""Python refuses to convert integers of more than 4,300 digits."""


def wrong_value(output: str, problem: str, hidden: tuple[int, int] = (0, 0)) -> str | None:
    """Change the last visible number of an output, or swap two of its visible lines.

    The changes are: plus 1, minus 1, another digit, another sign, and two neighbouring lines
    swapped. A hash of the output and the problem chooses among the possible changes.

    Args:
        output: The true output of a program.
        problem: The id of the problem.
        hidden: The first character that the model does not see, and the first one after them.

    Returns:
        The changed output; `None` if the model sees neither a number nor two different lines.

    Example:
        >>> wrong_value("the sum is 41", "p")
        'the sum is 40'
    """
    digest = hashlib.blake2b(repr((problem, output)).encode(), digest_size=16).digest()
    which, detail = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    if hidden[0] < hidden[1]:  # a number may become longer or shorter, and moves the cut
        hidden = hidden[0] - _MARGIN, hidden[1] + _MARGIN
    changed = [*_changed_numbers(output, detail, hidden), *_swapped_lines(output, detail, hidden)]
    return changed[which % len(changed)] if changed else None


def _is_visible(first: int, last: int, hidden: tuple[int, int]) -> bool:
    """Whether the model sees the characters from `first` up to but not including `last`."""
    return last <= hidden[0] or hidden[1] <= first or hidden[0] == hidden[1]


def _changed_numbers(output: str, detail: int, hidden: tuple[int, int]) -> Iterator[str]:
    """The output with each change of its last visible number.

    Args:
        output: The output.
        detail: A large number that chooses the changed digit.
        hidden: The characters that the model does not see.
    """
    matches = (m for m in _NUMBER.finditer(output) if _is_visible(*m.span(), hidden))
    match = next(iter(deque(matches, maxlen=1)), None)
    if match is None or len(match[1]) > _MOST_DIGITS:
        return
    whole, rest = match[1], (match[2] or "") + (match[3] or "")
    start, end = match.span()
    negative = output[start - 1 : start] == "-" and (
        start == 1 or output[start - 2] in _BEFORE_SIGN
    )
    signed = negative or start == 0 or output[start - 1] in _BEFORE_SIGN
    head, tail = output[: start - negative], output[end:]

    grouped = bool(re.search(r"[0-9],\Z", output[max(start - 2, 0) : start]))  # as in 1,000
    width = len(whole) if grouped or whole[0] == "0" else 0

    def written(value: int, minus: bool) -> str:
        return f"{head}{'-' * minus}{value:0{width}d}{rest}{tail}"

    for step in (1, -1):
        size = int(whole) + (-step if negative else step)  # of the number without its sign
        if size >= 0 and not (grouped and len(str(size)) > width):
            # A number such as 0.5 would be -0 without its fraction.
            yield written(size, negative and (size > 0 or bool(rest)))
        elif size < 0 and not rest and signed:  # from 0 to -1, or from -0 to 1
            yield written(1, not negative)
    digits = f"{whole}{match[2] or ''}"
    places = [at for at, digit in enumerate(digits) if digit != "."]
    at = places[detail % len(places)]
    new = str((int(digits[at]) + 1 + detail // len(places) % 9) % 10)
    if new == "0" and at == 0 and len(whole) > 1:
        new = "2" if digits[0] == "1" else "1"  # a number does not begin with 0
    digits = f"{digits[:at]}{new}{digits[at + 1 :]}"
    yield f"{head}{'-' * (negative and bool(digits.strip('0.')))}{digits}{match[3] or ''}{tail}"
    if signed and f"{whole}{match[2] or ''}".strip("0."):  # the sign of 0 changes nothing
        yield f"{head}{'-' * (not negative)}{output[start:end]}{tail}"


def _swapped_lines(output: str, detail: int, hidden: tuple[int, int]) -> Iterator[str]:
    """The output with two different neighbouring visible lines swapped, if it has such lines.

    Args:
        output: The output.
        detail: A large number that chooses the lines.
        hidden: The characters that the model does not see.
    """
    lines = output.split("\n")
    begins = [0, *accumulate(len(line) + 1 for line in lines)]
    pairs = [
        at
        for at in range(len(lines) - 1)
        if lines[at].strip() != lines[at + 1].strip()
        and lines[at].strip()
        and lines[at + 1].strip()
        and _is_visible(begins[at], begins[at + 2] - 1, hidden)
    ]
    if pairs:
        at = pairs[detail % len(pairs)]
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
        yield "\n".join(lines)
