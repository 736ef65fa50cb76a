"""Parsing: normalised LaTeX becomes one sympy expression, or `None`."""

import functools
import re
from collections.abc import Callable
from typing import Any

from .words import MORE_THAN_A_UNIT, is_unit

_BARE_UNIT = re.compile(r"\s*(?:[A-Za-z]{3,}|cm|mm|km|kg|ft|lb|hr)(?:\s+[A-Za-z]+)*\s*")
_AREA = re.compile(
    r"([\d}])\s*(?:cm|mm|dm|km|ft|in|yd|inches|feet|meters|units)\s*\^\s*(?:[23]|\{[23]\})$"
)
_WORDS = re.compile(
    r"\\[A-Za-z]+|(?:sin|cos|tan|cot|sec|csc|log|exp|max|min|gcd|lcm|mod|det|arg|lim"
    r"|matrix|pmatrix|bmatrix|vmatrix|array|cases|align)"
)
_PLAIN_NUMBER = re.compile(r"\{*\d+\}*(?:_\{?\w+\}?)?(?:\^\{?\\circ\}?)?")
_FACTOR = re.compile(r"\{*\d+\}*|\(\d+\)")
_PLAIN_FRACTION = re.compile(r"\\[dtc]?frac\{(\d+)\}\{(\d+)\}")
_LETTER_I = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")


def normalise(text: str) -> str | None:
    """Normalises LaTeX for the parser.

    Returns:
        The normal form; `None` if normalisation would drop another value.
    """
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
        elif _BARE_UNIT.fullmatch(dropped):  # the t of "3t" is a variable and stays
            text = without_unit
    return normalize_latex(text, rest)


@functools.lru_cache(1024)
def parse(text: str) -> Any:
    """Parses normalised LaTeX to a sympy object; `None` if the text is not one expression."""
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import should_treat_as_complex
    from sympy import I

    is_real: bool | None = not should_treat_as_complex(_LETTER_I.sub("", text))
    if "=" in text and _LETTER_I.search(text):  # no real x is 3 + 4i
        is_real = None
    try:
        expression = latex2sympy(text, is_real=is_real, normalization_config=None)
        letters = {symbol.name: symbol for symbol in expression.free_symbols}
        # Next to these letters, i is an index and not the imaginary unit.
        if "i" in letters and not letters.keys() & {"j", "k", "n"}:
            expression = expression.subs(letters["i"], I)
        return expression
    except MemoryError:
        raise
    except Exception:  # the parser may raise any error on hostile text
        return None


def refuse_numbers_side_by_side(convert: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the parser's method for factors, so that it refuses numbers side by side.

    The parser reads a number before a fraction as a mixed number. So it would read `5{6}` as 11.

    Args:
        convert: The method `convert_postfix_list` of the parser's class.

    Returns:
        The method that replaces it. It raises a `ValueError` for numbers side by side.
    """

    def convert_postfix_list(self: Any, factors: list[Any], i: int = 0) -> Any:
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


def is_name(expression: Any, text: str) -> bool:
    """Whether an expression is a name, which may stand before an equals sign: `x`, `AB`, `f(x)`.

    Args:
        expression: The parsed expression.
        text: The text of the expression. It is needed because the parser writes all letters in
            lower case.
    """
    from sympy import Mul, Symbol, Tuple
    from sympy.core.function import AppliedUndef

    letters = re.sub(r"\\[A-Za-z]+", " ", text)
    if not MORE_THAN_A_UNIT.isdisjoint(re.findall("[a-z]+", letters.lower())):
        return False
    if isinstance(expression, Tuple):
        return all(isinstance(part, Symbol) for part in expression.args)
    parts = Mul.make_args(expression.doit())
    if not all(isinstance(part, Symbol | AppliedUndef) for part in parts):
        return False
    if len(parts) > 1 and re.search("[a-z]", letters):  # a product, not a segment or an angle
        return False
    names = (symbol.name.partition("_")[0] for symbol in expression.free_symbols)
    return not any(re.search(r"\d", name) for name in names)  # \text{42} is also a symbol


def chain(expression: Any) -> list[Any] | None:
    """The members `[a, b, c]` of a chain `a = b = c`; `None` for any other expression."""
    from latex2sympy2_extended.logic import And
    from sympy import Eq

    equations = expression._unsorted_args if isinstance(expression, And) else [expression]
    if not equations or not all(isinstance(equation, Eq) for equation in equations):
        return None
    return [equations[0].lhs, *(equation.rhs for equation in equations)]


def has_lost_words(text: str, expression: Any) -> bool:
    """Whether the text of a number contains words: `0 maybe` is 0 times the letters.

    Args:
        text: The text of the expression.
        expression: The parsed expression.
    """
    words = re.findall("[A-Za-z]{3,}", _WORDS.sub(" ", text.replace("\\text", "")))
    return bool(words) and not expression.doit().free_symbols


def is_odd_collection(expression: Any) -> bool:
    """Whether a set or tuple contains an equation that is more than a name and its value."""
    from sympy import Set, Tuple

    if not isinstance(expression, Set | Tuple):
        return False
    chains = filter(None, map(chain, expression.args))
    return any(len(members) > 2 or not is_name(members[0], "") for members in chains)
