"""The language of the recovery study: how a tiny model calls, errs, retries, checks and gives up.

A problem is worked out value by value. For each value of a staged problem a program repeats its
definition in a comment, since a tiny model learns to copy it long before it learns to find the
operation otherwise, and prints the value with its name. If the interpreter shows an error, nothing,
or a result of another form, the solution retries the same program, or computes the value by a
second program that uses other functions, or works the rest out in text. A solution that checks also
runs the second program after a result that looks right, and if the values differ, the first program
again.

A script writes such solutions for the cold start (`make_traces`). Their programs run in the real
sandbox, under real faults of the seen kinds alone; solutions with a wrong answer are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from agents.base.presets import read_preset
from agents.base.records import write_atomically, write_transcripts_atomically
from agents.base.settings import find_sandbox, find_task
from agents.models.tiny import TAGS, make_model, make_tokenizer
from agents.traces.scripted import answer, code, program_steps, text_steps
from benchmarks.parts.study_larger import LARGER_PRESET
from benchmarks.parts.study_plan import COLD_RATE, PRESET, SEEN
from benchmarks.parts.study_words import programs_of
from retool_env.episode import Tokenizer
from retool_env.execution import Sandbox
from retool_env.problem import Problem
from retool_env.problems.procedural import arithmetic
from retool_env.problems.staged import read_stages, staged
from retool_env.problems.words import words
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rules import Rules
from retool_env.transcript import Transcript

Writer = Generator[str, str, None]
"""A solution: yields turns, and receives the text of each result."""

PROGRAMS: Mapping[str, tuple[str, str]] = {
    "product": ("print({name} {0} * {1})", "print({1} * {0})"),
    "product_less": ("print({name} {0} * {1} - {2})", "print(-{2} + {1} * {0})"),
    "product_more": ("print({name} {0} * {1} + {2})", "print({2} + {1} * {0})"),
    "sum": ("print({name} {0} + {1})", "print({1} + {0})"),
    "power_remainder": ("print({name} pow({0}, {1}, {2}))", "print({0} ** {1} % {2})"),
    "remainder": ("print({name} {0} % {1})", "print(divmod({0}, {1})[1])"),
    "squares": (
        "print({name} sum(n * n for n in range({0}, {1} + 1)))",
        "s = 0\nfor n in range({0}, {1} + 1):\n    s += n * n\nprint(s)",
    ),
    "multiples": (
        "print({name} sum(range({1}, {0} + 1, {1})))",
        "s = 0\nfor n in range(1, {0} + 1):\n    s += n * (n % {1} == 0)\nprint(s)",
    ),
    "gcd": (
        "from sympy import igcd\nprint({name} igcd({0}, {1}))",
        "from math import gcd\nprint(gcd({0}, {1}))",
    ),
    "lcm": (
        "from sympy import ilcm\nprint({name} ilcm({0}, {1}))",
        "from math import lcm\nprint(lcm({0}, {1}))",
    ),
    "digit_sum": (
        "print({name} sum(map(int, str({0}))))",
        "n, s = {0}, 0\nwhile n:\n    n, s = n // 10, s + n % 10\nprint(s)",
    ),
    "divisors": (
        "from sympy import divisor_count\nprint({name} divisor_count({0}))",
        "n = {0}\nk = range(1, int(n ** 0.5) + 1)\n"
        "print(sum((d * d < n) + 1 for d in k if n % d == 0))",
    ),
    "largest_prime": (
        "from sympy import factorint\nprint({name} max(factorint({0})))",
        "n, p = {0}, 2\nwhile p * p <= n:\n    if n % p:\n        p += 1\n"
        "    else:\n        n //= p\nprint(n)",
    ),
    "prime_sum": (
        "from sympy import factorint\nf = factorint({0})\nprint({name} sum(p * f[p] for p in f))",
        "n, p, s = {0}, 2, 0\nwhile p * p <= n:\n    if n % p:\n        p += 1\n"
        "    else:\n        n, s = n // p, s + p\nprint(s + n)",
    ),
}
"""The two programs of each operation of a stage. The first prints the value with its name."""

CONTEXT = 1024
"""The context length of the study's model in tokens."""
_HOLES = re.compile(r"Let |\{\w+\}|\d+|\b[a-e]\b")
_LEAST = 4
_MOST_TRIES = 3


