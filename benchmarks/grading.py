r"""Measures the grader against math-verify: correctness, speed, and unearned rewards.

    python -m benchmarks.grading FOLDER
    python -m benchmarks.grading FOLDER --set-aside aside.jsonl --wrong wrong.jsonl --out out.json
    python -m benchmarks.grading --parts speed rewritings others templates

The parts, which `--parts` selects:

- `cases`: published test cases of other projects, from a folder; right verdicts by project and
  kind.
- `speed`: pairs of integers per second.
- `rewritings`: MATH's answers, rewritten without a change of meaning. The part counts accepted
  answers and measures milliseconds per grade.
- `others`: MATH's answers, each graded against the next answer and against itself plus one. The
  part lists the accepted pairs.
- `templates`: answers built to earn a reward without solving the problem, against a hundred golds.

A folder of cases has one file `PROJECT.jsonl` per project. Each line is one case:

    {"answer": "0.5", "gold": "\\frac{1}{2}", "expected": true, "kind": "single", "where": "a.py:1"}

`kind` is `single` (the answer is an expression), `boxed` (a text with a `\boxed{}`), or `prose` (a
grader would have to find the value in a text). Prose counts separately: this project's grader
rejects it by design, because an answer commits to one expression. `where` is optional.
`--set-aside` names a file of JSON lines with the keys `answer`, `gold` and `reason`. It lists cases
with a mistaken expectation; these cases are left out and printed.

math-verify is called as in its documentation: `verify(parse(gold), parse(answer))`. Its parser asks
for mathematical delimiters, so a text without them is put between dollar signs. This gives more
right verdicts than the bare text or a box. math-verify runs in a separate process. A comparison
counts as wrong if it takes more than `PATIENCE` seconds or ends the process. The time of
math-verify is measured inside that process; the time of our grader is the time that the caller
waits.

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
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts.graded_cases import Case, count_cases, grade_cases, split_cases
from benchmarks.parts.graders import PATIENCE, MathVerify, OurGrader, Pair
from benchmarks.parts.results import write_results
from benchmarks.parts.reward_templates import reward_templates, single_golds
from retool_env.problem import ProblemsUnavailable
from retool_env.problems import math
from retool_env.problems.loading import FOLDER_VARIABLE

INTEGER_PAIRS = 20_000
PEER_INTEGER_PAIRS = 1_000
MOST_SHOWN = 30
"""The maximum number of printed lines of a list; the file of `--out` has all lines."""


# --- Published cases ----------------------------------------------------------------------------


def cases_part(
    cases: list[Case],
    left_out: list[tuple[Case, str]],
    wrong: Path | None,
    grader: OurGrader,
    peer: MathVerify,
) -> dict[str, Any]:
    """Part `cases`: grade the published cases.

    Args:
        cases: The cases.
        left_out: Cases that are not graded, with their reasons.
        wrong: The file for the cases that our grader gets wrong; `None`: write no file.
        grader: The grader of this project.
        peer: math-verify.
    """
    graded = grade_cases(cases, grader, peer)
    mistakes = [
        {**asdict(case), "ours": verdict, "math-verify": peer_verdict}
        for case, verdict, peer_verdict in graded
        if verdict is not case.expected
    ]
    if wrong is not None:
        wrong.write_text("".join(json.dumps(m, ensure_ascii=False) + "\n" for m in mistakes))
    counts = count_cases(graded)
    print(f"{'kind':<8}{'project':<18}{'cases':>7}{'ours right':>12}{'math-verify right':>19}")
    for kind, projects in counts.items():
        for project, count in projects.items():
            print(
                f"{kind:<8}{project:<18}{count['cases']:>7}"
                f"{count['ours']:>12}{count['math-verify']:>19}"
            )
    for case, reason in left_out:
        print(f"set aside  {case.project}: {_shown(case.answer)} for {_shown(case.gold)}: {reason}")
    print(f"{len(mistakes)} wrong" + (f", in {wrong}" if wrong else "; --wrong FILE lists them"))
    return {"counts": counts, "set_aside": Counter(reason for _, reason in left_out)}


# --- Speed and rewritings -----------------------------------------------------------------------


def speed_part(grader: OurGrader, peer: MathVerify) -> dict[str, float]:
    """Part `speed`: pairs of integers per second. Half of the pairs are equal."""
    rates = {}
    graders: dict[str, tuple[OurGrader | MathVerify, int]] = {
        "ours": (grader, INTEGER_PAIRS),
        "math-verify": (peer, PEER_INTEGER_PAIRS),
    }
    for name, (timed, number) in graders.items():
        graded = [timed.grade(str(i * 37), str(i * 37 + i % 2)) for i in range(number)]
        if wrong := sum(verdict is not (i % 2 == 0) for i, (verdict, _) in enumerate(graded)):
            raise RuntimeError(f"{name} graded {wrong} of {number} pairs of integers wrongly")
        rates[name] = round(number / sum(seconds for _, seconds in graded), 1)
        print(f"{rates[name]:>12,.1f}  pairs of integers a second: {name}")
    return rates


def math_golds(limit: int | None) -> list[str]:
    """The distinct answers of MATH in their order, or a fixed sample of them.

    Args:
        limit: The size of the sample; `None`: all answers.

    Raises:
        ProblemsUnavailable: If `RETOOL_DATA` does not name a folder with MATH. The Hub is not
            asked.
    """
    if not os.environ.get(FOLDER_VARIABLE):
        raise ProblemsUnavailable(f"{FOLDER_VARIABLE} is not set; set it to the folder with MATH")
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
    r"""The gold with spaces around operators and commas.

    The inside of `\text{}`, the names of commands and digit groups are unchanged.
    """
    text = r"\\(?:text|mbox|textbf|mathrm)\s*\{[^{}]*\}"
    kept = rf"{text}|\\[A-Za-z]+|\\.|\{{,\}}|[0-9],(?:\\!)?(?=[0-9]{{3}})"
    return re.sub(rf"{kept}|([-+=,<>])", lambda m: f" {m[1]} " if m[1] else m[0], gold, flags=re.S)


def growing_brackets(gold: str) -> str:
    r"""The gold with `\left` before opening brackets and `\right` before closing brackets.

    A gold with unbalanced brackets, or with a `\left`, `\right` or `\text`, is unchanged. The two
    brackets of an interval may differ: `\left[0,1\right)`.
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
        lambda m: (r"\left" if m[0] in "([" else r"\right") + m[0],
        gold,
    )


