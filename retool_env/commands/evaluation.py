"""`retool eval`: avg@k of a model, local or behind an API, and how it used its tool."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.commands.checkpoints import add_ignore, say
from retool_env.commands.contamination import add_model_date, contamination
from retool_env.commands.eval_plan import (
    MADE_UP,
    Plan,
    again,
    check_folders,
    estimate,
    folders_below,
    make_plan,
    make_record,
    new_folder,
)
from retool_env.commands.eval_settings import policy_maker
from retool_env.commands.model_options import (
    add_api_options,
    add_record_options,
    add_sampling_options,
    check_options,
)
from retool_env.commands.stopping import closing, terminable

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
    add_api_options(parser)
    parser.add_argument("--k", type=int, default=4, help="episodes for each problem (4)")
    parser.add_argument(
        "--problems",
        type=int,
        help=f"the number of problems, from the first on (all; {MADE_UP} of generated problems)",
    )
    parser.add_argument("--text-only", action="store_true", help="without the interpreter")
    add_sampling_options(parser)
    add_record_options(parser, "evaluation", "eval")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )
    add_ignore(parser)
    add_model_date(parser)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool eval`."""
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.folder import Records

    price = None if arguments.price is None else Price.parse(arguments.price)
    check_options(arguments, price, "eval")
    plans = [
        make_plan(arguments, model, env)
        for model, env in itertools.product(arguments.model, arguments.env or [None])
    ]
    problems = {plan.arguments.env: plan.problems for plan in plans}
    say(contamination(problems, arguments.model_date))
    folder = new_folder(arguments, plans[0])
    folders = [folder] if len(plans) == 1 else folders_below(folder, plans)
    check_folders(Records, folder, folders, arguments.resume)
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
        results[title] = _evaluated(plan, make, out, price, again(arguments, folder))
    _show(plans, results)
    print(f"episodes and figures: {folder}")
    faults = [result.fault for result in results.values() if result.fault]
    for fault in faults:
        print(f"retool eval: {fault}", file=sys.stderr)
    return int(bool(faults))


def _on_record(plan: Plan, out: Path) -> dict[tuple[str, int], bool]:
    """The episodes that a resumed evaluation has on record, each with whether it failed."""
    from retool_env.evaluation.folder import Records

    if not plan.arguments.resume:
        return {}
    return Records.ended_before(
        out, make_record(plan, out.name, None), plan.problems, plan.arguments.force
    )


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


def _evaluated(
    plan: Plan, make: Callable[[], Any], out: Path, price: Price | None, options: str
) -> _Result:
    """Runs what is left of an evaluation, and computes the figures of all its episodes.

    Args:
        plan: The plan of the evaluation.
        make: Makes the policy.
        out: The folder of the evaluation.
        price: Dollars of an API's tokens; `None`: unknown.
        options: The options that continue the evaluation.
    """
    from retool_env.evaluation.folder import Records
    from retool_env.evaluation.results import measured

    arguments = plan.arguments
    record = make_record(plan, out.name, price)
    records = Records(out, record, plan.problems, arguments.resume, arguments.force)
    jobs = plan.jobs(records.ended)
    if arguments.resume:
        say([f"{len(records.ended)} episodes are on record, {len(jobs)} are left"])
    with terminable(), closing(records, plan.keys, price) as finish:
        complete = not jobs or _run(plan, make, records, jobs, price)
        figures, summary = measured(out, plan.problems, arguments.k, price)
        records.write_figures(figures, summary)
        finish(complete)
    spent = 0.0 if price is None else price.of(records.usage)
    usage = str(records.usage) if records.usage.requests else ""
    usage += f", ${spent:,.2f}" if price and usage else ""
    fault = _fault(plan, records, complete, price, options)
    return _Result(summary, figures, records.record.seconds, usage, fault)


def _fault(plan: Plan, records: Records, complete: bool, price: Price | None, options: str) -> str:
    """The reason for the exit status 1, with its remedy; empty where there is no reason.

    Args:
        plan: The plan of the evaluation.
        records: The records of the evaluation.
        complete: Whether every episode has run.
        price: Dollars of an API's tokens; `None`: unknown.
        options: The options that continue the evaluation.
    """
    arguments = plan.arguments
    keys = plan.keys  # the folder may hold more samples and problems than this command names
    ended = {key: failed for key, failed in records.ended.items() if key in keys}
    if not complete:
        spent = 0.0 if price is None else price.estimated(records.usage)
        if spent == math.inf:
            return (
                "--limit-cost can't be held, since no answer of the API says how many tokens it "
                f"took; {len(ended)} of {len(keys)} episodes are done: go on with {options} and "
                "without the limit"
            )
        return (
            f"${spent:,.2f} of --limit-cost {arguments.limit_cost:g} are spent, and {len(ended)} "
            f"of {len(keys)} episodes are done: go on with {options} and a higher limit"
        )
    failed = sum(ended.values())
    if failed <= arguments.max_failed * len(ended):
        return ""
    return (
        f"{failed} of {len(ended)} episodes of {plan.title} failed, which is more than "
        f"--max-failed {arguments.max_failed:.1%}: the warnings above say why; run them again with "
        f"{options} --retry-failed"
    )


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
