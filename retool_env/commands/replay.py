"""`retool replay`: recorded episodes, run, checked and rendered anew without a model."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import SettingsError
from retool_env.printable import one_line, printable

if TYPE_CHECKING:
    from retool_env.evaluation.replay.episodes import Recorded
    from retool_env.evaluation.runs import Run

MOST_LINES = 40
"""The largest number of lines of a difference that the command prints."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "replay",
        help="a recorded run: programs run anew, invariants checked, turns rendered",
        description="Without --call, --protocol and --template, the programs of the episodes run "
        "anew and the invariants of their records are checked. In a clone, `retool replay RUN "
        "--algorithm NAME` forwards to `python -m agents replay`.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder, RUN@STEP, or a file")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="ADDRESS or key=value",
        help="the addresses of episodes (all), and settings in place of the recorded ones",
    )
    parser.add_argument("--sandbox", default="nsjail", help="nsjail, unsafe, or URLs (nsjail)")
    parser.add_argument("--limit", type=int, help="the number of episodes, from the first on (all)")
    parser.add_argument("--strict", action="store_true", help="exit status 1 if a result differs")
    parser.add_argument(
        "--no-programs", action="store_true", help="check the invariants, and run no program"
    )
    parser.add_argument(
        "--call", type=int, help="run the program of one call, and print its output"
    )
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="with --call: its time limit (60)"
    )
    parser.add_argument("--protocol", help="print the episodes in another protocol: hermes, tags")
    parser.add_argument(
        "--template",
        metavar="FILE|MODEL",
        help="print the episodes through the chat template of a file or of a model's tokenizer",
    )
    parser.add_argument(
        "--algorithm",
        help="in a clone, of a training run: advantages and losses by another algorithm; settings "
        "are the algorithm's",
    )
    parser.add_argument(
        "--out", type=Path, help="with --protocol or --template: a file of JSON lines to write"
    )


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool replay`."""
    from retool_env.commands.clone import forward
    from retool_env.evaluation.runs import open_run
    from retool_env.key_values import parse_settings

    if arguments.algorithm is not None:
        words = ["replay", arguments.run, "--algorithm", arguments.algorithm, *arguments.words]
        return forward("retool replay --algorithm", words)
    opened = open_run(arguments.run)
    # Every address has a slash, and a setting has none before its equals sign.
    settings = [word for word in arguments.words if re.match(r"[^/=]+=", word)]
    arguments.addresses = [word for word in arguments.words if word not in settings]
    arguments.settings = parse_settings(settings)
    _check(arguments)
    if arguments.call is not None:
        return _run_call(arguments, opened)
    if arguments.protocol or arguments.template:
        return _render(arguments, opened)
    return _replay(arguments, opened)


def _check(arguments: argparse.Namespace) -> None:
    rendering = bool(arguments.protocol or arguments.template)
    if arguments.out is not None and not rendering:
        raise SettingsError("--out goes with --protocol or --template")
    if arguments.out is not None and arguments.out.exists():
        raise SettingsError(f"{arguments.out} exists already: remove it, or name another file")
    if arguments.call is not None and (rendering or len(arguments.addresses) != 1):
        raise SettingsError("--call runs one program: name the address of one episode")
    if arguments.limit is not None and arguments.limit < 1:
        raise SettingsError(f"--limit must be at least 1, not {arguments.limit}")


def _run_call(arguments: argparse.Namespace, opened: Run) -> int:
    from retool_env.evaluation.replay import run_call

    [address] = arguments.addresses
    execution = run_call(opened, address, arguments.call, arguments.seconds, arguments.sandbox)
    output = printable(execution.stdout)
    print(output, end="\n" * (output[-1:] not in ("", "\n")))
    if execution.error:
        print(printable(execution.traceback or execution.error))
    print(f"{execution.outcome} after {execution.duration:.2f} s", file=sys.stderr)
    return 0


def _recorded(arguments: argparse.Namespace, opened: Run, tokens: bool) -> Iterator[Recorded]:
    from retool_env.evaluation.replay.episodes import recorded_episodes

    chosen = (arguments.addresses, arguments.settings, arguments.limit)
    return recorded_episodes(opened, *chosen, tokens=tokens)


def _replay(arguments: argparse.Namespace, opened: Run) -> int:
    from retool_env.evaluation.progress import counted, on_stderr
    from retool_env.evaluation.replay.episodes import replay

    sandbox = None if arguments.no_programs else arguments.sandbox
    episodes = replay(_recorded(arguments, opened, tokens=True), sandbox)
    counts: Counter[tuple[str, str]] = Counter()
    reasons: Counter[str] = Counter()
    number = violated = unknown = 0
    for episode in counted(episodes, "episodes are replayed", on_stderr):
        number += 1
        address = one_line(episode.recorded.address, 200)
        violated += bool(episode.violations)
        unknown += not episode.recorded.rules.known
        for violation in episode.violations:
            print(f"{address}: violated: {printable(str(violation))}")
        for program in episode.programs:
            counts[str(program.recorded.outcome), program.verdict] += 1
            reasons[program.reason] += program.verdict == "not comparable"
            if program.verdict == "differs":
                print(f"{address}: call {program.number} differs")
                print(_first_lines(program.difference))
    print(f"{number} episode{'s' * (number != 1)}, {violated} with a violated invariant")
    if unknown:
        print(
            f"the record holds no rules of {unknown} episodes: budgets, the texts of results and "
            "rewards are not checked, and programs ran with the default limits; name others as "
            "key=value"
        )
    if counts:
        print(f"\n{_table(counts)}")
    elif sandbox is not None:
        print("these episodes ran no program, so no result was compared")
    for reason, count in reasons.most_common():
        if count:
            print(f"not comparable, {count}: {one_line(reason, 200)}")
    differing = any(verdict == "differs" for _, verdict in counts)
    return int(bool(violated) or (arguments.strict and differing))


def _first_lines(difference: str) -> str:
    lines = difference.splitlines()
    more = len(lines) - MOST_LINES
    shown = [f"    {printable(line):.200}" for line in lines[:MOST_LINES]]
    return "\n".join([*shown, f"    … {more} more lines"] if more > 0 else shown)


def _table(counts: Counter[tuple[str, str]]) -> str:
    """The number of programs by their recorded outcome and the verdict."""
    from retool_env.evaluation.replay.programs import VERDICTS
    from retool_env.metrics.tables import markdown

    outcomes = sorted({outcome for outcome, _ in counts})
    rows = {outcome: [counts[outcome, verdict] for verdict in VERDICTS] for outcome in outcomes}
    rows["all"] = [sum(numbers) for numbers in zip(*rows.values(), strict=True)]
    cells = [[outcome, *map(str, numbers)] for outcome, numbers in rows.items()]
    return markdown([["recorded outcome", *VERDICTS], *cells])


def _render(arguments: argparse.Namespace, opened: Run) -> int:
    from retool_env.evaluation.replay.rendering import chat_tokenizer, rendered

    tokenizer = None
    if arguments.template:
        tokenizer = chat_tokenizer(arguments.template, opened)
    lines = []
    for recorded in _recorded(arguments, opened, tokens=False):
        transcript, rules = recorded.transcript, recorded.rules.rules
        made = rendered(transcript, rules, arguments.protocol or transcript.protocol, tokenizer)
        for note in made.notes:
            print(f"{one_line(recorded.address, 200)}: {printable(note)}", file=sys.stderr)
        if arguments.out is None:
            print(f"=== {one_line(recorded.address, 200)}\n{printable(made.text)}")
            continue
        head = {"address": recorded.address, "problem": transcript.problem.id}
        lines.append(json.dumps({**head, "correct": transcript.correct, **made.to_json()}) + "\n")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text("".join(lines), encoding="utf-8")
        print(f"{len(lines)} episodes without token ids: {arguments.out}")
    return 0