REWRITINGS = {
    r"\displaystyle": lambda gold: rf"\displaystyle {gold}",
    r"\dfrac": lambda gold: re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", gold),
    "spaces": spaced,
    r"\left, \right": growing_brackets,
}
"""Rewritings of an expression that keep its meaning, by name."""


def rewritings_part(golds: list[str], grader: OurGrader, peer: MathVerify) -> dict[str, Any]:
    """Part `rewritings`: grade rewritten golds against the original golds.

    Args:
        golds: The golds, without plain integers.
        grader: The grader of this project.
        peer: math-verify.

    Returns:
        `by_rewriting`: accepted answers and mean milliseconds; `mean_ms` of each grader; `refused`:
        the pairs that our grader rejects.
    """
    by_rewriting: dict[str, Any] = {}
    print(f"{'rewritten':<18}{'answers':>8}{'accepted by ours, ms':>24}{'by math-verify, ms':>24}")
    refused = []
    times: dict[str, list[float]] = {"ours": [], "math-verify": []}
    for name, rewrite in REWRITINGS.items():
        pairs = [(rewritten, gold) for gold in golds if (rewritten := rewrite(gold)) != gold]
        row: dict[str, Any] = {"answers": len(pairs)}
        # The graders take turns, so that other work on the machine slows both down alike.
        graded = [{"ours": grader.grade(*pair), "math-verify": peer.grade(*pair)} for pair in pairs]
        for who in times:
            seconds = [both[who][1] for both in graded]
            times[who] += seconds
            row[who] = {
                "accepted": sum(both[who][0] is True for both in graded),
                "mean_ms": _mean_ms(seconds),
            }
        refused += [pair for pair, both in zip(pairs, graded, strict=True) if not both["ours"][0]]
        by_rewriting[name] = row
        cells = [f"{row[who]['accepted']}, {row[who]['mean_ms']:.2f}" for who in times]
        print(f"{name:<18}{len(pairs):>8}" + "".join(f"{cell:>24}" for cell in cells))
    means = {who: _mean_ms(seconds) for who, seconds in times.items()}
    print(f"mean ms a grade: ours {means['ours']}, math-verify {means['math-verify']}")
    _print_pairs("refused by ours", refused)
    return {"by_rewriting": by_rewriting, "mean_ms": means, "refused": refused}


def _mean_ms(seconds: list[float]) -> float:
    return round(1000 * sum(seconds) / len(seconds), 3) if seconds else 0.0


# --- Answers that must be rejected --------------------------------------------------------------


def plus_one(gold: str) -> str:
    """The gold plus one."""
    return str(int(gold) + 1) if is_integer(gold) else f"({gold})+1"


