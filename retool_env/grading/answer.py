r"""What an answer commits to, and the verdicts that need no algebra.

Here are `extract_boxed`, which finds the content of a `\boxed{...}`; `expressions`, the one or more values
that a text gives; and `plain_verdict`, which compares plain numbers.
"""

import re
from fractions import Fraction

from retool_env.grading.notation import latex

MAX_CHARS = 2_000
"""A longer expression is wrong unseen: the longest gold answer of MATH has 159 characters. It is what stands in the box
that counts, not the text around it."""

MAX_TEXT = 1_000_000
"""A text of more characters is wrong unseen, whatever it holds."""

_MAX_BOXES = 50
_MAX_DIGITS = 400  # of a number that is compared as a fraction

_BOX = r"\\+(?:boxed|fbox)(?![A-Za-z])"
_BOX_TOKEN = re.compile(
    rf"(?P<box>{_BOX}\s*\{{)|{_BOX}[ \t]*(?P<bare>[^\s${{}}\\]|\\(?=[A-Za-z]))|\\.|[{{}}]",
    re.DOTALL,
)
_BARE_TOKEN = re.compile(r"[\s$]|\\[)\]]|[{}]")

_DELIMITERS = r"\\?\$|\\\(|\\\)|\\\[|\\\]|\\displaystyle(?![A-Za-z])|\\[,;:! ]|~"
_OPENING = re.compile(rf"(?:[\s=]|{_DELIMITERS}|\\approx(?![A-Za-z])|≈)+")
_CLOSING = re.compile(rf"(?:[\s,;:]|(?<!\.)\.|{_DELIMITERS}|(?<!\\)\\(?=\Z))+\Z")
_MARKDOWN = re.compile(r"(\*\*|__|`+|\*|_)(?=\S)(.+)(?<=\S)\1", re.DOTALL)
_GROUP = r"(?:,|\\,|\\!|,\\!|\{,\}| |~|\\ )"
_INTEGER = re.compile(rf"([+-]?) *([0-9]+|[1-9][0-9]{{0,2}}(?:{_GROUP}[0-9]{{3}})+)")
_DECIMAL = re.compile(r"([+-]?) *([0-9]*\.[0-9]+|[0-9]+\.)")
_FRACTION = re.compile(
    r"([+-]?) *(?:([0-9]+) */ *([0-9]+)|\\[dtc]?frac *(?:\{ *([+-]?[0-9]+) *\}|([0-9])) *(?:\{ *([0-9]+) *\}|([0-9])))"
)


def extract_boxed(text: str) -> str | None:
    r"""Return the content of the last complete `\boxed{...}`, or `None` where there is none.

    `\fbox` is a box too, a backslash may be doubled, and a box without braces holds what follows up to a space or a
    `$`. Braces nest, escaped braces don't count, and a box inside another belongs to the outer one.

    Example:
        >>> extract_boxed(r"so \boxed{1}, or rather \boxed{\frac{1}{2}} and \boxed{")
        '\\frac{1}{2}'
        >>> extract_boxed(r"hence $\boxed 2$.")
        '2'
    """
    boxes = _boxes(text)
    return boxes[-1] if boxes else None


def boxed_spans(text: str) -> list[tuple[int, int, int]]:
    """Find all complete outermost boxes: where each starts, and where its content begins and ends.

    One pass, since hostile text is long.
    """
    if "box" not in text:
        return []
    open_braces: list[tuple[int, int] | None] = []  # (start, content start) of a box, None: a brace
    spans: list[tuple[int, int, int]] = []
    position = 0
    while token := _BOX_TOKEN.search(text, position):
        position = token.end()
        if token["box"]:
            open_braces.append((token.start(), token.end()))
        elif token["bare"]:
            begin = token.start("bare")
            position = _end_of_bare(text, begin)
            spans.append((token.start(), begin, position))
        elif token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}" and open_braces and (box := open_braces.pop()):
            while spans and spans[-1][0] > box[0]:
                spans.pop()
            spans.append((*box, token.start()))
    return spans


def _boxes(text: str) -> list[str]:
    return [text[begin:end] for _, begin, end in boxed_spans(text)]


