r"""Values with names: `x = 1, y = 2` is the point `(1, 2)`, and `x = 2 or y = 3` is not `2, 3`.

| text | meaning |
|---|---|
| `x = 1, y = 2` | a point; the names order its values, so `y = 2, x = 1` is the same |
| `(b, a) = (4, 3)` | a point, in the order that the text states |
| `x = 1, y = 2 \text{ or } x = 3, y = 4` | the points `(1, 2), (3, 4)` |
| `x = 2 \text{ or } x = 3` | several values of one unknown, which the parser reads |
| `x = 2 \text{ or } y = 3` | alternatives with different names; they are not a list of values |
"""

import re
from collections.abc import Sequence

from .readings import ALTERNATIVES, NAME, POINT, SIZES

_JOINED = re.compile(
    r"\s*(?:[,;]\s*)?(?:\\q?quad\s*)*(?:\\text\{\s*and\s*\}|\band\b)\s*(?:\\q?quad\s*)*|\s*[,;]\s*"
)
_SEGMENT = r"\\?[A-Z]{2,3}"
_VALUE = re.compile(rf"\s*({NAME}|{_SEGMENT})\s*=\s*([^=<>]+?)\s*")
_TUPLE = re.compile(rf"\s*\(\s*({NAME}(?:\s*,\s*{NAME})+)\s*\)\s*={POINT.pattern}", re.DOTALL)
_FAMILIES = [
    *map(list, ("abcdef", "ijkl", "mn", "pqrst", "uvwxyz")),
    *map(list, ("ABCDEF", "IJKL", "MN", "PQRST", "UVWXYZ")),
    ["alpha", "beta", "gamma"],
]
"""Letters whose order everybody knows. No other names order a point: `(r, h)` is as good as
`(h, r)`."""


Point = dict[str, str]
"""The value of each name, in the order in which a tuple without names gives the values."""


def points(text: str) -> list[Point]:
    """Returns the points that a text gives, one for each alternative.

    Args:
        text: A text in LaTeX.

    Returns:
        The points, which have the same names in the same order; an empty list for any other text.
    """
    found = [_point(part) for part in ALTERNATIVES.split(SIZES.sub("", text))]
    whole = [point for point in found if point is not None]
    if len(whole) < len(found):
        return []
    ordered = [renamed(point, list(whole[0])) for point in whole]
    return [] if None in ordered else [point for point in ordered if point is not None]


def renamed(point: Point, names: list[str]) -> Point | None:
    """A point in the order of these names; `None` if its names are others.

    A capital letter matches the small one, unless the point has both.

    Args:
        point: A point.
        names: The names of another point.
    """
    if point.keys() != set(names):
        point = {name.lower(): value for name, value in point.items()}
        if point.keys() != {name.lower() for name in names}:
            return None
        return {name: point[name.lower()] for name in names} if len(point) == len(names) else None
    return {name: point[name] for name in names}


def plain(some: list[Point]) -> str:
    """The points without their names: `(1, 2), (3, 4)`."""
    return ", ".join(f"({', '.join(point.values())})" for point in some)


def are_roots(point: Point) -> bool:
    """Whether the names are one letter with indices: the values of one unknown, in any order."""
    return len({name.partition("_")[0] for name in point}) == 1


def has_mixed_names(text: str) -> bool:
    """Whether the alternatives of a text have different names, as `x = 2 or y = 3`.

    The roots `x_1 = 2 or x_2 = 3` are values of one unknown.

    Args:
        text: A text in LaTeX.
    """
    parts = ALTERNATIVES.split(SIZES.sub("", text))
    if len(parts) < 2:
        return False
    named = [[_VALUE.fullmatch(value) for value in _JOINED.split(part)] for part in parts]
    letters = {
        frozenset(match[1].partition("_")[0] for match in matches if match) for matches in named
    }
    return len(letters - {frozenset()}) > 1


def _point(text: str) -> Point | None:
    if match := _TUPLE.fullmatch(text):
        names, listed = _split(match[1]), _split(match[2])
        if len(names) == len(listed) == len(set(names)):
            return dict(zip(names, listed, strict=True))
        return None
    matches = [_VALUE.fullmatch(value) for value in _JOINED.split(text)]
    if len(matches) < 2 or not all(matches):
        return None
    values = {match[1]: match[2] for match in matches if match}
    if len(values) < len(matches):
        return None
    return {name: values[name] for name in _in_order(list(values))}


def _split(text: str) -> list[str]:
    """The parts of a tuple's content, at the commas outside of brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _in_order(names: Sequence[str]) -> list[str]:
    """The names in the order of their letters or their indices, or else as they are written."""
    heads = [name.lstrip("\\").partition("_") for name in names]
    letters = {letter for letter, _, _ in heads}
    indices = [index.strip("{}") for _, _, index in heads]
    if len(letters) == 1 and all(index.isdecimal() for index in indices):
        return sorted(names, key=lambda name: int(name.partition("_")[2].strip("{}")))
    if not any(indices):
        family = next((family for family in _FAMILIES if letters <= set(family)), None)
        if family is not None:
            return sorted(names, key=lambda name: family.index(name.lstrip("\\")))
    return list(names)
