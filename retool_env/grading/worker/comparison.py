"""The verdict on two texts: parses both, and refuses texts that the parser accepts wrongly."""

import re
from typing import Any

from .expressions import chain, has_lost_words, is_name, is_odd_collection, normalise, parse
from .named import Point, are_roots, has_mixed_names, plain, points, renamed
from .readings import ALTERNATIVES, POINT, SIZES, second_reading
from .values import exact, fraction, verify
from .words import bases_of, hides_a_part, is_ambiguous, is_words, without_member, words_of

_APPROXIMATION = re.compile(r"\\approx(?![A-Za-z])|\\simeq(?![A-Za-z])")
_DECIMAL = re.compile(r"[+-]?\s*(?:\d*\.)?\d+")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_IN = re.compile(r"\\in(?![A-Za-z])")
_BARE_LIST = re.compile(r"[^()\[\],]+(?:,[^()\[\],]+)+")
_LISTED = re.compile(r"\s*\[[^\[\]]*\]\s*")


def without_approximations(text: str) -> str | None:
    r"""Removes approximate values from a text: `a \approx 0.577` becomes `a`.

    A name before the sign stays, as a name before an equals sign.

    Returns:
        The text with its exact member; `None` if a value differs from it by more than a hundredth.
    """
    members = [member.strip() for member in _APPROXIMATION.split(text)]
    if len(members) == 1:
        return text
    head, equals, member = members[0].rpartition("=")
    if (
        len(members) == 2
        and not equals
        and (name := parse(member)) is not None
        and is_name(name, member)
    ):
        return f"{member} = {members[1]}"
    members[0] = member
    values = [parse(member) for member in members]
    if any(value is None or not getattr(value, "is_number", False) for value in values):
        return None
    exact_members = [i for i, member in enumerate(members) if not _DECIMAL.fullmatch(member)]
    first = exact_members[0] if exact_members else 0
    fractions = [fraction(exact(value.doit())) for value in values]
    numbers = [number for number in fractions if number is not None]
    # "5 \\approx 7", "\\pi \\approx \\frac{22}{7}"
    if len(exact_members) > 1 or len(numbers) < len(values):
        return None
    value = numbers[first]
    if any(abs(number - value) * 100 > abs(value) for number in numbers):
        return None
    return f"{head}{equals} {members[first]}"


def both_signs(text: str) -> str:
    r"""Rewrites `a \pm b` as `a + b, a - b`, with or without a name before an equals sign.

    Returns:
        The list of both values; the unchanged text if it is not of this form.
    """
    head, equals, tail = text.rpartition("=")
    if not _PLUS_MINUS.search(tail) or re.search("[,;]", text):
        return text
    if equals and ((name := parse(head)) is None or not is_name(name, head)):
        return text

    def signed(pm: str, mp: str) -> str:
        plain = _PLUS_MINUS.sub(lambda sign: pm if sign[1] == "pm" else mp, tail)
        return plain.strip().lstrip("+")

    return f"{signed('+', '-')}, {signed('-', '+')}"


def is_equal(written: str, wanted: str) -> bool:
    """Returns whether an answer equals a gold answer in one of its readings.

    Args:
        written: The answer, as LaTeX or plain text.
        wanted: The gold answer, as LaTeX or plain text.
    """
    if has_mixed_names(written) != has_mixed_names(wanted):
        return False
    answer, gold = points(written), points(wanted)
    if answer and gold:
        same = [renamed(point, list(gold[0])) for point in answer]
        return None not in same and compare(plain([p for p in same if p]), plain(gold))
    if any(
        some and not are_roots(some[0]) and len(ALTERNATIVES.split(other)) > len(some)
        for some, other in ((answer, wanted), (gold, written))
    ):
        return False  # "3 or 4" is not a point
    unordered = _BARE_LIST.fullmatch(wanted) and "\\{" not in wanted
    if answer and _orders(answer, wanted) and not unordered:
        written = plain(answer)
    if gold and _orders(gold, written):
        wanted = plain(gold)
        if _LISTED.fullmatch(written):
            written = written.strip()[1:-1]  # a program printed a list
    if compare(written, wanted):
        return True
    reading, gold_reading = second_reading(written), second_reading(wanted)
    if reading is None and gold_reading is None:
        return False
    return compare(reading or written, gold_reading or wanted)


def _orders(some: list[Point], other: str) -> bool:
    """Whether the names of points decide the order of values, beside a text without names."""
    return len(some) > 1 or not are_roots(some[0]) or bool(POINT.fullmatch(SIZES.sub("", other)))


def compare(written: str, wanted: str) -> bool:
    """Returns whether an answer equals a gold answer, each as the parser reads it.

    Args:
        written: The answer, as LaTeX or plain text.
        wanted: The gold answer, as LaTeX or plain text.
    """
    if hides_a_part(written) and not hides_a_part(wanted):
        return False
    words = words_of(written)
    if words and len(words) > 2 and words == words_of(wanted):
        return True
    answer_text, gold_text = normalise(written), normalise(wanted)
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
        answer_text = answer_text.strip()[1:-1]  # a program printed a list
    answer, gold = parse(answer_text), parse(gold_text)
    if answer is None or gold is None:
        return False
    if isinstance(gold, Tuple | Interval) and answer_text.lstrip().startswith("\\{"):
        return False  # a set has neither an order nor an interior
    if _value_of(gold_text).startswith("\\{") and _is_tuple(answer_text):
        return False  # a tuple has an order
    if has_lost_words(answer_text, answer):
        return False
    if is_odd_collection(answer) and not is_odd_collection(gold):
        return False
    answer_chain, gold_chain = chain(answer), chain(gold)
    if gold_chain and not gold.free_symbols:  # "0.5 = 50\\%": each member is the gold value
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


def _is_tuple(text: str) -> bool:
    point = POINT.fullmatch(_value_of(text))
    return point is not None and "," in point[1]


def _value_of(text: str) -> str:
    return SIZES.sub("", text.rpartition("=")[2]).strip()


def _all_equal(gold: Any, values: list[Any]) -> bool:
    return bool(values) and all(verify(gold, value) for value in values)


def joined(values: list[str]) -> str:
    """Joins the values of several boxes to one list, without values that are equal."""
    different: list[str] = []
    for value in values:
        if not any(compare(value, other) for other in different):
            different.append(value)
    return ", ".join(different)


def is_value(text: str) -> bool:
    """Whether a text can be a gold: an expression that equals itself, or a few words."""
    if _is_value(text):
        return True
    plain = normalise(text)
    readings = (both_signs(plain) if plain else None, second_reading(text))
    return any(reading and reading != plain and _is_value(reading) for reading in readings)


def _is_value(text: str) -> bool:
    from sympy import nan, zoo

    plain = normalise(text)
    if not plain:
        return False
    value = parse(plain)
    if value is None:
        return is_words(plain)
    return value not in (nan, zoo) and verify(value, value)


def reply_to(values: list[str], wanted: list[str] | None = None) -> bool:
    """Returns the verdict on a question: see `grader.Question`.

    Args:
        values: The expressions of the answer, or of a gold if `wanted` is `None`.
        wanted: The expressions of the gold; `None`: the question is whether `values` are values.
    """
    if wanted is None:
        return all(is_value(value) for value in values)
    return is_equal(joined(values), joined(wanted))
