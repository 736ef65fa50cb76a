"""The process behind :mod:`retool_env.grading`: compares expressions with math-verify, one a line.

Run as a script, so that it imports nothing else of the package. Requests arrive on standard input
as JSON lines ``[answer, gold]``; the reply is ``1`` or ``0``. The process ends itself when a
comparison overruns its time, when memory runs out, and when its input closes.

The answer is parsed as a whole by latex2sympy, math-verify's own parser, and not searched for
something that looks right, as `math_verify.parse` does with prose. What that parser lets pass and a
grader must not is refused here: chains of equations of which only the last member counts, text
that is dropped although it holds another number, and approximations.
"""

import json
import logging
import os
import re
import resource
import signal
import sys

_TEXT = re.compile(r"\\(?:text|mbox)\s*\{([^{}]*)\}")
_EXPONENT = re.compile(r"\^\s*\{?\d\}?")
_BARE_UNIT = re.compile(r"\s*(?:[A-Za-z]{3,}|cm|mm|km|kg|ft|lb|hr)(?:\s+[A-Za-z]+)*\s*")
_APPROXIMATION = re.compile(r"\\approx|≈")
_BASE = re.compile(r"_\s*(?:\{([^{}]*)\}|(\w))\s*$")


def normalise(text: str) -> str | None:
    """Bring LaTeX into the form the parser takes, or return ``None`` if it drops another value."""
    from latex2sympy2_extended import NormalizationConfig, normalize_latex

    basic = NormalizationConfig(basic_latex=True, boxed="none")
    units = NormalizationConfig(basic_latex=False, units=True, boxed="none")
    rest = NormalizationConfig(basic_latex=False, malformed_operators=True, nits=True, boxed="none")
    text = normalize_latex(text, basic)
    without_unit = normalize_latex(text, units)
    if without_unit != text:
        dropped = text[len(without_unit) :] if text.startswith(without_unit) else text
        if "\\text" in dropped or "\\mbox" in dropped:
            if re.search(r"\d", _EXPONENT.sub("", dropped)):
                return None  # "42 \text{ or maybe } {43}"
            text = without_unit
        elif _BARE_UNIT.fullmatch(dropped):  # but not the variable of "3t"
            text = without_unit
    return normalize_latex(text, rest)


def parse(text: str):
    """Parse normalised LaTeX to a sympy object; ``None`` if it isn't one expression."""
    from latex2sympy2_extended import latex2sympy
    from math_verify.grader import should_treat_as_complex

    try:
        return latex2sympy(
            text, is_real=not should_treat_as_complex(text), normalization_config=None
        )
    except MemoryError:
        raise
    except Exception:  # whatever the parser meets in hostile text
        return None


def is_name(expression) -> bool:
    """``x``, ``AB``, ``f(x)``: what may stand before an equals sign without being a value."""
    from latex2sympy2_extended import is_expr_of_only_symbols
    from sympy.core.function import AppliedUndef

    if not (isinstance(expression, AppliedUndef) or is_expr_of_only_symbols(expression)):
        return False
    names = (symbol.name.partition("_")[0] for symbol in expression.free_symbols)
    return not any(re.search(r"\d", name) for name in names)  # \text{42} is a symbol too


def chain(expression) -> list | None:
    """The members ``[a, b, c]`` of ``a = b = c``; ``None`` for anything else."""
    from latex2sympy2_extended.logic import And
    from sympy import Eq

    equations = expression._unsorted_args if isinstance(expression, And) else [expression]
    if not equations or not all(isinstance(equation, Eq) for equation in equations):
        return None
    return [equations[0].lhs, *(equation.rhs for equation in equations)]


def verify(gold, answer) -> bool:
    """math-verify's verdict, for values that must also agree in relative terms if rounded."""
    import math_verify
    from sympy import Float, UnevaluatedExpr

    try:
        # Its time limits use this process's one alarm, which is already set.
        if not math_verify.verify(gold, answer, timeout_seconds=None, raise_on_error=True):
            return False
    except MemoryError:
        raise
    except Exception:
        return False
    # It rounds to six places, at which 0.0 would equal every tiny number.
    rounded = isinstance(answer, Float) or isinstance(gold, Float)
    numbers = getattr(answer, "is_real", None) and getattr(gold, "is_real", None)
    if rounded and numbers and not any(x.has(UnevaluatedExpr) for x in (answer, gold)):  # percents
        return bool(abs(answer.evalf() - gold.evalf()) <= 1e-5 * abs(gold.evalf()))
    return True


def base_of(text: str) -> str | None:
    r"""The base of a numeral, ``7`` in ``43_7`` and ``43_{\text{7}}``."""
    match = _BASE.search(_TEXT.sub(r"\1", text))
    return (match[1] or match[2] or "").strip() if match else None


def compare(answer_text: str, gold_text: str) -> bool:
    """Compare two expressions given as LaTeX or plain text."""
    answer_text, gold_text = normalise(answer_text), normalise(gold_text)
    if not answer_text or not gold_text:
        return False
    if answer_text == gold_text:
        return True
    # The parser skips the second half of an approximation, and the base of a numeral.
    if _APPROXIMATION.search(answer_text):
        return False
    bases = base_of(answer_text), base_of(gold_text)
    if None not in bases and bases[0] != bases[1]:
        return False

    answer, gold = parse(answer_text), parse(gold_text)
    if answer is None or gold is None:
        return False
    answer_chain, gold_chain = chain(answer), chain(gold)
    if answer_chain and gold_chain and len(answer_chain) == len(gold_chain) == 2:
        # Two equations without unknowns, or of different ones, have the same (no) solutions.
        return answer.free_symbols == gold.free_symbols and verify(gold, answer)
    if answer_chain and (gold_chain is None or (len(gold_chain) == 2 and is_name(gold_chain[0]))):
        values = answer_chain[1:] if is_name(answer_chain[0]) else answer_chain
        if gold_chain and answer_chain[0] != gold_chain[0]:
            return False
        wanted = gold_chain[1] if gold_chain else gold
        return all(verify(wanted, value) for value in values)
    return verify(gold, answer)


def serve(wall_seconds: float, memory_mb: int) -> None:
    """Answer requests until the input closes."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a library that prints must not reply
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside C code
    logging.disable(logging.CRITICAL)
    try:
        compare("1+1", "2")  # imports everything and builds the parser's tables
    except Exception as error:
        print(repr(error), file=replies, flush=True)
        return
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        answer, gold = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, wall_seconds)
        try:
            verdict = compare(answer, gold)
        except MemoryError:
            os._exit(1)
        except Exception:
            verdict = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(int(verdict), file=replies, flush=True)
        # What earlier answers left behind must not make a later one fail for want of memory.
        if _resident_mb() > memory_mb // 2:
            os._exit(0)


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