def others_part(golds: list[str], grader: OurGrader, peer: MathVerify) -> dict[str, Any]:
    """Part `others`: grade answers that differ from the gold, and list the accepted pairs.

    Args:
        golds: The golds.
        grader: The grader of this project.
        peer: math-verify.
    """
    following = zip(golds[1:] + golds[:1], golds, strict=True)
    pairs = {"the next gold": list(following), "the gold + 1": [(plus_one(g), g) for g in golds]}
    figures: dict[str, Any] = {}
    for name, several in pairs.items():
        both = accepted(several, grader, peer)
        figures[name] = {"answers": len(several), **both}
        print(
            f"{name}: of {len(several)} answers are accepted {len(both['ours'])} by ours, "
            f"{len(both['math-verify'])} by math-verify"
        )
        for who, passed in both.items():
            _print_pairs(f"accepted by {who}", passed)
    return figures


def accepted(pairs: list[Pair], grader: OurGrader, peer: MathVerify) -> dict[str, list[Pair]]:
    """Grade pairs with both graders at the same time.

    Args:
        pairs: Answers and golds.
        grader: The grader of this project.
        peer: math-verify.

    Returns:
        The accepted pairs by grader: `ours` and `math-verify`.
    """

    def ask(grader: OurGrader | MathVerify) -> list[Pair]:
        return [pair for pair in pairs if grader.grade(*pair)[0]]

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(("ours", "math-verify"), pool.map(ask, (grader, peer)), strict=True))


def templates_part(grader: OurGrader, peer: MathVerify) -> dict[str, Any]:
    """Part `templates`: grade each template against each gold, and list the templates that earn."""
    templates, golds = reward_templates(), single_golds()
    pairs = list(itertools.product(templates, golds))
    figures: dict[str, Any] = {"templates": len(templates), "golds": len(golds)}
    for who, earned in accepted(pairs, grader, peer).items():
        figures[who] = {"earning_templates": len({t for t, _ in earned}), "earned": earned}
        print(
            f"of {len(templates)} templates, {figures[who]['earning_templates']} earn with {who}, "
            f"at {len(earned)} of {len(pairs)} pairs with {len(golds)} golds"
        )
        if who == "ours":
            _print_pairs("earned", earned)
    return figures


# --- The command --------------------------------------------------------------------------------


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 60 else repr(f"{text[:40]} ... {text[-15:]}")


def _print_pairs(label: str, pairs: list[Pair]) -> None:
    for answer, gold in pairs[:MOST_SHOWN]:
        print(f"  {label}: {_shown(answer)} for {_shown(gold)}")
    if len(pairs) > MOST_SHOWN:
        print(f"  and {len(pairs) - MOST_SHOWN} more")


PARTS = ("cases", "speed", "rewritings", "others", "templates")


Part = Callable[[OurGrader, MathVerify], dict[str, Any]]


def planned_parts(options: argparse.Namespace) -> dict[str, Part]:
    """The selected parts, with their files read. A part without its data is reported and left out.

    Raises:
        ValueError: If a file is malformed. The message names file and line.
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
            if part == "others":
                plan[part] = functools.partial(others_part, golds)
            else:
                expressions = [gold for gold in golds if not is_integer(gold)]
                plan[part] = functools.partial(rewritings_part, expressions)
    return plan


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="folder of PROJECT.jsonl files")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="(all; cases needs FOLDER)")
    parser.add_argument("--set-aside", type=Path, help="file of mistaken cases")
    parser.add_argument("--wrong", type=Path, help="file for wrongly graded cases")
    parser.add_argument("--golds", type=int, help="size of the sample of MATH (all)")
    parser.add_argument("--out", type=Path, help="the JSON file of the figures (none)")
    options = parser.parse_args(arguments)
    options.parts = options.parts or [part for part in PARTS if part != "cases" or options.folder]
    if "cases" in options.parts and options.folder is None:
        parser.error(
            "the part cases needs FOLDER: a folder with one file PROJECT.jsonl per project"
        )
    if options.golds is not None and options.golds < 2:
        parser.error("--golds must be at least 2")
    try:
        plan = planned_parts(options)
    except ValueError as error:
        parser.error(str(error))
    figures = {}
    if plan:
        with closing(OurGrader()) as grader, closing(MathVerify()) as peer:
            for name, part in plan.items():
                print(f"{name}:", flush=True)
                figures[name] = part(grader, peer)
    if options.out:
        settings = {"golds": options.golds, "patience_s": PATIENCE}
        write_results(options.out, {"settings": settings, "parts": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
