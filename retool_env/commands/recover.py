"""`retool recover`: how often a model uses its interpreter, and how it recovers from its faults."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.commands.checkpoints import add_ignore, say
from retool_env.commands.eval_plan import (
    Plan,
    again,
    check_folders,
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
from retool_env.commands.text_prompt import text_prompt_lines, text_rules
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings

if TYPE_CHECKING:
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.recover.protocols import Design
    from retool_env.evaluation.recover.records import RecoverRecord
    from retool_env.evaluation.recover.suite import Suite
    from retool_env.problem import Problem
    from retool_env.rules import Rules

SIZES = {"k": 4, "m": 2, "samples": 16}
"""Episodes of the whole suite: parents, continuations in an arm, episodes in an arm of
`frequency`."""

QUICK = {"k": 2, "m": 1, "samples": 4}
"""The same of `--quick`, which ends in five minutes on two CPU cores with a million parameters."""

_NAMES = ("dose", "fork", "natural", "frequency")
"""The protocols; `retool_env.evaluation.recover.protocols` has the same."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "recover", help="recovery of a model from faults of its interpreter", allow_abbrev=False
    )
    parser.add_argument(
        "--env",
        help="the id of an environment, for its settings (the id in the model's retool.json)",
    )
    parser.add_argument(
        "--model",
        action="append",
        help="a checkpoint's folder, a Hub id, or a name at --api; repeat the option for several",
    )
    parser.add_argument(
        "--suite",
        default="v0",
        help="the frozen suite of problems and faults, or `own` for the problems of --env (v0)",
    )
    parser.add_argument(
        "--part",
        default="offline",
        help="the part of the suite: offline, or a reference: aime26, hmmt-feb26, beyondaime "
        "(offline)",
    )
    parser.add_argument(
        "--protocol",
        action="append",
        choices=(*_NAMES, "all"),
        help="dose: whole episodes at several rates of faults; fork: continuations of one prefix "
        "with the true result and with each fault; natural: continuations after an error of the "
        "model's own; frequency: with the tool, without it, and with a tool that is gone; repeat "
        "the option for several (all)",
    )
    parser.add_argument("--quick", action="store_true", help="the small part of the suite")
    for name, words in (
        ("k", "episodes for each problem and rate; without faults they are the parents of forks"),
        ("m", "continuations in each arm of a fork"),
        ("samples", "episodes for each problem in each arm of frequency"),
    ):
        usual = f"({SIZES[name]}; {QUICK[name]} with --quick)"
        parser.add_argument(f"--{name}", type=int, help=f"{words} {usual}")
    parser.add_argument(
        "--problems", type=int, help="the number of problems, from the first on (all)"
    )
    parser.add_argument(
        "--text-prompt",
        type=Path,
        metavar="FILE",
        help="a file with the prompt of the arm of frequency without the tool, a text with {query} "
        "(the environment's prompt; the default prompt if that one names the tool)",
    )
    parser.add_argument(
        "--tokens-per-second",
        type=float,
        metavar="NUMBER",
        help="with --dry-run: tokens that the model writes in a second, to print the time",
    )
    parser.add_argument(
        "--report",
        action="append",
        type=Path,
        metavar="FOLDER",
        help="make the page of a finished folder anew; repeat the option for several models",
    )
    parser.add_argument(
        "--check", type=Path, metavar="FOLDER", help="check the folder of a submission"
    )
    add_api_options(parser)
    add_sampling_options(parser)
    add_record_options(parser, "record", "recover")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )
    add_ignore(parser)
    parser.set_defaults(text_only=False, model_date=None)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool recover`."""
    from retool_env.evaluation.cost import Price
    from retool_env.evaluation.recover.records import ArmRecords

    if sum(map(bool, (arguments.report, arguments.check, arguments.model))) != 1:
        raise SettingsError("give one of --model, --report and --check")
    if arguments.check:
        return _check(arguments)
    if arguments.report:
        _report(arguments.report, arguments.out or arguments.report[0])
        return 0
    price = None if arguments.price is None else Price.parse(arguments.price)
    arguments.protocol = _protocols(arguments.protocol)
    for name, usual in (QUICK if arguments.quick else SIZES).items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual)
    check_options(arguments, price, "recover")
    speed = arguments.tokens_per_second
    if speed is not None and not 0 < speed < math.inf:
        raise SettingsError(f"--tokens-per-second must be above 0, not {speed:g}")
    if arguments.text_prompt is not None and "frequency" not in arguments.protocol:
        raise SettingsError("--text-prompt is for the protocol frequency: leave it out")
    tasks = [_Task.of(arguments, model) for model in arguments.model]
    folder = new_folder(arguments, tasks[0].plan, "recover")
    folders = [folder] if len(tasks) == 1 else folders_below(folder, [t.plan for t in tasks])
    check_folders(ArmRecords, folder, folders, arguments.resume)
    if arguments.dry_run:
        for task, out in zip(tasks, folders, strict=True):
            print("\n".join(f"{task.plan.model.title}: {line}" for line in task.size(out, price)))
        return 0
    makers = [task.policies() for task in tasks]  # slow: after all checks
    faults = []
    for task, make, out in zip(tasks, makers, folders, strict=True):
        say(task.plan.lines)
        faults.append(_evaluated(task, make, out, price, again(arguments, folder)))
    _report(folders, folder)
    for fault in filter(None, faults):
        print(f"retool recover: {fault}", file=sys.stderr)
    return int(any(faults))


def _protocols(names: list[str] | None) -> list[str]:
    chosen = set(_NAMES) if not names or "all" in names else set(names)
    return [name for name in _NAMES if name in chosen]


@dataclasses.dataclass
class _Task:
    """One model and its design, before the model is loaded."""

    plan: Plan
    """The model and its rules; the design has the problems."""
    design: Design
    """The design."""
    suite_hash: str
    """The hash of the suite."""

    @classmethod
    def of(cls, arguments: argparse.Namespace, model: str) -> _Task:
        from retool_env.evaluation.identity import fingerprint

        suite, problems = _suite_of(arguments)
        plan = make_plan(arguments, model, arguments.env, problems)
        if not plan.rules.interpreter:
            raise SettingsError("interpreter=false leaves no tool to recover from: remove it")
        if plan.rules.faults is not None:
            raise SettingsError("the protocols choose the faults: remove faults=...")
        design, lines = _design(arguments, suite, plan.problems)
        own = fingerprint(plan.problems) if problems is None else suite.hash
        plan.lines = [*plan.lines, *lines]
        if "frequency" in design.protocols and not arguments.native_tools:
            plan.lines += text_prompt_lines(plan.rules, arguments.text_prompt)
        return cls(plan, design, own)

    @property
    def arms(self) -> dict[tuple[str, str], Rules]:
        """The rules of each arm of whole episodes."""
        return self.design.whole_arms(self.plan.rules, self._text_rules)

    @property
    def _text_rules(self) -> Rules:
        return text_rules(self.plan.rules, self.plan.arguments.text_prompt)

    def policies(self) -> tuple[Any, Any]:
        """The functions that make the policy, and the policy without native tools.

        The latter is `None` where one policy serves all arms.
        """
        arguments, rules = self.plan.arguments, self.plan.rules
        make, make_text = policy_maker(arguments, rules), None
        if arguments.native_tools and "frequency" in self.design.protocols:
            text = argparse.Namespace(**{**vars(arguments), "native_tools": False})
            make_text = policy_maker(text, self._text_rules)
        return make, make_text

    def record(self, name: str, price: Price | None) -> RecoverRecord:
        """The record of a run that begins now.

        Args:
            name: The name of the run.
            price: Dollars of an API's tokens; `None`: unknown.
        """
        from retool_env.evaluation.recover.records import RecoverRecord

        base, design, arguments = (
            make_record(self.plan, name, price),
            self.design,
            self.plan.arguments,
        )
        values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
        calls = {
            problem.id: [design.fork_call(problem.id, parent) for parent in range(design.k)]
            for problem in design.problems
        }
        return RecoverRecord(
            **values,
            suite=arguments.suite,
            part=arguments.part,
            suite_hash=self.suite_hash,
            quick=arguments.quick,
            protocols=list(design.protocols),
            kinds=list(design.kinds),
            rates=list(design.rates),
            m=design.m,
            samples=design.samples,
            fork_calls=calls,
            text_prompt=self._text_rules.template,
        )

    def size(self, out: Path, price: Price | None) -> list[str]:
        """The lines of `--dry-run`.

        Args:
            out: The folder of the model.
            price: Dollars of an API's tokens; `None`: unknown.
        """
        from retool_env.evaluation.recover.records import ArmRecords
        from retool_env.evaluation.recover.size import size_lines

        arguments, ended = self.plan.arguments, {}
        if arguments.resume:
            record = self.record(out.name, price)
            ended = ArmRecords.ended_before(out, record, self.design.problems, arguments.force)
        return size_lines(
            self.design,
            self.arms,
            self.plan.rules,
            arguments.max_tokens if arguments.api else None,
            price,
            arguments.tokens_per_second,
            ended,
        )


def _suite_of(arguments: argparse.Namespace) -> tuple[Suite, list[Problem] | None]:
    """The suite of a command, and its problems; `None` for the problems of the environment."""
    from retool_env.evaluation.recover.suite import load_suite
    from retool_env.task import RULES

    own = arguments.suite == "own"
    suite = load_suite("v0" if own else arguments.suite, arguments.part, arguments.quick)
    if own:
        return suite, None
    if useless := [name for name in parse_settings(arguments.settings) if name not in RULES]:
        raise SettingsError(
            f"{', '.join(useless)}: no such setting of an episode, and the suite supplies the "
            "problems; leave it out, or give --suite own for the problems of --env"
        )
    return suite, list(suite.problems)[: arguments.problems]


def _design(
    arguments: argparse.Namespace, suite: Suite, problems: Sequence[Problem]
) -> tuple[Design, list[str]]:
    """The design of a command, and lines that say what it leaves out.

    Args:
        arguments: The command line.
        suite: The suite, with the kinds and rates of the faults.
        problems: The problems.
    """
    from retool_env.evaluation.recover.protocols import Design
    from retool_env.interpreter import impossible_kinds

    left_out = [kind for kind in impossible_kinds(arguments.sandbox) if kind in suite.kinds]
    lines = []
    if left_out:
        lines.append(
            f"left out: {' and '.join(left_out)}, which no sandbox server can make; results of "
            "all kinds need a local sandbox"
        )
    design = Design(
        protocols=tuple(arguments.protocol),
        problems=problems,
        kinds=tuple(kind for kind in suite.kinds if kind not in left_out),
        rates=tuple(suite.rates),
        fork_call=suite.fork_call,
        k=arguments.k,
        m=arguments.m,
        samples=arguments.samples,
        seed=suite.seed,
    )
    return design, lines


def _evaluated(
    task: _Task, make: tuple[Any, Any], out: Path, price: Price | None, options: str
) -> str:
    """Runs what is left of a design, and writes its results.

    Args:
        task: The model and its design.
        make: The functions of `_Task.policies`.
        out: The folder of the model.
        price: Dollars of an API's tokens; `None`: unknown.
        options: The options that continue the record.

    Returns:
        The reason for the exit status 1; empty without a reason.
    """
    from retool_env.evaluation.recover.figures import results
    from retool_env.evaluation.recover.records import ArmRecords
    from retool_env.evaluation.recover.submission import write_card

    arguments = task.plan.arguments
    record = task.record(out.name, price)
    records = ArmRecords(out, record, task.design.problems, arguments.resume, arguments.force)
    if arguments.resume:
        say([f"{len(records.ended)} episodes are on record"])
    with terminable(), closing(records, None, price) as finish:
        complete = _run(task, make, records, price)
        finish(complete)
    records.write_results(results(out))
    write_card(out)
    if not complete:
        return f"--limit-cost is spent: go on with {options} and a higher limit"
    failed = sum(records.ended.values())
    if failed > arguments.max_failed * len(records.ended):
        return (
            f"{failed} of {len(records.ended)} episodes of {task.plan.model.title} failed, which "
            f"is more than --max-failed {arguments.max_failed:.1%}: the warnings above say why; "
            f"run them again with {options} --retry-failed"
        )
    return ""


def _run(task: _Task, make: tuple[Any, Any], records: Any, price: Price | None) -> bool:
    from retool_env.evaluation.recover.protocols import with_turn_cap
    from retool_env.evaluation.recover.run import DesignRun
    from retool_env.interpreter import open_sandbox
    from retool_env.rollout.engine import RolloutEngine
    from retool_env.rollout.policy import TextPolicy
    from retool_env.rollout.progress import Progress, shown

    arguments = task.plan.arguments

    def going_on() -> bool:
        limit = arguments.limit_cost
        return price is None or limit is None or price.estimated(records.usage) < limit

    with contextlib.ExitStack() as stack:
        opened = open_sandbox(arguments.sandbox, task.plan.rules)
        assert opened is not None  # the rules have an interpreter
        sandbox = stack.enter_context(opened)
        policy = stack.enter_context(make[0]())
        text_policy = policy if make[1] is None else stack.enter_context(make[1]())
        for one in {id(one): one for one in (policy, text_policy)}.values():
            if isinstance(one, TextPolicy):
                one.on_usage = records.charge
                one.on_answered_as = records.note_answer
                one.on_left_out = records.note_left_out
        concurrency = arguments.batch * (1 if arguments.api else 2)  # as in `retool eval`
        progress = Progress()
        engines = {}
        for arm, rules in task.arms.items():
            chosen = policy if rules.interpreter else text_policy
            budget = task.plan.rules.max_tokens
            if rules.max_tokens != budget and budget is not None:
                chosen = with_turn_cap(chosen, budget + 1)
            engines[arm] = RolloutEngine(chosen, rules, sandbox, concurrency, progress=progress)
        stack.enter_context(shown(progress))
        return DesignRun(
            task.design,
            engines,
            records,
            arguments.model,
            arguments.seed,
            arguments.retry_failed,
            going_on,
        ).run()


def _report(folders: Sequence[Path], out: Path) -> None:
    """Writes the page of one or several models, and prints the table."""
    from retool_env.evaluation.recover.figures import comparisons
    from retool_env.evaluation.recover.page import comparable, read_results, table, write_page

    results = [read_results(folder) for folder in folders]
    compared = [] if comparable(results) else comparisons(folders)
    print(f"\n{table(results, compared)}\n")
    print(f"page: {write_page(results, out, compared)}")


def _check(arguments: argparse.Namespace) -> int:
    from retool_env.evaluation.recorded_rules import rules_of
    from retool_env.evaluation.recover.records import read_recover
    from retool_env.evaluation.recover.submission import CAN_NOT_SHOW, check
    from retool_env.interpreter import open_sandbox

    record = read_recover(arguments.check)
    with open_sandbox(arguments.sandbox, rules_of(record)) or contextlib.nullcontext() as sandbox:
        findings = check(arguments.check, sandbox, seed=arguments.seed)
    for finding in findings:
        print(finding)
    print(f"\n{CAN_NOT_SHOW}")
    return int(not all(finding.right for finding in findings))
