"""`retool eval`: avg@k of a model, local or behind an API, and how it used its tool."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from retool_env.commands.checkpoints import add_ignore, say
from retool_env.commands.contamination import add_model_date, contamination
from retool_env.commands.eval_plan import (
    MADE_UP,
    Plan,
    estimate,
    folders_below,
    make_plan,
    make_record,
    new_folder,
)
from retool_env.commands.eval_settings import MAX_TOKENS, api_fields, policy_maker
from retool_env.commands.keys import refuse_key
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings, parse_value
from retool_env.servers.address import check_no_secrets

if TYPE_CHECKING:
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.folder import Records
    from retool_env.evaluation.run import Job
    from retool_env.metrics.figures import Figure
    from retool_env.metrics.summary import Summary


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "eval", help="avg@k of a model on an environment's problems", allow_abbrev=False
    )
    parser.add_argument(
        "--env",
        action="append",
        help="an environment's id, such as ReTool-AIME24-v0; repeat the option for several "
        "(the id in the model's retool.json)",
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        help="a checkpoint's folder, a Hub id, or a name at --api; repeat the option for several",
    )
    parser.add_argument(
        "--api", metavar="URL", help="the address that serves the model: http://localhost:8000/v1"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the API's key"
    )
    refuse_key(parser, "--api-key", "--api-key-env NAME")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--native-tools", action="store_true", help="behind an API: native tool calls, not tags"
    )
    ways.add_argument(
        "--completions", action="store_true", help="behind an API: no chat, for base models"
    )
    parser.add_argument("--k", type=int, default=4, help="episodes for each problem (4)")
    parser.add_argument(
        "--problems",
        type=int,
        help=f"the number of problems, from the first on (all; {MADE_UP} of generated problems)",
    )
    parser.add_argument("--text-only", action="store_true", help="without the interpreter")
    parser.add_argument(
        "--sandbox",
        type=parse_value,
        default="nsjail",
        help="nsjail, unsafe, the URLs of sandbox servers, or a mapping of make_sandbox's "
        "arguments (nsjail)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        help="tokens of a response; behind an API, tokens of a turn (the checkpoint's, or "
        f"{MAX_TOKENS})",
    )
    for option, default in (("temperature", "1.0"), ("top-p", "0.7")):
        group = parser.add_mutually_exclusive_group()
        group.add_argument(
            f"--{option}", type=float, help=f"(the checkpoint's, or the paper's: {default})"
        )
        group.add_argument(
            f"--no-{option}",
            action="store_true",
            help=f"behind an API: leave {option.replace('-', '_')} out of the requests",
        )
    parser.add_argument(
        "--api-arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="behind an API: a further field of the requests, its value as JSON or text; repeat "
        "the option for several",
    )
    parser.add_argument(
        "--batch", type=int, default=32, help="episodes sampled together, or requests at once (32)"
    )
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ...")
    parser.add_argument(
        "--engine",
        default="transformers",
        help="transformers, vllm, or the URLs of servers that run `vllm serve` (transformers)",
    )
    parser.add_argument(
        "--engine-arg",
        action="append",
        metavar="NAME=VALUE",
        help="an argument of the engine, such as tensor_parallel_size=2; repeat the option for "
        "several",
    )
    parser.add_argument("--seed", type=int, default=0, help="the seed of all sampling (0)")
    _add_record_options(parser)
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )
    add_ignore(parser)
    add_model_date(parser)


def _add_record_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="the evaluation's name: its folder is runs/eval/NAME")
    parser.add_argument("--out", type=Path, help="the folder, in place of runs/eval/NAME")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the evaluation of --name or --out; a larger --k or --problems adds episodes",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="with --resume: run episodes again that an infrastructure failure ended",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --resume: continue an evaluation of another revision of the environment",
    )
    parser.add_argument(
        "--max-failed",
        type=_share,
        default=0.05,
        metavar="SHARE",
        help="the exit status is 1 if a larger share of the episodes failed (5%%)",
    )
    parser.add_argument(
        "--price",
        metavar="IN,OUT[,CACHED]",
        help="dollars for a million tokens read, written, and read from the API's cache",
    )
    parser.add_argument(
        "--limit-cost",
        type=float,
        metavar="DOLLARS",
        help="begin no further episode once this is spent; needs --price",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the number of episodes, the most tokens and the price, and stop",
    )


def _share(text: str) -> float:
    """A share from a command line: `0.05` or `5%`."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, such as 0.05 or 5%")
    return share


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool eval`."""
    from retool_env.evaluation.cost import Price

    price = None if arguments.price is None else Price.parse(arguments.price)
    _check(arguments, price)
    plans = [
        make_plan(arguments, model, env)
        for model, env in itertools.product(arguments.model, arguments.env or [None])
    ]
    problems = {plan.arguments.env: plan.problems for plan in plans}
    say(contamination(problems, arguments.model_date))
    folder = new_folder(arguments, plans[0])
    folders = [folder] if len(plans) == 1 else folders_below(folder, plans)
    if arguments.dry_run:
        for plan, out in zip(plans, folders, strict=True):
            ended = _on_record(plan, out)
            print(f"{plan.arguments.env}, {plan.title}: {estimate(plan, price, ended)}")
        return 0
    makers = [policy_maker(plan.arguments, plan.rules) for plan in plans]  # slow: after all checks
    results: dict[str, _Result] = {}
    for plan, make, out in zip(plans, makers, folders, strict=True):
        say(plan.lines)
        title = plan.title
        title += f", {plan.arguments.env}" * (len(arguments.env or ()) > 1)
        for mark in (plan.model.fingerprint, len(results) + 1):  # copies share a fingerprint
            title += f" ({mark})" * bool(mark and title in results)
        results[title] = _evaluated(plan, make, out, price)
    _show(plans, results)
    print(f"episodes and figures: {folder}")
    faults = [result.fault for result in results.values() if result.fault]
    for fault in faults:
        print(f"retool eval: {fault}", file=sys.stderr)
    return int(bool(faults))


def _on_record(plan: Plan, out: Path) -> dict[tuple[str, int], bool]:
    """The episodes that a resumed evaluation has on record, each with whether it failed."""
    from retool_env.evaluation.folder import ended_before

    if not plan.arguments.resume:
        return {}
    return ended_before(out, make_record(plan, out.name, None), plan.problems, plan.arguments.force)


def _check(arguments: argparse.Namespace, price: Price | None) -> None:
    """Check options that concern no model.

    Raises:
        SettingsError: An option is out of range, or lacks another option.
    """
    for name, number in (("--k", arguments.k), ("--problems", arguments.problems)):
        if number is not None and number < 1:
            raise SettingsError(f"{name} must be at least 1, not {number}")
    limit = arguments.limit_cost
    if limit is not None and (price is None or not 0 < limit < math.inf):
        raise SettingsError("--limit-cost must be above 0, and needs --price")
    if arguments.resume and not (arguments.name or arguments.out):
        raise SettingsError("--resume needs the evaluation's --name, or its folder as --out")
    for option in ("retry_failed", "force"):
        if getattr(arguments, option) and not arguments.resume:
            raise SettingsError(f"--{option.replace('_', '-')} goes with --resume")
    below = Path(arguments.name or "x")
    if below.is_absolute() or ".." in below.parts or not below.parts:
        raise SettingsError(f"--name must be a name below runs/eval, not {arguments.name!r}")
    given = parse_settings(arguments.settings)
    check_no_secrets({"--sandbox": arguments.sandbox, "settings": given})
    api_fields(arguments)


@dataclass(frozen=True)
class _Result:
    """The result of one model on one environment."""

    summary: Summary
    figures: list[Figure]
    seconds: float
    """Seconds of work, all starts together."""
    usage: str
    """Tokens and dollars for a reader; empty for a local model."""
    fault: str
    """The reason for the exit status 1; empty where everything went well."""


def _evaluated(plan: Plan, make: Callable[[], Any], out: Path, price: Price | None) -> _Result:
    """Runs what is left of an evaluation, and computes the figures of all its episodes."""
    from retool_env.evaluation.folder import Records
    from retool_env.evaluation.results import measured

    arguments = plan.arguments
    record = make_record(plan, out.name, price)
    records = Records(out, record, plan.problems, arguments.resume, arguments.force)
    jobs = plan.jobs(records.ended)
    if arguments.resume:
        say([f"{len(records.ended)} episodes are on record, {len(jobs)} are left"])
    with _terminable(), _closing(records, plan, price) as finish:
        complete = not jobs or _run(plan, make, records, jobs, price)
        figures, summary = measured(out, plan.problems, arguments.k, price)
        records.write_figures(figures, summary)
        finish(complete)
    spent = 0.0 if price is None else price.of(records.usage)
    usage = str(records.usage) if records.usage.requests else ""
    usage += f", ${spent:,.2f}" if price and usage else ""
    fault = _fault(plan, records, complete, price)
    return _Result(summary, figures, records.record.seconds, usage, fault)


def _fault(plan: Plan, records: Records, complete: bool, price: Price | None) -> str:
    """The reason for the exit status 1, with its remedy; empty where there is no reason.

    Args:
        plan: The plan of the evaluation.
        records: The records of the evaluation.
        complete: Whether every episode has run.
        price: Dollars of an API's tokens; `None`: unknown.
    """
    arguments = plan.arguments
    keys = plan.keys  # the folder may hold more samples and problems than this command names
    ended = {key: failed for key, failed in records.ended.items() if key in keys}
    if not complete:
        spent = 0.0 if price is None else price.estimated(records.usage)
        if spent == math.inf:
            return (
                "--limit-cost can't be held, since no answer of the API says how many tokens it "
                f"took; {len(ended)} of {len(keys)} episodes are done: go on with --resume and "
                "without the limit"
            )
        return (
            f"${spent:,.2f} of --limit-cost {arguments.limit_cost:g} are spent, and {len(ended)} "
            f"of {len(keys)} episodes are done: go on with --resume and a higher limit"
        )
    failed = sum(ended.values())
    if failed <= arguments.max_failed * len(ended):
        return ""
    return (
        f"{failed} of {len(ended)} episodes of {plan.title} failed, which is more than "
        f"--max-failed {arguments.max_failed:.1%}: the warnings above say why; run them again with "
        "--resume --retry-failed"
    )


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Ends the block by SIGTERM and SIGHUP as by Ctrl-C, unless the signals are ignored.

    A cluster's scheduler sends SIGTERM at the end of a job's time, a lost terminal SIGHUP.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell starts jobs in the background so
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    names = ("SIGTERM", "SIGHUP")  # Windows has the first alone
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    inside = threading.current_thread() is threading.main_thread()
    taken = [n for n in numbers if inside and signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def _closing(records: Records, plan: Plan, price: Price | None) -> Iterator[Callable[[bool], None]]:
    """Writes how an evaluation ended, and says how to go on if it was stopped.

    The block receives a function that it calls with whether every episode has run.
    """
    began = time.monotonic()

    def finish(complete: bool) -> None:
        cost = None if price is None else price.of(records.usage)
        seconds = time.monotonic() - began
        records.close("finished" if complete else "stopped", seconds, cost)

    try:
        yield finish
    except BaseException:
        with contextlib.suppress(OSError):  # a full disk: the error that ended the work says so
            finish(False)
        keys = plan.keys
        if records.ended or records.usage.requests:
            options = f"--resume --out {shlex.quote(str(records.folder))}"
            kept = len(keys & records.ended.keys())
            print(
                f"{kept} of {len(keys)} episodes are kept in {records.folder}; give the command "
                f"again with {options}",
                file=sys.stderr,
            )
        else:
            records.remove()
        raise


def _run(
    plan: Plan, make: Callable[[], Any], records: Records, jobs: list[Job], price: Price | None
) -> bool:
    from retool_env.evaluation.records import EpisodeRecord
    from retool_env.evaluation.run import run_jobs
    from retool_env.interpreter import open_sandbox
    from retool_env.rollout.engine import RolloutEngine
    from retool_env.rollout.policy import TextPolicy, Usage
    from retool_env.rollout.progress import Progress, shown
    from retool_env.transcript import Transcript

    arguments = plan.arguments

    def on_end(
        job: Job, transcript: Transcript, usage: Usage | None, error: str | None = None
    ) -> None:
        key = (arguments.model, job.problem.id, job.sample, arguments.seed)
        records.append(EpisodeRecord(*key, transcript, usage, error))

    def going_on() -> bool:
        limit = arguments.limit_cost
        return price is None or limit is None or price.estimated(records.usage) < limit

    with open_sandbox(arguments.sandbox, plan.rules) or contextlib.nullcontext() as sandbox:
        # Twice the batch of a local model: while programs of some episodes run, others fill it. No
        # more, since episodes that have begun and are not finished are lost with a killed process.
        concurrency = arguments.batch if arguments.api else 2 * arguments.batch
        progress = Progress()
        with make() as policy:
            if isinstance(policy, TextPolicy):
                policy.on_usage = records.charge
                policy.on_answered_as = records.note_answer
                policy.on_left_out = records.note_left_out
            engine = RolloutEngine(policy, plan.rules, sandbox, concurrency, progress=progress)
            with shown(progress):
                answered = not all(records.ended.values())
                return run_jobs(engine, jobs, arguments.seed, on_end, going_on, on_end, answered)


def _show(plans: Sequence[Plan], results: dict[str, _Result]) -> None:
    from retool_env.metrics.tables import highlights, table, tool_table

    summaries = {title: result.summary for title, result in results.items()}
    environments = ", ".join(dict.fromkeys(plan.arguments.env for plan in plans))
    counts = {len(plan.problems) for plan in plans}
    size = f"{counts.pop()} problems" if len(counts) == 1 else "several numbers of problems"
    seconds = sum(result.seconds for result in results.values())
    print(f"\n{environments}, avg@{plans[0].arguments.k}, {size}, {seconds:.1f} s\n")
    print(table(summaries))
    if any(summary.calls for summary in summaries.values()):
        print(f"\n{tool_table(summaries)}")
    for title, result in results.items():
        label = f" of {title}" * (len(results) > 1)
        for line in highlights(result.figures):
            print(f"\n{line}" if not label else f"\n{title}: {line}")
        reasons = ", ".join(f"{name} {n}" for name, n in result.summary.stop_reasons.items())
        print(f"\nstop reasons{label}: {reasons}")
        if result.usage:
            print(f"used{label}: {result.usage}")