def words_of(problems: Sequence[Problem]) -> tuple[str, ...]:
    """The strings of the language that are one token each: pieces of programs and of questions.

    The pieces are the text between the numbers and the names of values. Texts of errors and of
    faults are not among them, so seen and held-out kinds are read in the same way, by bytes.

    Args:
        problems: Training problems, whose questions give the pieces of questions.
    """
    texts = [text for pair in PROGRAMS.values() for text in pair]
    texts += [problem.question for problem in problems]
    pieces = {piece for text in texts for piece in _HOLES.split(text) if len(piece) >= _LEAST}
    # "Let " alone: the comments of programs and the questions then have the same tokens.
    pieces |= {"Let ", "# ", ". ", 'print("', '" =, ', "print(s)", "print(n)"}
    return tuple(sorted(pieces - set(TAGS)))


@dataclass(frozen=True)
class Value:
    """A value that a problem asks for on the way to its answer."""

    name: str
    """The name that the first program prints."""
    programs: tuple[str, str]
    """The first and the second program, with fields such as `{a}` for earlier values."""
    value: int
    """The true value."""
    text: str
    """The lines that work the value out in text, with the same fields; empty: only the value."""


def values_of(problem: Problem) -> list[Value]:
    """The values of an arithmetic, a staged or a word problem, in order.

    Raises:
        ValueError: If the problem is of another kind.
    """
    if stages := read_stages(problem):
        found = []
        for stage in stages:
            operands = [f"{{{each}}}" if isinstance(each, str) else each for each in stage.operands]
            first, second = (
                f"# {stage.text}\n" + program.format(*operands, name=f'"{stage.name} =",')
                for program in PROGRAMS[stage.operation]
            )
            found.append(Value(stage.name, (first, second), stage.value, ""))
        return found
    if programs := programs_of(problem):
        return [Value("x", programs, int(problem.answer), "")]
    if "expression" not in problem.metadata:
        raise ValueError(f"{problem.id} can't be solved by a script: it has no expression")
    expression = str(problem.metadata["expression"])
    lines, value = text_steps(expression)
    programs = f'print("x =", {expression})', program_steps(expression)
    return [Value("x", programs, value, "".join(f"{line}\n" for line in lines))]


@dataclass(frozen=True)
class Habits:
    """The shares of a script's choices. The cold-started model has about these habits."""

    text: float = 0.15
    """Share of solutions in text alone."""
    check: float = 0.25
    """Share of solutions that check each value by the second program."""
    slip: float = 0.08
    """Share of first programs with a slip: an open bracket or a misspelt name."""
    retry: float = 0.4
    """After trouble: share of retries of the same program."""
    second: float = 0.3
    """After trouble: share of changes to the second program. The rest goes on in text."""


def write(problem: Problem, habits: Habits, rng: random.Random) -> Writer:
    """A solution of a problem, turn by turn.

    Args:
        problem: An arithmetic or a staged problem.
        habits: The shares of the choices.
        rng: The random numbers of the choices.
    """
    values = values_of(problem)
    if rng.random() < habits.text:
        yield _in_text(values)
        return
    checks = rng.random() < habits.check
    known: dict[str, int] = {}
    for number, value in enumerate(values):
        first, second = (program.format(**known) for program in value.programs)
        found = yield from _value(value, first, second, checks, habits, rng)
        if found is None:
            right = all(known[each.name] == each.value for each in values[:number])
            # With a false value before it, the text would not follow from the results.
            yield _in_text(values[number:]) if right else answer("0")
            return
        known[value.name] = found
    yield answer(str(known[values[-1].name]))


