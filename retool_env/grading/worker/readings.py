r"""A second reading of texts that the parser does not read as the value that a person sees.

| text | second reading |
|---|---|
| `x < 1 \text{ or } x > 2` | `(-\infty, 1) \cup (2, \infty)` |
| `\{x \mid 1 < x \le 2\}` | `(1, 2]` |
| `(x,y) \in \{(1,2), (3,4)\}` | `\{(1,2), (3,4)\}` |
| `(\pm 1, 2)` | `(1, 2), (-1, 2)` |
| `\{(1,2)\}` | `(1,2)` |
| `\langle 1, 2 \rangle` | `(1, 2)` |
| `C_5^2`, `C(5, 2)`, `{}_5 C_2` | `\binom{5}{2}` |

The rules rewrite text only, and only whole texts of these forms. The grader compares the second
reading only if the first one is not equal, so a second reading never makes a right answer wrong.
"""

import re

SIZES = re.compile(r"\\(?:left|right)(?![A-Za-z])")
ALTERNATIVES = re.compile(
    r"\s*(?:,\s*)?(?:\\q?quad\s*)*(?:\\text\{\s*or\s*\}|\bor\b)\s*(?:\\q?quad\s*)*"
)
NAME = r"(?:[A-Za-z](?:_\w|_\{\w+\})?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi|omega)(?![A-Za-z]))"
_SIGN = r"(\\[lg](?:eqslant|eq|e|t)(?![A-Za-z])|<=|>=|<|>)"
_BOUND = r"([^<>=,;|:]+?)"
_BETWEEN = re.compile(rf"\s*{_BOUND}\s*{_SIGN}\s*({NAME})\s*{_SIGN}\s*{_BOUND}\s*")
_NAME_FIRST = re.compile(rf"\s*({NAME})\s*{_SIGN}\s*{_BOUND}\s*")
_NAME_LAST = re.compile(rf"\s*{_BOUND}\s*{_SIGN}\s*({NAME})\s*")
_RELATION = re.compile(r"\\(?:leq?|geq?|lt|gt|neq?|in|cup|cap)(?:slant)?(?![A-Za-z])")
_BUILDER = re.compile(
    rf"\\\{{\s*({NAME})\s*(?:\\in\s*\\mathbb\{{R\}}|\\in\s*\\R)?\s*(?:\\mid|\\vert|\||:)\s*"
    r"(.+)\\\}",
    re.DOTALL,
)
_TUPLE = r"\([^(){}=]*\)"
POINT = re.compile(r"\s*\(((?:[^()]|\([^()]*\))*)\)\s*")
_NAMES = rf"\(\s*{NAME}(?:\s*,\s*{NAME})+\s*\)"
_MEMBER = re.compile(rf"\s*(?:{_NAMES}|{NAME})\s*\\in\s*\\?\{{(.+?)\\?\}}\s*", re.DOTALL)
_ONE_POINT = re.compile(rf"\s*\\\{{\s*({_TUPLE})\s*\\\}}\s*")
_LETTER_C = r"(?:\\(?:mathrm|text)\s*\{\s*C\s*\}|(?<![A-Za-z\\])C)"
_COUNT = r"(\w|\{[\w\s+-]+\})"
_BINOMIAL = re.compile(
    rf"(?:\{{\s*\}}\s*)?[_^]\s*{_COUNT}\s*{_LETTER_C}\s*_\s*{_COUNT}"  # {}_n C_k, {}^n C_k
    rf"|{_LETTER_C}\s*_\s*{_COUNT}\s*\^\s*{_COUNT}"  # C_n^k
    rf"|{_LETTER_C}\s*\^\s*{_COUNT}\s*_\s*{_COUNT}"  # C^k_n
    rf"|{_LETTER_C}\s*\(\s*([\w\s+-]+),([\w\s+-]+)\)"  # C(n, k)
)
_ANGLED = re.compile(r"\s*\\langle(?![A-Za-z])([^<>]*,[^<>]*?)\\rangle\s*")
_SIGNS = re.compile(r"\\(?:pm|mp)(?![A-Za-z])")


