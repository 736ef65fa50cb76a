r"""The values that an answer commits to, and the verdicts that need no algebra.

`extract_boxed` returns the content of a `\boxed{...}`. `expressions` returns the values that a text
gives. `plain_verdict` compares plain numbers.
"""

import re
from fractions import Fraction

from retool_env.grading.notation import latex

MAX_CHARS = 2_000
"""The most characters of an expression. A longer expression is wrong, and is not read.

Only the content of the box counts, not the text around it. The longest gold answer of MATH has 159
characters.
"""

MAX_TEXT = 1_000_000
"""The most characters of a text, boxes included. A longer text is wrong, and is not read."""

_MAX_BOXES = 50
_MAX_DIGITS = 400  # a longer number is not compared as a fraction

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
    r"([+-]?) *(?:([0-9]+) */ *([0-9]+)"
    r"|\\[dtc]?frac *(?:\{ *([+-]?[0-9]+) *\}|([0-9])) *(?:\{ *([0-9]+) *\}|([0-9])))"
)


def extract_boxed(text: str) -> str | None:
    r"""Returns the content of the last complete `\boxed{...}`; `None` if the text has no box.

    `\fbox` is also a box, and the backslash may be doubled. A box without braces ends before the
    next space or `$`. Braces nest, and escaped braces do not count. An inner box is a part of the
    content of the outer box.

    Example:
        >>> extract_boxed(r"so \boxed{1}, or rather \boxed{\frac{1}{2}} and \boxed{")
        '\\frac{1}{2}'
        >>> extract_boxed(r"hence $\boxed 2$.")
        '2'
    """
    boxes = _boxes(text)
    return boxes[-1] if boxes else None


def boxed_spans(text: str) -> list[tuple[int, int, int]]:
    """Finds all complete outermost boxes of a text, in one pass, since a hostile text is long.

    Returns:
        A triple of positions for each box: the start of the box, the start of its content and the
        end of its content.
    """
    if "box" not in text:
        return []
    open_braces: list[tuple[int, int] | None] = []  # a box: (start, content start); a brace: None
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
    """The end of a box without braces: before a space or a dollar sign outside of braces."""
    depth = 0
    for token in _BARE_TOKEN.finditer(text, begin):
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        if depth < 0 or (depth == 0 and token[0] not in "{}"):
            return token.start()
    return len(text)


def strip(text: str) -> str:
    r"""Removes the surroundings of an expression.

    They are spaces, `$`, `\(`, Markdown, an equals sign at the start and a period at the end.
    """
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
    """Returns the expressions that a text commits to, as LaTeX, in order and without repetition.

    The expressions are the contents of the boxes, or the whole text if there is no box. Several
    expressions are one answer: the list of their values.

    Returns:
        The expressions; an empty list if the text is empty or exceeds a limit.
    """
    if len(text) > MAX_TEXT:
        return []
    # The fast path: most answers are plain digits.
    if text.isdigit() and text.isascii() and len(text) <= MAX_CHARS:
        return [text]
    contents = _boxes(text) or [text]
    if len(contents) > _MAX_BOXES or any(len(content) > MAX_CHARS for content in contents):
        return []
    plain = [_unify(_without_boxes(content)) for content in contents]
    if not all(plain) or any("\\boxed" in expression for expression in plain):
        return []
    return list(dict.fromkeys(plain))


def _without_boxes(text: str) -> str:
    """The content of a box; each inner box is replaced with its content."""
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
    """Returns the canonical digits of a plain integer; `None` for any other text.

    The result is text because `int` refuses more than 4,300 digits.
    """
    if not (match := _INTEGER.fullmatch(text)):
        return None
    digits = re.sub("[^0-9]", "", match[2]).lstrip("0") or "0"
    return "-" + digits if match[1] == "-" and digits != "0" else digits


def _number(text: str) -> tuple[Fraction, bool] | None:
    """The value of a plain number, and whether it is a decimal; `None` for any other text."""
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
    """Compares two expressions without algebra: equal texts, or two plain numbers.

    Integers and fractions are compared exactly. A decimal equals an integer if their values are
    equal. It equals any other number if the two are `close`.

    Returns:
        The verdict; `None` if the comparison needs algebra.
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
    """Whether two numbers agree after rounding to six places, and agree to one part in 100,000."""
    return round(value, 6) == round(wanted, 6) and abs(value - wanted) * 100_000 <= abs(wanted)
