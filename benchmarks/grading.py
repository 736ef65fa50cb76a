r"""How right and how fast is the grader, beside math-verify, and what earns a reward without being right?

    python -m benchmarks.grading FOLDER
    python -m benchmarks.grading FOLDER --set-aside aside.jsonl --wrong wrong.jsonl --out grading.json
    python -m benchmarks.grading --parts speed rewritings others templates

The parts, which `--parts` selects:

- `cases`: test cases that other projects have published, from a folder, by project and kind;
- `speed`: pairs of integers a second;
- `rewritings`: MATH's answers, each written in another way that means the same: how many are accepted, and milliseconds a grade;
- `others`: MATH's answers, each graded against the next answer and against itself plus one: what is accepted is listed;
- `templates`: answers that are built to earn a reward without knowing the problem, each against a hundred golds.

A folder of cases holds one file of JSON lines a project, `PROJECT.jsonl`, and a line is one case::

    {"answer": "0.5", "gold": "\\frac{1}{2}", "expected": true, "kind": "single", "where": "tests/test_equal.py:12"}

`kind` is `single` (the answer is an expression), `boxed` (a text with a `\boxed{}`), or `prose` (a text from which the value would
have to be picked). Prose is counted apart, because it is wrong here by design: an answer commits to one expression. `where` is
optional. `--set-aside` names a file of JSON lines with the keys `answer`, `gold` and `reason`: cases whose expectation is
mistaken, which are left out and listed.

math-verify is called as its documentation shows, `verify(parse(gold), parse(answer))`. A text without any mathematical delimiter
is put between dollar signs first, which its parser asks for, and which gives it more right verdicts than leaving the text as it is,
or than a box around it. It runs in a process of its own. A comparison that takes longer than `PATIENCE` seconds, or ends the
process, counts as wrong. Its seconds are those inside that process; the grader's seconds are those that the caller waits.
`rewritings` and `others` need MATH in the folder that `RETOOL_DATA` names.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts.graded_cases import Case, count_cases, grade_cases, split_cases
from benchmarks.parts.graders import PATIENCE, MathVerify, Ours, Pair
from benchmarks.parts.results import write_results
from benchmarks.parts.reward_templates import reward_templates, single_golds
from retool_env.problem import ProblemsUnavailable
from retool_env.problems import math
from retool_env.problems.loading import FOLDER_VARIABLE

INTEGER_PAIRS = 20_000
PEER_INTEGER_PAIRS = 1_000
MOST_SHOWN = 30
"""Lines of a list that are printed; the file of `--out` holds them all."""


# --- Published cases ----------------------------------------------------------------------------


def cases_part(
    cases: list[Case],
    left_out: list[tuple[Case, str]],
    wrong: Path | None,
    ours: Ours,
    peer: MathVerify,
) -> dict[str, Any]:
    """Grade the published cases; write those that the grader gets wrong to `wrong`, if it is given."""
    graded = grade_cases(cases, ours, peer)
    mistakes = [
        {**asdict(case), "ours": mine, "math-verify": theirs}
        for case, mine, theirs in graded
        if mine is not case.expected
    ]
    if wrong is not None:
        wrong.write_text("".join(json.dumps(m, ensure_ascii=False) + "\n" for m in mistakes))
    counts = count_cases(graded)
    print(f"{'kind':<8}{'project':<18}{'cases':>7}{'ours right':>12}{'math-verify right':>19}")
    for kind, projects in counts.items():
        for project, each in projects.items():
            print(
                f"{kind:<8}{project:<18}{each['cases']:>7}{each['ours']:>12}{each['math-verify']:>19}"
            )
    for case, reason in left_out:
        print(f"set aside  {case.project}: {_shown(case.answer)} for {_shown(case.gold)}: {reason}")
    print(f"{len(mistakes)} wrong" + (f", in {wrong}" if wrong else "; --wrong FILE lists them"))
    return {"counts": counts, "set_aside": Counter(reason for _, reason in left_out)}


# --- Speed and rewritings -----------------------------------------------------------------------


def speed_part(ours: Ours, peer: MathVerify) -> dict[str, float]:
    """Pairs of integers a second, half of them equal."""
    found = {}
    for name, grader, number in (
        ("ours", ours, INTEGER_PAIRS),
        ("math-verify", peer, PEER_INTEGER_PAIRS),
    ):
        pairs = [(str(i * 37), str(i * 37 + i % 2)) for i in range(number)]
        graded = [grader.grade(*pair) for pair in pairs]
        if wrong := sum(verdict is not (i % 2 == 0) for i, (verdict, _) in enumerate(graded)):
            raise RuntimeError(f"{name} has {wrong} of {number} pairs of integers wrong")
        found[name] = round(number / sum(seconds for _, seconds in graded), 1)
        print(f"{found[name]:>12,.1f}  pairs of integers a second: {name}")
    return found


def math_golds(limit: int | None) -> list[str]:
    """MATH's distinct answers in their order, or a fixed sample of them.

    Raises:
        ProblemsUnavailable: `RETOOL_DATA` names no folder with MATH. (The Hub is not asked.)
    """
    if not os.environ.get(FOLDER_VARIABLE):
        raise ProblemsUnavailable(f"{FOLDER_VARIABLE} is not set; it names the folder with MATH")
    source = math("train")
    golds = list(dict.fromkeys(source[i].answer for i in range(len(source))))
    if limit is None or limit >= len(golds):
        return golds
    chosen = set(random.Random(0).sample(range(len(golds)), limit))
    return [gold for i, gold in enumerate(golds) if i in chosen]


def is_integer(gold: str) -> bool:
    """Whether a gold is a plain integer."""
    return re.fullmatch(r"-?[0-9]+", gold) is not None


def spaced(gold: str) -> str:
    r"""With spaces around operators and commas, but not inside of `\text{}` and the names of commands."""
    pattern = r"\\(?:text|mbox|textbf|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+|\\.|\{,\}|[0-9],(?:\\!)?(?=[0-9]{3})|([-+=,<>])"
    return re.sub(
        pattern, lambda match: f" {match[1]} " if match[1] else match[0], gold, flags=re.S
    )


def growing_brackets(gold: str) -> str:
    r"""With `\left` before opening brackets and `\right` before closing ones, where these are balanced; otherwise unchanged.

    An interval's brackets may differ, `\left[0,1\right)`. A text that has a `\left` already is unchanged.
    """
    if r"\left" in gold or r"\right" in gold or r"\text" in gold:
        return gold
    open_brackets = []
    for token in re.finditer(r"\\.|[()\[\]{}]", gold, re.S):
        if token[0] in "([{":
            open_brackets.append(token[0])
        elif token[0] in ")]}" and (
            not open_brackets or (open_brackets.pop() == "{") != (token[0] == "}")
        ):
            return gold
    if open_brackets or r"\sqrt[" in gold:
        return gold
    return re.sub(
        r"(?<!\\)[(\[]|(?<!\\)[)\]]",
        lambda match: (r"\left" if match[0] in "([" else r"\right") + match[0],
        gold,
    )


REWRITINGS = {
    r"\displaystyle": lambda gold: rf"\displaystyle {gold}",
    r"\dfrac": lambda gold: re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", gold),
    "spaces": spaced,
    r"\left, \right": growing_brackets,
}
"""Ways to write an expression that do not change its meaning."""


def rewritings_part(golds: list[str], ours: Ours, peer: MathVerify) -> dict[str, Any]:
    """Grade rewritten golds against the golds: how many are accepted, and the mean milliseconds of each."""
    found: dict[str, Any] = {}
    print(f"{'rewritten':<18}{'answers':>8}{'accepted by ours, ms':>24}{'by math-verify, ms':>24}")
    refused = []
    times: dict[str, list[float]] = {"ours": [], "math-verify": []}
    for name, rewrite in REWRITINGS.items():
        pairs = [(rewritten, gold) for gold in golds if (rewritten := rewrite(gold)) != gold]
        each: dict[str, Any] = {"answers": len(pairs)}
        # In turns, so that whatever else the machine does slows both down alike.
        graded = [{"ours": ours.grade(*pair), "math-verify": peer.grade(*pair)} for pair in pairs]
        for who in times:
            seconds = [both[who][1] for both in graded]
            times[who] += seconds
            each[who] = {
                "accepted": sum(both[who][0] is True for both in graded),
                "mean_ms": _mean_ms(seconds),
            }
        refused += [pair for pair, both in zip(pairs, graded, strict=True) if not both["ours"][0]]
        found[name] = each
        cells = [f"{each[who]['accepted']}, {each[who]['mean_ms']:.2f}" for who in times]
        print(f"{name:<18}{len(pairs):>8}" + "".join(f"{cell:>24}" for cell in cells))
    means = {who: _mean_ms(seconds) for who, seconds in times.items()}
    print(f"mean ms a grade: ours {means['ours']}, math-verify {means['math-verify']}")
    _print_pairs("refused by ours", refused)
    return {"by_rewriting": found, "mean_ms": means, "refused": refused}


def _mean_ms(seconds: list[float]) -> float:
    return round(1000 * sum(seconds) / len(seconds), 3) if seconds else 0.0


# --- What must not be accepted ------------------------------------------------------------------


def plus_one(gold: str) -> str:
    """The gold plus one."""
    return str(int(gold) + 1) if is_integer(gold) else f"({gold})+1"


def others_part(golds: list[str], ours: Ours, peer: MathVerify) -> dict[str, Any]:
    """Grade other answers than the gold, and list what is accepted."""
    following = zip(golds[1:] + golds[:1], golds, strict=True)
    pairs = {"the next gold": list(following), "the gold + 1": [(plus_one(g), g) for g in golds]}
    found: dict[str, Any] = {}
    for name, each in pairs.items():
        mine, theirs = accepted(each, ours, peer)
        found[name] = {"answers": len(each), "ours": mine, "math-verify": theirs}
        print(
            f"{name}: of {len(each)} answers are accepted {len(mine)} by ours, "
            f"{len(theirs)} by math-verify"
        )
        _print_pairs("accepted by ours", mine)
        _print_pairs("accepted by math-verify", theirs)
    return found


def accepted(pairs: list[Pair], ours: Ours, peer: MathVerify) -> tuple[list[Pair], list[Pair]]:
    """The pairs that each of the two accepts, asked side by side."""

    def ask(grader: Ours | MathVerify) -> list[Pair]:
        return [pair for pair in pairs if grader.grade(*pair)[0]]

    with ThreadPoolExecutor(2) as pool:
        mine, theirs = pool.map(ask, (ours, peer))
    return mine, theirs


def templates_part(ours: Ours, peer: MathVerify) -> dict[str, Any]:
    """Grade each template against each gold, and list what earns."""
    templates, golds = reward_templates(), single_golds()
    pairs = list(itertools.product(templates, golds))
    found: dict[str, Any] = {"templates": len(templates), "golds": len(golds)}
    for who, earned in zip(("ours", "math-verify"), accepted(pairs, ours, peer), strict=True):
        found[who] = {"earning_templates": len({t for t, _ in earned}), "earned": earned}
        print(
            f"of {len(templates)} templates, {found[who]['earning_templates']} earn with {who}, "
            f"at {len(earned)} of {len(pairs)} pairs with {len(golds)} golds"
        )
        if who == "ours":
            _print_pairs("earned", earned)
    return found


# --- The command --------------------------------------------------------------------------------


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(f"{text[:40]} ... {text[-15:]}")


def _print_pairs(what: str, pairs: list[Pair]) -> None:
    for answer, gold in pairs[:MOST_SHOWN]:
        print(f"  {what}: {_shown(answer)} for {_shown(gold)}")
    if len(pairs) > MOST_SHOWN:
        print(f"  and {len(pairs) - MOST_SHOWN} more")


PARTS = ("cases", "speed", "rewritings", "others", "templates")


Part = Callable[[Ours, MathVerify], dict[str, Any]]


def planned_parts(options: argparse.Namespace) -> dict[str, Part]:
    """The parts that are asked for, with all their files read; a part without its data says so, and is left out.

    Raises:
        ValueError: A file is not what it should be; the message names file and line.
    """
    plan: dict[str, Part] = {}
    for part in options.parts:
        if part == "cases":
            cases = split_cases(options.folder, options.set_aside)
            plan[part] = functools.partial(cases_part, *cases, options.wrong)
        elif part == "speed":
            plan[part] = speed_part
        elif part == "templates":
            plan[part] = templates_part
        else:
            try:
                golds = math_golds(options.golds)
            except ProblemsUnavailable as error:
                print(f"{part}: left out: {error}")
                continue
            expressions = [gold for gold in golds if not is_integer(gold)]
            plan[part] = (
                functools.partial(others_part, golds)
                if part == "others"
                else functools.partial(rewritings_part, expressions)
            )
    return plan


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of the cases, a file a project")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="(all; without FOLDER no cases)")
    parser.add_argument("--set-aside", type=Path, help="cases whose expectation is mistaken")
    parser.add_argument("--wrong", type=Path, help="where the cases go that the grader has wrong")
    parser.add_argument("--golds", type=int, help="of MATH, a sample of so many (all)")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    options.parts = options.parts or [part for part in PARTS if part != "cases" or options.folder]
    if "cases" in options.parts and options.folder is None:
        parser.error("the part cases needs FOLDER, which holds a file PROJECT.jsonl a project")
    if options.golds is not None and options.golds < 2:
        parser.error("--golds must be at least 2")
    try:
        plan = planned_parts(options)
    except ValueError as error:
        parser.error(str(error))
    found = {}
    if plan:
        with Ours() as ours, MathVerify() as peer:
            for name, part in plan.items():
                print(f"{name}:", flush=True)
                found[name] = part(ours, peer)
    if options.out:
        settings = {"golds": options.golds, "patience_s": PATIENCE}
        write_results(options.out, {"settings": settings, "parts": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