def _value(
    value: Value, first: str, second: str, checks: bool, habits: Habits, rng: random.Random
) -> Generator[str, str, int | None]:
    """The programs that find one value; returns `None` if the solution goes on in text."""
    slip = rng.random() < habits.slip
    program, seen = first, list[int]()
    for _ in range(_MOST_TRIES + 2 * checks):
        result = yield code(_slip(program, rng) if slip else program)
        slip = False
        number = read_value(result, value.name)
        if number is not None:
            seen.append(number)
            if not checks or seen.count(number) == 2:
                return number
            program = second if len(seen) == 1 else first
            continue
        chance = rng.random()
        if chance >= habits.retry + habits.second:
            return None
        # Without the package, the same program would fail again.
        same = chance < habits.retry and "No module" not in result
        program = program if same else second
    return seen[-1] if seen else None


def read_value(result: str, name: str) -> int | None:
    """The value that a result shows; `None` for an error, nothing, or another name.

    Args:
        result: The text of the result.
        name: The name of the value. The second programs print no name.

    Example:
        >>> read_value("b = 12", "b"), read_value("12", "b"), read_value("a = 12", "b")
        (12, 12, None)
    """
    # The last line: a harmless warning, or an empty line, may stand before or behind it.
    lines = result.strip().splitlines() or [""]
    shown = re.fullmatch(rf"(?:{name} = )?(-?\d+)", lines[-1].strip())
    return int(shown[1]) if shown else None