def _end_of_bare(text: str, begin: int) -> int:
    """Where a box without braces ends: before a space or a dollar sign outside of braces."""
    depth, position = 0, begin
    while token := _BARE_TOKEN.search(text, position):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        if depth < 0 or (depth == 0 and token[0] not in "{}"):
            return token.start()
        position = token.end()
    return len(text)


def strip(text: str) -> str:
    r"""Remove what surrounds an expression: spaces, `$`, `\(`, Markdown, a first `=`, a closing period."""
    before = None
    while before != text:
        before = text
        if opening := _OPENING.match(text):
            text = text[opening.end() :]
        text = _CLOSING.sub("", text)
        if (marked := _MARKDOWN.fullmatch(text)) and marked[1] not in marked[2]:
            text = marked[2]
    return text


def expressions(text: str) -> list[str]:
    """The expressions that a text commits to, as LaTeX, each once and in order.

    They are the contents of its boxes; without a box, it is the whole text. None at all where the text is empty or too
    long. Several are one answer: the list of these values.
    """
    if len(text) > MAX_TEXT:
        return []
    if (
        text.isdigit() and text.isascii() and len(text) <= MAX_CHARS
    ):  # most are: no need to look further
        return [text]
    found = _boxes(text) or [text]
    if len(found) > _MAX_BOXES or any(len(content) > MAX_CHARS for content in found):
        return []
    found = [_without_boxes(content) for content in found]
    plain = [_unify(content) for content in found]
    if not all(plain) or any("\\boxed" in each for each in plain):
        return []
    return list(dict.fromkeys(plain))


def _without_boxes(text: str) -> str:
    """What a box holds, with the content of each box inside it in that box's place."""
    while spans := boxed_spans(text):
        for start, begin, end in reversed(spans):
            text = f"{text[:start]} {text[begin:end]} {text[end + (text[end : end + 1] == '}') :]}"
    return text


def _unify(text: str) -> str:
    text = strip(text)
    if (digits := integer(text)) is not None:
        return digits
    return strip(latex(text))[:MAX_CHARS]


def integer(text: str) -> str | None:
    """The canonical digits of a plain integer (`int` itself refuses more than 4,300 digits)."""
    if not (match := _INTEGER.fullmatch(text)):
        return None
    digits = re.sub("[^0-9]", "", match[2]).lstrip("0") or "0"
    return "-" + digits if match[1] == "-" and digits != "0" else digits


def _number(text: str) -> tuple[Fraction, bool] | None:
    """The value of a plain number, and whether it is a decimal."""
    if len(text) > _MAX_DIGITS:
        return None
    if digits := integer(text):
        return Fraction(int(digits)), False
    if match := _DECIMAL.fullmatch(text):
        value, decimal = Fraction(match[2]), True
    elif match := _FRACTION.fullmatch(text):
        above, below = (part for part in match.groups()[1:] if part)
        if not int(below):
            return None
        value, decimal = Fraction(int(above), int(below)), False
    else:
        return None
    return (-value if match[1] == "-" else value), decimal


def plain_verdict(answer: str, gold: str) -> bool | None:
    """Compare two expressions where this takes no algebra: the same text, or two plain numbers.

    Integers and fractions are compared exactly. A decimal equals an integer if it has its value, and any other number if
    both agree when rounded to six places, and to one part in 100,000.

    Returns:
        The verdict; `None` where it takes more.
    """
    if answer == gold:
        return True
    digits = integer(answer), integer(gold)
    if None not in digits:
        return digits[0] == digits[1]
    first, second = _number(answer), _number(gold)
    if first is None or second is None:
        return None
    (value, decimal), (wanted, wanted_decimal) = first, second
    if value == wanted:
        return True
    if not (decimal or wanted_decimal) or 1 in (value.denominator, wanted.denominator):
        return False
    return close(value, wanted)


def close(value: Fraction, wanted: Fraction) -> bool:
    """Whether two numbers agree when rounded to six places, and to one part in 100,000."""
    return round(value, 6) == round(wanted, 6) and abs(value - wanted) * 100_000 <= abs(wanted)
