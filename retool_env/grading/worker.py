"""The process behind :mod:`retool_env.grading`: compares expressions with math-verify, one question a line.

Run as a script, so that it imports nothing else of the package. Questions arrive on standard input as JSON lines, see
`grader.Question`; the reply is ``1``, ``0``, or ``late``. The process ends itself when a comparison that cannot be
interrupted overruns its time, when memory runs out, and when its input closes.

An expression is parsed as a whole by latex2sympy, math-verify's own parser, and not searched for something that looks
right, as `math_verify.parse` does with prose. What that parser lets pass and a grader must not is refused here: chains
of equations of which only the last member counts, and text that is dropped although it holds another number. Numbers
are compared here as well: math-verify compares fifteen decimals, at which all tiny numbers are equal.
"""

import functools
import json
import logging
import os
import re
import resource
import signal
import sys
from fractions import Fraction
from unicodedata import category

_TEXT = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}")
_EXPONENT = re.compile(r"\^\s*\{?\d\}?")
_BARE_UNIT = re.compile(r"\s*(?:[A-Za-z]{3,}|cm|mm|km|kg|ft|lb|hr)(?:\s+[A-Za-z]+)*\s*")
_AREA = re.compile(
    r"([\d}])\s*(?:cm|mm|dm|km|ft|in|yd|inches|feet|meters|units)\s*\^\s*(?:[23]|\{[23]\})$"
)
_APPROXIMATION = re.compile(r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_NUMERAL = re.compile(
    r"(?<![\w}])(?:\d[\dA-Z]*|\\text\{[\dA-F]+\}|[A-F]+(?=_\{?1))_\s*(?:\{\s*(\d+)\s*\}|(\d)(?!\d))"
)
_DECIMAL = re.compile(r"[+-]?\s*(?:\d*\.)?\d+")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_MEMBER = re.compile(r"^\s*[A-Za-z]\s*\\in(?![A-Za-z])\s*(?=[(\[]|\\\{)")
_IN = re.compile(r"\\in(?![A-Za-z])")
_BARE_LIST = re.compile(r"[^()\[\],]+(?:,[^()\[\],]+)+")
_LISTED = re.compile(r"\s*\[[^\[\]]*\]\s*")
_SPACE = r"(?:\s|\\q?quad(?![A-Za-z])|\\[,;:! ]|~|\\[lc]?dots(?![A-Za-z]))"
_THOUSANDS = re.compile(rf"(?<![\d.])\d{{1,3}}(?:{_SPACE}\d{{3}})+(?!\d)")
_APART = re.compile(rf"\d{_SPACE}+\d")
_TEXT_BETWEEN = re.compile(r"[\d}]\s*\\(?:text|mbox)\{[^{}]*[A-Za-z][^{}]*\}\s*[-+({]*\d")
_WORDS = re.compile(
    r"\\[A-Za-z]+|(?:sin|cos|tan|cot|sec|csc|log|exp|max|min|gcd|lcm|mod|det|arg|lim|matrix|pmatrix|bmatrix|vmatrix|array|cases|align)"
)
_PLAIN_NUMBER = re.compile(r"\{*\d+\}*(?:_\{?\w+\}?)?(?:\^\{?\\circ\}?)?")
_FACTOR = re.compile(r"\{*\d+\}*|\(\d+\)")
_PLAIN_FRACTION = re.compile(r"\\[dtc]?frac\{(\d+)\}\{(\d+)\}")
_HIDDEN = re.compile(
    r"\\(?:[vh]?phantom|[vh]box|l?dots|cdots)(?![A-Za-z])|\.\.|\d\s*(?:['\"]|\\?\$)+\s*\d|[\])]\s*'|\\pm\s*\\[pm]m"
)
_SUBSCRIPT = re.compile(r"(\d+)_\s*(?:\{([^{}]*)\}|(\w+))")
_LETTER_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_WORD = re.compile(r"[A-Za-z][A-Za-z ,.'()-]*")
_MORE_THAN_A_UNIT = frozenset(
    # other values, multiples, negations, conditions: what is left out must not change the value
    [
        "or",
        "and",
        "not",
        "nor",
        "but",
        "xor",
        "vs",
        "versus",
        "oder",
        "ou",
        "maybe",
        "perhaps",
        "except",
        "unless",
        "if",
        "plus",
        "minus",
        "half",
        "halves",
        "both",
        "either",
        "neither",
        "about",
        "than",
        "to",
        "else",
        "otherwise",
        "instead",
        "also",
        "alternatively",
        "approx",
        "approximately",
        "roughly",
        "nearly",
        "almost",
        "around",
        "most",
        "least",
        "less",
        "more",
        "fewer",
        "above",
        "below",
        "over",
        "under",
        "only",
        "when",
        "where",
        "while",
        "never",
        "no",
        "none",
        "isn",
        "is",
        "was",
        "are",
        "were",
        "be",
        "false",
        "incorrect",
        "wrong",
        "invalid",
        "impossible",
        "rejected",
        "fails",
        "extraneous",
        "unknown",
        "answer",
        "undefined",
        "squared",
        "cubed",
        "doubled",
        "tripled",
        "factorial",
        "thirds",
        "quarters",
        "fifths",
        "tenths",
        "hundredths",
        "thousandths",
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
        "thirty",
        "forty",
        "fifty",
        "sixty",
        "seventy",
        "eighty",
        "ninety",
        "hundred",
        "hundreds",
        "thousand",
        "thousands",
        "million",
        "millions",
        "billion",
        "billions",
        "trillion",
        "trillions",
        "dozen",
        "dozens",
        "bn",
        "pi",
    ]
)
_SHORT_UNITS = frozenset(
    [
        "m",
        "g",
        "s",
        "h",
        "l",
        "L",
        "J",
        "N",
        "W",
        "V",
        "K",
        "C",
        "F",
        "A",
        "cm",
        "mm",
        "km",
        "dm",
        "nm",
        "kg",
        "mg",
        "ml",
        "mL",
        "ft",
        "in",
        "yd",
        "mi",
        "oz",
        "lb",
        "hr",
        "pm",
        "am",
        "Hz",
        "kW",
        "kJ",
        "sq",
        "cu",
        "sec",
        "min",
        "deg",
        "of",
        "per",
        "a",
        "an",
        "the",
        "rs",
        "Rs",
        "gm",
        "cc",
        "p",
        "a",
        "pt",
        "qt",
        "ml",
        "dL",
        "dl",
    ]
)
_UNIT_TEXT = re.compile(r"[A-Za-z\s./^{}0-9~()-]*")
_ROMAN = re.compile("[IVXLCDM]{2,}|V|I")
_DIGITS = 400  # to which exact values are told apart where no algebra decides
_MARGIN_SECONDS = 0.1


class _Late(BaseException):
    """The time for a comparison is over; no `except Exception` of a library stops it."""


def normalise(text: str) -> str | None:
    """Bring LaTeX into the form the parser takes, or return `None` if it drops another value."""
    from latex2sympy2_extended import NormalizationConfig, normalize_latex

    basic = NormalizationConfig(basic_latex=True, boxed="none")
    units = NormalizationConfig(basic_latex=False, units=True, boxed="none")
    rest = NormalizationConfig(basic_latex=False, malformed_operators=True, nits=True, boxed="none")
    text = _AREA.sub(r"\1", normalize_latex(text, basic))
    without_unit = normalize_latex(text, units)
    if without_unit != text:
        dropped = text[len(without_unit) :] if text.startswith(without_unit) else text
        if "\\text" in dropped or "\\mbox" in dropped:
            if not is_unit(dropped):
                return None  # "42 \text{ or maybe } {43}"
            text = without_unit.rstrip(" ~")
        elif _BARE_UNIT.fullmatch(dropped):  # but not the variable of "3t"
            text = without_unit
    return normalize_latex(text, rest)


def is_unit(text: str) -> bool:
    r"""Whether a text behind a value, such as ``\text{ cm}^2``, leaves the value as it is."""
    inner = re.sub(r"\\(?:text|mbox|,|;|!| )", " ", text)
    words = re.findall("[A-Za-z]+", inner)
    return (
        bool(words)
        and words not in (["a"], ["p"])  # of "a day" and "p.m.", but variables alone
        and bool(_UNIT_TEXT.fullmatch(inner))
        and not re.search(r"\d", _EXPONENT.sub("", inner))
        and _MORE_THAN_A_UNIT.isdisjoint(word.lower() for word in words)
        and all(
            (len(word) > 2 or word in _SHORT_UNITS) and not _ROMAN.fullmatch(word) for word in words
        )
    )


@functools.lru_cache(1024)
def parse(text: str):
    """Parse normalised LaTeX to a sympy object; `None` if it isn't one expression."""
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import should_treat_as_complex
    from sympy import I

    is_real = not should_treat_as_complex(_LETTER_I.sub("", text))
    if "=" in text and _LETTER_I.search(text):  # no real x is 3 + 4i
        is_real = None
    try:
        expression = latex2sympy(text, is_real=is_real, normalization_config=None)
        letters = {symbol.name: symbol for symbol in expression.free_symbols}
        if "i" in letters and not letters.keys() & {"j", "k", "n"}:  # beside these it is an index
            expression = expression.subs(letters["i"], I)
        return expression
    except MemoryError:
        raise
    except Exception:  # whatever the parser meets in hostile text
        return None


def refuse_numbers_side_by_side(convert):
    """Wrap the parser's reading of factors: ``5{6}`` is 11 to it, since a number before a fraction is a mixed one."""

    def convert_postfix_list(self, factors, i=0):
        if i + 1 < len(factors):
            one, two = factors[i].getText(), factors[i + 1].getText()
            fraction = _PLAIN_FRACTION.fullmatch(two)
            if _PLAIN_NUMBER.fullmatch(one) and (
                _PLAIN_NUMBER.fullmatch(two) or (fraction and int(fraction[1]) >= int(fraction[2]))
            ):
                raise ValueError("numbers side by side")
            if _FACTOR.fullmatch(one) and _FACTOR.fullmatch(two):  # (5)(6)
                rest = convert_postfix_list(self, factors, i + 1)
                return self.mul_flat(self.convert_postfix(factors[i]), rest)
        return convert(self, factors, i)

    return convert_postfix_list


def is_name(expression, text: str) -> bool:
    """``x``, ``AB``, ``f(x)``, ``(x, y)``: what may stand before an equals sign without being a value.

    Args:
        expression: What was parsed.
        text: What it was parsed from; the parser gives all letters in lower case.
    """
    from sympy import Mul, Symbol, Tuple
    from sympy.core.function import AppliedUndef

    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    if not _MORE_THAN_A_UNIT.isdisjoint(re.findall("[a-z]+", letters.lower())):
        return False
    if isinstance(expression, Tuple):
        return all(isinstance(part, Symbol) for part in expression.args)
    parts = Mul.make_args(expression.doit())
    if not all(isinstance(part, Symbol | AppliedUndef) for part in parts):
        return False
    if len(parts) > 1 and re.search("[a-z]", letters):  # a product, and no segment or angle
        return False
    names = (symbol.name.partition("_")[0] for symbol in expression.free_symbols)
    return not any(re.search(r"\d", name) for name in names)  # \text{42} is a symbol too


def chain(expression) -> list | None:
    """The members ``[a, b, c]`` of ``a = b = c``; `None` for anything else."""
    from latex2sympy2_extended.logic import And
    from sympy import Eq

    equations = expression._unsorted_args if isinstance(expression, And) else [expression]
    if not equations or not all(isinstance(equation, Eq) for equation in equations):
        return None
    return [equations[0].lhs, *(equation.rhs for equation in equations)]


# --- numbers --------------------------------------------------------------------------------------


def numbers_equal(gold, answer, float_rounding: int = 6, numeric_precision: int = 15) -> bool:
    """Compare two numbers or two matrices of them; takes the place of math-verify's function of these arguments.

    Exact values are compared exactly, and a decimal within an expression is exact. A decimal alone equals an integer if
    it has its value, and any other number if both agree rounded to six places, and to one part in 100,000.
    """
    from sympy import Float, Integer, MatrixBase, MatrixExpr

    if isinstance(gold, MatrixBase | MatrixExpr) and isinstance(answer, MatrixBase | MatrixExpr):
        gold, answer = gold.doit(), answer.doit()
        return (
            isinstance(gold, MatrixBase)
            and isinstance(answer, MatrixBase)
            and gold.shape == answer.shape
            and all(numbers_equal(a, b) for a, b in zip(gold.flat(), answer.flat(), strict=True))
        )
    shares = percentage(gold), percentage(answer)
    if any(share is not None for share in shares):  # n% is both n and a hundredth of it
        values = [
            [expression.doit()] if share is None else [share, expression.doit()]
            for share, expression in zip(shares, (gold, answer), strict=True)
        ]
        return any(numbers_equal(a, b) for a in values[0] for b in values[1])
    decimal = isinstance(gold, Float) or isinstance(answer, Float)
    gold, answer = exact(gold).doit(), exact(answer).doit()
    if gold == answer:
        return True
    if not (gold.is_number and answer.is_number):
        return (gold - answer).expand() == 0
    if decimal and not (isinstance(gold, Integer) or isinstance(answer, Integer)):
        return close(answer, gold)
    return exactly_equal(gold, answer)


def symbolically_equal(gold, answer) -> bool:
    """Whether two expressions or matrices with unknowns are equal; takes the place of math-verify's function."""
    from sympy import Expr, MatrixBase, simplify

    if isinstance(gold, Expr) and isinstance(answer, Expr) and gold.is_number and answer.is_number:
        return False  # `numbers_equal` knows
    try:
        difference = simplify(exact(gold) - exact(answer))
    except (TypeError, ValueError, AttributeError):  # different kinds of objects
        return False
    if isinstance(difference, MatrixBase):
        return bool(difference.is_zero_matrix)
    return bool(difference.is_zero)


def percentage(expression):
    """The ``n`` of ``n%``, or `None`."""
    from math_verify.grader import get_pct_val

    return get_pct_val(expression)


def exact(expression):
    """`expression` with fractions in place of decimals."""
    from sympy import Float, Rational

    decimals = expression.atoms(Float)
    return expression.xreplace({each: Rational(str(each)) for each in decimals if each.is_finite})


def close(value, wanted) -> bool:
    """Whether two numbers agree when rounded to six places, and to one part in 100,000: `answer.close`."""
    pair = [_fraction(each) for each in (value, wanted)]
    if None in pair:
        return False
    value, wanted = pair
    return round(value, 6) == round(wanted, 6) and abs(value - wanted) * 100_000 <= abs(wanted)


def _fraction(number) -> Fraction | None:
    from sympy import Rational

    if not isinstance(number, Rational):
        if not number.is_real:
            return None
        number = Rational(str(number.evalf(40)))
    return Fraction(int(number.p), int(number.q)) if number.is_finite else None


def exactly_equal(a, b) -> bool:
    """Whether two exact numbers are equal, to 400 digits where no algebra decides."""
    from sympy import Rational

    if isinstance(a, Rational) and isinstance(b, Rational):
        return False  # they are not identical
    difference = a - b
    if difference == 0:
        return True
    if difference.is_infinite or difference.has(*_not_numbers()):
        return False
    number = difference.evalf(15, maxn=_DIGITS)
    parts = [part for part in number.as_real_imag() if part != 0]
    # A precision of one: all digits cancel.
    return all(getattr(part, "_prec", 53) == 1 for part in parts)


@functools.cache
def _not_numbers() -> tuple:
    from sympy import nan, oo, zoo

    return nan, zoo, oo, -oo


def verify(gold, answer) -> bool:
    """math-verify's verdict, with numbers compared as here."""
    import math_verify

    try:
        # Its time limits use this process's one alarm, which is already set.
        return math_verify.verify(
            gold,
            answer,
            timeout_seconds=None,
            raise_on_error=True,
            allow_set_relation_comp=True,  # "1 < x < 2" is the interval
        )
    except MemoryError:
        raise
    except Exception:
        return False


# --- answers --------------------------------------------------------------------------------------


def bases_of(text: str) -> set[str]:
    r"""The bases of the numerals in a text, ``7`` in ``43_7`` and ``43_{\text{7}}``."""
    plain = re.sub(r"_\s*\{\s*\\text\{(\w+)\}\s*\}", r"_{\1}", text)
    return {first or second for first, second in _NUMERAL.findall(plain)}


def without_approximations(text: str) -> str | None:
    r"""``a`` of ``a \approx 0.577``, if that is `a` to within a hundredth of it; `None` if it isn't.

    A name before the sign is left to be read as one before an equals sign.
    """
    members = [member.strip() for member in _APPROXIMATION.split(text)]
    head, equals, member = members[0].rpartition("=")
    if len(members) == 1:
        return text
    if (
        len(members) == 2
        and not equals
        and (name := parse(member)) is not None
        and is_name(name, member)
    ):
        return f"{member} = {members[1]}"
    values = [parse(each) for each in (member, *members[1:])]
    if any(value is None or not getattr(value, "is_number", False) for value in values):
        return None
    exact_ones = [
        i for i, each in enumerate((member, *members[1:])) if not _DECIMAL.fullmatch(each)
    ]
    first = exact_ones[0] if exact_ones else 0
    numbers = [_fraction(exact(value.doit())) for value in values]
    if len(exact_ones) > 1 or None in numbers:  # "5 \\approx 7", "\\pi \\approx \\frac{22}{7}"
        return None
    value = numbers[first]
    if any(abs(number - value) * 100 > abs(value) for number in numbers):
        return None
    return f"{head}{equals} {(member, *members[1:])[first]}"


def both_signs(text: str) -> str:
    r"""``a + b, a - b`` for ``a \pm b``, in an expression or after a name; any other text as it is."""
    head, equals, tail = text.rpartition("=")
    if not _PLUS_MINUS.search(tail) or re.search("[,;]", text):
        return text
    if equals and ((name := parse(head)) is None or not is_name(name, head)):
        return text
    signs = (("+", "-"), ("-", "+"))
    return ", ".join(
        _PLUS_MINUS.sub(lambda sign, pair=pair: pair[sign[1] == "mp"], tail).strip().lstrip("+")
        for pair in signs
    )


def without_member(text: str) -> str:
    r"""``[1, 2]`` of ``x \in [1, 2]``."""
    return _MEMBER.sub("", text)


def is_ambiguous(text: str) -> bool:
    r"""Whether the parser would make one value of several: ``1 2`` is 3 to it, and ``0 \text{ or } 5`` is 0."""
    return bool(
        _APART.search(_THOUSANDS.sub("", text))
        or _TEXT_BETWEEN.search(text)
        or any(category(each)[0] == "S" for each in text if not each.isascii())
        or any(not is_numeral(*match) for match in _SUBSCRIPT.findall(text))
    )


def is_numeral(digits: str, braced: str, bare: str) -> bool:
    """Whether a number's subscript can be its base."""
    base = _TEXT.sub(r"\1", braced or bare).strip()
    return base.isdigit() and 2 <= int(base) <= 36 and all(int(each) < int(base) for each in digits)


def has_lost_words(text: str, expression) -> bool:
    """Whether a number is made of a text with words in it: ``0 maybe`` is 0 times the letters."""
    words = re.findall("[A-Za-z]{3,}", _WORDS.sub(" ", text.replace("\\text", "")))
    return bool(words) and not expression.doit().free_symbols


def is_odd_collection(expression) -> bool:
    """Whether a set or tuple has an equation in it that is more than a name and its value."""
    from sympy import Set, Tuple

    if not isinstance(expression, Set | Tuple):
        return False
    chains = filter(None, map(chain, expression.args))
    return any(len(members) > 2 or not is_name(members[0], "") for members in chains)


def words_of(text: str) -> str | None:
    r"""``a,c,f`` of ``\text{A, C, F}`` and ``no solution`` of itself; `None` if there is more than words in it."""
    plain = re.sub(r"\s+", " ", _TEXT.sub(r"\1", text)).strip(" .")
    return re.sub(r"\s*([,-])\s*", r"\1", plain).casefold() if _WORD.fullmatch(plain) else None


def compare(answer_text: str, gold_text: str) -> bool:
    """Compare two expressions given as LaTeX or plain text."""
    if _HIDDEN.search(answer_text) and not _HIDDEN.search(gold_text):
        return False
    words = words_of(answer_text)
    if words and len(words) > 2 and words == words_of(gold_text):
        return True
    answer_text, gold_text = normalise(answer_text), normalise(gold_text)
    if not answer_text or not gold_text:
        return False
    if answer_text == gold_text:
        return True
    from sympy import Interval, Tuple

    if is_ambiguous(answer_text) and not is_ambiguous(gold_text):
        return False
    answer_text, gold_text = without_approximations(answer_text), without_approximations(gold_text)
    if not answer_text or not gold_text:
        return False
    bases = bases_of(answer_text), bases_of(gold_text)
    if all(bases) and bases[0] != bases[1]:
        return False

    answer_text, gold_text = (both_signs(without_member(text)) for text in (answer_text, gold_text))
    if _IN.search(answer_text) and not _IN.search(gold_text):
        return False
    if _LISTED.fullmatch(answer_text) and _BARE_LIST.fullmatch(gold_text):
        answer_text = answer_text.strip()[1:-1]  # a list, as programs print it
    answer, gold = parse(answer_text), parse(gold_text)
    if answer is None or gold is None:
        return False
    if isinstance(gold, Tuple | Interval) and answer_text.lstrip().startswith("\\{"):
        return False  # a set has no order and no inside
    if has_lost_words(answer_text, answer):
        return False
    if is_odd_collection(answer) and not is_odd_collection(gold):
        return False
    answer_chain, gold_chain = chain(answer), chain(gold)
    if gold_chain and not gold.free_symbols:  # "0.5 = 50\\%": all members are its value
        if not _all_equal(gold_chain[-1], gold_chain):
            return False
        return _all_equal(gold_chain[-1], answer_chain or [answer])
    if answer_chain is None:
        return verify(gold, answer)
    if gold_chain is None:
        return _all_equal(
            gold, answer_chain[is_name(answer_chain[0], answer_text.partition("=")[0]) :]
        )
    if answer.free_symbols != gold.free_symbols:
        return False
    if len(answer_chain) == len(gold_chain) == 2:
        return verify(gold, answer)
    if is_name(gold_chain[0], gold_text.partition("=")[0]) and answer_chain[0] == gold_chain[0]:
        return _all_equal(gold_chain[-1], answer_chain[1:])
    return False


def _all_equal(gold, values: list) -> bool:
    return bool(values) and all(verify(gold, value) for value in values)


def joined(values: list[str]) -> str:
    """Several boxes as the list of their values, each once."""
    found: list[str] = []
    for value in values:
        if not any(compare(value, other) for other in found):
            found.append(value)
    return ", ".join(found)


def is_value(text: str) -> bool:
    """Whether a text is one expression that has a value, or a few words, and equals itself."""
    from sympy import nan, zoo

    plain = normalise(text)
    if not plain:
        return False
    value = parse(plain)
    if value is None:
        return bool(_WORD.fullmatch(_TEXT.sub(r"\1", plain).strip()))
    return value not in (nan, zoo) and verify(value, value)


def reply_to(values: list[str], wanted: list[str] | None = None) -> bool:
    """Answer a question, see `grader.Question`."""
    if wanted is None:
        return all(is_value(value) for value in values)
    return compare(joined(values), joined(wanted))


def serve(seconds: float, memory_mb: int) -> None:
    """Answer questions until the input closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not reply
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, _interrupt)
    signal.signal(signal.SIGVTALRM, signal.SIG_DFL)  # ends the process even inside C code
    logging.disable(logging.CRITICAL)
    try:
        from latex2sympy2_extended import latex2sympy2
        from math_verify import grader

        for name, ours in (("numeric", numbers_equal), ("symbolic", symbolically_equal)):
            assert callable(getattr(grader, f"sympy_{name}_eq")), "another math-verify is needed"
            setattr(grader, f"sympy_{name}_eq", ours)
        reader = latex2sympy2._Latex2Sympy
        reader.convert_postfix_list = refuse_numbers_side_by_side(reader.convert_postfix_list)
        assert compare("1+1", "2")  # imports everything and builds the parser's tables
    except Exception as error:
        print(repr(error), file=replies, flush=True)
        return
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, seconds + _MARGIN_SECONDS)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            verdict = str(int(reply_to(*question)))
            signal.setitimer(signal.ITIMER_PROF, 0)
        except MemoryError:
            os._exit(1)
        except _Late:
            verdict = "late"
        except Exception:
            verdict = "0"
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(verdict, file=replies, flush=True)
        # What earlier answers left behind must not make a later one fail for want of memory.
        if _resident_mb() > memory_mb // 2:
            os._exit(0)


def _interrupt(number: int, frame: object) -> None:
    raise _Late


def _resident_mb() -> float:
    """Memory in use.

    `ru_maxrss` would not do: it is inherited from the process that started this one, so that below
    a large trainer every answer would end its worker.
    """
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)
    except OSError:  # no /proc: the address space limit remains
        return 0.0


if __name__ == "__main__":
    serve(float(sys.argv[1]), int(sys.argv[2]))