def _slip(program: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return program.removesuffix(")")
    return program.replace("print", "prnt")


def _in_text(values: Sequence[Value]) -> str:
    lines = [value.text or f"{value.name} = {value.value}\n" for value in values]
    return "".join(lines) + answer(str(values[-1].value))


def turns_of(writer: Writer) -> Callable[[str], str]:
    """The function for `ScriptedPolicy` that follows a solution."""
    begun = False

    def turn(text: str) -> str:
        nonlocal begun
        if not begun:
            begun = True
            return next(writer)
        results = re.findall(r"<interpreter>\n(.*?)\n?</interpreter>", text, flags=re.DOTALL)
        return writer.send(results[-1])

    return turn


def make_traces(
    problems: Sequence[Problem],
    habits: Habits,
    rules: Rules,
    tokenizer: Tokenizer,
    sandbox: Sandbox,
    seed: int,
) -> list[Transcript]:
    """Solve each problem once; solutions with a wrong answer are left out.

    Args:
        problems: Arithmetic and staged problems.
        habits: The shares of the script's choices.
        rules: The rules of the episodes, with the faults that the solutions meet.
        tokenizer: The tokenizer of the model to be trained.
        sandbox: The sandbox.
        seed: Seed of the choices.
    """

    async def trace(index: int, slots: asyncio.Semaphore) -> Transcript:
        writer = write(problems[index], habits, random.Random(f"{seed}/{index}"))
        async with slots:
            engine = RolloutEngine(ScriptedPolicy(turns_of(writer), tokenizer), rules, sandbox)
            return await engine.episode(problems[index], (seed, index))

    async def all_traces() -> list[Transcript]:
        slots = asyncio.Semaphore(64)
        return await asyncio.gather(*(trace(index, slots) for index in range(len(problems))))

    return [transcript for transcript in asyncio.run(all_traces()) if transcript.correct]


def training_problems(seed: int, count: int) -> list[Problem]:
    """Arithmetic and staged problems of the training split, in turn.

    Args:
        seed: The seed of the problems.
        count: The number of problems.
    """
    sums = arithmetic(seed, (1, 3, 4, 5), size=count)
    stages = staged(seed, (2, 3, 4, 5), size=count)
    return [(stages if index % 2 else sums)[index // 2] for index in range(count)]


def word_problems(
    seed: int, count: int, split: Literal["train", "test"] = "train"
) -> list[Problem]:
    """Sums and word problems of study C, in turn.

    Args:
        seed: The seed of the problems.
        count: The number of problems.
        split: The split.
    """
    sums = arithmetic(seed, (3, 4, 5), size=count, split=split)
    stories = words(seed, (1, 2), size=count, split=split)
    return [(stories if index % 2 else sums)[index // 2] for index in range(count)]


def language_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the study, the same for all seeds."""
    return make_tokenizer(words_of(training_problems(0, 600)), CONTEXT)


def make_files(folder: Path, seed: int, traces: int, problems: int) -> None:
    """Make the files with which a cold start and RL begin; files that exist stay.

    `model` is a model with random weights, `traces.jsonl` the traces of the cold start, and
    `problems.jsonl` the training problems of RL, which are other problems.

    Args:
        folder: The folder.
        seed: The seed.
        traces: The number of problems that the script solves.
        problems: The number of training problems of RL.

    Raises:
        SandboxUnavailable: If the sandbox can't work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model"
    tokenizer: Any = language_tokenizer()
    if not model.exists():
        weights, _ = make_model(seed, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            for each in (weights, tokenizer):
                each.save_pretrained(Path(scratch) / "model")
            (Path(scratch) / "model").rename(model)
    _write_problems(folder / "problems.jsonl", training_problems(2000 + seed, problems))
    _write_traces(folder, training_problems(1000 + seed, traces), PRESET, tokenizer, seed)


def make_word_files(folder: Path, model: Path, traces: int, problems: int, held_out: int) -> None:
    """Make the files of study C; files that exist stay.

    `held_out.jsonl` has the problems of the evaluation, which are of the split `test`.
    `problems.jsonl` and `traces.jsonl` are for RL and for the cold start, as in `make_files`.

    Args:
        folder: The folder.
        model: The folder of the model to be trained, for its tokenizer.
        traces: The number of problems that the script solves.
        problems: The number of training problems of RL.
        held_out: The number of problems of the evaluation.

    Raises:
        SandboxUnavailable: If the sandbox can't work here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _write_problems(folder / "problems.jsonl", word_problems(2000, problems))
    _write_problems(folder / "held_out.jsonl", word_problems(3000, held_out, "test"))
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    _write_traces(folder, word_problems(1000, traces), LARGER_PRESET, tokenizer, seed=0)


def _write_problems(path: Path, problems: Sequence[Problem]) -> None:
    if not path.exists():
        rows = [{"question": problem.question, "answer": problem.answer} for problem in problems]
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_traces(
    folder: Path, problems: Sequence[Problem], preset: Path, tokenizer: Tokenizer, seed: int
) -> None:
    if (folder / "traces.jsonl").exists():
        return
    env = read_preset(str(preset))["env"]
    faults = {"rate": COLD_RATE, "kinds": SEEN}
    path = str(folder / "problems.jsonl")
    rules, _ = find_task({**env, "path": path, "faults": faults})
    sandbox = find_sandbox("nsjail", rules)
    assert sandbox is not None  # the rules have an interpreter
    with sandbox:
        right = make_traces(problems, Habits(), rules, tokenizer, sandbox, seed)
    print(f"{len(right)} of {len(problems)} traces gave the right answer")
    write_transcripts_atomically(folder / "traces.jsonl", right)


def main(arguments: list[str] | None = None) -> int:
    """Make the files of a seed, or of study C, and return the exit status."""
    parser = argparse.ArgumentParser(description="Make the files of a seed, or of study C.")
    parser.add_argument("folder", type=Path, help="the folder of the files")
    parser.add_argument("--seed", type=int, default=0, help="the seed (0)")
    parser.add_argument("--traces", type=int, default=12_000, help="problems solved (12000)")
    parser.add_argument("--problems", type=int, default=4000, help="problems of RL (4000)")
    parser.add_argument(
        "--words", type=Path, metavar="MODEL", help="study C: the model that is trained"
    )
    parser.add_argument("--held-out", type=int, default=100, help="problems held out (100)")
    options = parser.parse_args(arguments)
    counts = options.traces, options.problems
    if options.words is None:
        make_files(options.folder, options.seed, *counts)
    else:
        make_word_files(options.folder, options.words, *counts, options.held_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