def second_reading(text: str) -> str | None:
    """Returns the second reading of a text; `None` if the text has no such form.

    Args:
        text: A text in LaTeX.
    """
    plain = SIZES.sub("", text)
    return (
        _binomials(plain)
        or _vector(plain)
        or _union(plain)
        or _set_builder(plain)
        or _members(plain)
        or _both_points(plain)
        or _one_point(plain)
    )


def _binomials(text: str) -> str | None:
    """The text with each symbol for a number of combinations as a binomial coefficient."""
    read = _BINOMIAL.sub(_binomial, text)
    return read if read != text else None


def _binomial(match: re.Match[str]) -> str:
    left, below, lower, upper, raised, lowered, first, second = match.groups()
    pair = (left, below) if left else (lower, upper) if lower else (lowered, raised)
    whole, part = (value.strip("{ }") for value in (pair if pair[0] else (first, second)))
    if not left and not first and whole.isdecimal() and part.isdecimal():
        whole, part = sorted((whole, part), key=int, reverse=True)  # C_n^k and C^n_k are in use
    factor = match.string[: match.start()].rstrip()[-1:].isdigit()
    return rf"{r'\cdot ' * factor}\binom{{{whole}}}{{{part}}}"


def _vector(text: str) -> str | None:
    match = _ANGLED.fullmatch(text)
    return f"({match[1]})" if match else None


def _union(text: str) -> str | None:
    """The union of the intervals that inequalities of one name describe."""
    parts = ALTERNATIVES.split(text)
    read = [_interval(part) for part in parts]
    intervals = [each for each in read if each is not None]
    if len(parts) < 2 or len(intervals) < len(parts) or len({name for name, _ in intervals}) > 1:
        return None
    return r" \cup ".join(interval for _, interval in intervals)


def _interval(text: str) -> tuple[str, str] | None:
    """The name and the interval of an inequality: `x` and `(1, 2]` for `1 < x <= 2`."""
    if match := _BETWEEN.fullmatch(text):
        low, first, name, second, high = match.groups()
        if _is_less(first) != _is_less(second):
            return None
        if not _is_less(first):
            low, first, second, high = high, second, first, low
    elif match := _NAME_FIRST.fullmatch(text):
        name, sign, bound = match.groups()
        low, first, second, high = _half_line(bound, sign, below=_is_less(sign))
    elif match := _NAME_LAST.fullmatch(text):
        bound, sign, name = match.groups()
        low, first, second, high = _half_line(bound, sign, below=not _is_less(sign))
    else:
        return None
    if _RELATION.search(low + high):
        return None
    return name, f"{'(['[_is_closed(first)]}{low}, {high}{')]'[_is_closed(second)]}"


def _half_line(bound: str, sign: str, *, below: bool) -> tuple[str, str, str, str]:
    return (r"-\infty", "<", sign, bound) if below else (bound, sign, "<", r"\infty")


def _is_less(sign: str) -> bool:
    return sign[0] == "<" or sign.startswith("\\l")


def _is_closed(sign: str) -> bool:
    return sign.endswith("=") or "e" in sign


def _set_builder(text: str) -> str | None:
    match = _BUILDER.fullmatch(text.strip())
    if match is None:
        return None
    if union := _union(match[2]):
        return union
    interval = _interval(match[2])
    return interval[1] if interval and interval[0] == match[1] else None


def _members(text: str) -> str | None:
    match = _MEMBER.fullmatch(text)
    return rf"\{{{match[1]}\}}" if match else None


def _both_points(text: str) -> str | None:
    """Two points in place of one with a double sign; two such signs would be ambiguous."""
    if not POINT.fullmatch(text) or "," not in text or len(_SIGNS.findall(text)) != 1:
        return None
    return f"{_SIGNS.sub('', text)}, {_SIGNS.sub('-', text)}"


def _one_point(text: str) -> str | None:
    match = _ONE_POINT.fullmatch(text)
    return match[1] if match and "," in match[1] else None
