"""The meaning of letters in an answer: units, names, numerals, or words that change its value."""

import re
from unicodedata import category

_TEXT = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}")
_EXPONENT = re.compile(r"\^\s*\{?\d\}?")
_NUMERAL = re.compile(
    r"(?<![\w}])(?:\d[\dA-Z]*|\\text\{[\dA-F]+\}|[A-F]+(?=_\{?1))_\s*(?:\{\s*(\d+)\s*\}|(\d)(?!\d))"
)
_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*(?=[(\[]|\\\{)")
_SPACE = r"(?:\s|\\q?quad(?![A-Za-z])|\\[,;:! ]|~|\\[lc]?dots(?![A-Za-z]))"
_THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d)")
_APART = re.compile(rf"\d{_SPACE}+\d")
_TEXT_BETWEEN = re.compile(r"[\d}]\s*\\(?:text|mbox)\{[^{}]*[A-Za-z][^{}]*\}\s*[-+({]*\d")
_HIDDEN = re.compile(
    r"\\(?:[vh]?phantom|[vh]box|l?dots|cdots)(?![A-Za-z])|\.\."
    r"|\d\s*(?:['\"]|\\?\$)+\s*\d|[\])]\s*'|\\pm\s*\\[pm]m"
)
_SUBSCRIPT = re.compile(r"(\d+)_\s*(?:\{([^{}]*)\}|(\w+))")
_WORD = re.compile(r"[A-Za-z][A-Za-z ,.'()-]*")
_UNIT_TEXT = re.compile(r"[A-Za-z\s./^{}0-9~()-]*")
_ROMAN = re.compile("[IVXLCDM]{2,}|V|I")

MORE_THAN_A_UNIT = frozenset(
    re.findall(
        "[A-Za-z]+",
        """
    or and not nor but xor vs versus oder ou maybe perhaps except unless if plus minus half
    halves both either neither about than to else otherwise instead also alternatively approx
    approximately roughly nearly almost around most least less more fewer above below over
    under only when where while never no none isn is was are were be false incorrect wrong
    invalid impossible rejected fails extraneous unknown answer undefined squared cubed
    doubled tripled factorial thirds quarters fifths tenths hundredths thousandths zero one
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
    hundred hundreds thousand thousands million millions billion billions trillion trillions
    dozen dozens bn pi
    """,
    )
)
"""Words for other values, multiples, negations and conditions.

A text with such a word changes the value next to it, so it must not be dropped as a unit.
"""

_SHORT_UNITS = frozenset(
    re.findall(
        "[A-Za-z]+",
        """
    m g s h l L J N W V K C F A cm mm km dm nm kg mg ml mL ft in yd mi oz lb hr pm am Hz kW kJ
    sq cu sec min deg of per a an the rs Rs gm cc p pt qt dL dl
    """,
    )
)


def is_unit(text: str) -> bool:
    r"""Whether a text after a value is a unit, such as `\text{ cm}^2`, and keeps the value."""
    inner = re.sub(r"\\(?:text|mbox|,|;|!| )", " ", text)
    words = re.findall("[A-Za-z]+", inner)
    return (
        bool(words)
        and words not in (["a"], ["p"])  # parts of "a day" and "p.m.", but variables alone
        and bool(_UNIT_TEXT.fullmatch(inner))
        and not re.search(r"\d", _EXPONENT.sub("", inner))
        and MORE_THAN_A_UNIT.isdisjoint(word.lower() for word in words)
        and all(
            (len(word) > 2 or word in _SHORT_UNITS) and not _ROMAN.fullmatch(word) for word in words
        )
    )


def bases_of(text: str) -> set[str]:
    r"""The bases of the numerals in a text: `7` for `43_7` and `43_{\text{7}}`."""
    plain = re.sub(r"_\s*\{\s*\\text\{(\w+)\}\s*\}", r"_{\1}", text)
    return {first or second for first, second in _NUMERAL.findall(plain)}


def without_member(text: str) -> str:
    r"""Removes a name and `\in` before a set: `x \in [1, 2]` becomes `[1, 2]`."""
    return _MEMBER.sub("", text)


def is_ambiguous(text: str) -> bool:
    r"""Whether the parser would read several values as one.

    For example, it reads `1 2` as 3 and `0 \text{ or } 5` as 0.
    """
    return bool(
        _APART.search(_THOUSANDS.sub("", text))
        or _TEXT_BETWEEN.search(text)
        or any(category(symbol)[0] == "S" for symbol in text if not symbol.isascii())
        or any(not is_numeral(digits, a or b) for digits, a, b in _SUBSCRIPT.findall(text))
    )


def is_numeral(digits: str, subscript: str) -> bool:
    """Whether the subscript of a number can be its base."""
    base = _TEXT.sub(r"\1", subscript).strip()
    return base.isdigit() and 2 <= int(base) <= 36 and all(int(a) < int(base) for a in digits)


def words_of(text: str) -> str | None:
    r"""The words of a text, in lower case: `a,c,f` for `\text{A, C, F}`.

    Returns:
        The words; `None` if the text contains anything but words.
    """
    plain = re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(" .")
    return re.sub(r"\s*([,-])\s*", r"\1", plain).casefold() if _WORD.fullmatch(plain) else None


def is_words(text: str) -> bool:
    """Whether a text consists of words alone."""
    return bool(_WORD.fullmatch(_TEXT.sub(r"\1", text).strip()))


def hides_a_part(text: str) -> bool:
    """Whether a part of a text is hidden from the parser or from a reader."""
    return bool(_HIDDEN.search(text))
