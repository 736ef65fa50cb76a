"""`retool eval`: avg@k of a model, local or behind an API, and how it used its tool."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.commands.checkpoints import (
    add_ignore,
    checkpoint_task,
    say,
    task_lines,
    with_test_split,
)
from retool_env.commands.keys import refuse_key
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings, parse_value
from retool_env.servers.address import check_no_secrets, variable_name

if TYPE_CHECKING:
    from retool_env.checkpoint_task import CheckpointTask
    from retool_env.rules import Rules

MAX_TOKENS = 1024
"""Of a response, where nothing else is said."""

MADE_UP = 200
"""Problems of an evaluation where they are made on the spot, as many as one likes; `make demo` takes as many."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command's options."""
    parser = commands.add_parser(
        "eval", help="avg@k of a model on an environment's problems", allow_abbrev=False
    )
    parser.add_argument(
        "--env",
        help="an environment's id, ReTool-AIME24-v0 say (the one that the model's retool.json names)",
    )
    parser.add_argument(
        "--model", required=True, help="a checkpoint's folder, a Hub id, or its name at --api"
    )
    parser.add_argument(
        "--api", metavar="URL", help="where the model is served, as http://localhost:8000/v1"
    )
    parser.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the API's key"
    )
    refuse_key(parser, "--api-key", "--api-key-env NAME")
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        "--native-tools", action="store_true", help="behind an API: calls of a tool, not tags"
    )
    ways.add_argument(
        "--completions", action="store_true", help="behind an API: without a chat, for base models"
    )
    parser.add_argument("--k", type=int, default=4, help="episodes a problem (4)")
    parser.add_argument(
        "--problems",
        type=int,
        help=f"only the first so many problems (all; of problems made on the spot, {MADE_UP})",
    )
    parser.add_argument("--text-only", action="store_true", help="without the interpreter")
    parser.add_argument(
        "--sandbox",
        type=parse_value,
        default="nsjail",
        help="nsjail, unsafe, the URLs of sandbox servers, or a mapping of make_sandbox's arguments (nsjail)",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        help=f"of a response; of a turn, behind an API (the checkpoint's, or {MAX_TOKENS})",
    )
    parser.add_argument("--temperature", type=float, help="(the checkpoint's, or the paper's: 1.0)")
    parser.add_argument("--top-p", type=float, help="(the checkpoint's, or the paper's: 0.7)")
    parser.add_argument("--batch", type=int, default=32, help="episodes sampled together (32)")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, help="a folder of its own for the transcripts and figures"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )
    add_ignore(parser)


def run(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool eval`."""
    from retool_env.evaluation.run import evaluate
    from retool_env.interpreter import open_sandbox
    from retool_env.metrics.tables import table, tool_table
    from retool_env.problems import Arithmetic
    from retool_env.provenance import REVISION, versions
    from retool_env.rollout.progress import Progress, shown
    from retool_env.task import make_task
    from retool_env.transcript import Transcript, write_transcripts

    for name, number in (("--k", arguments.k), ("--problems", arguments.problems)):
        if number is not None and number < 1:
            raise SettingsError(f"{name} must be at least 1, not {number}")
    check_no_secrets(
        {"--sandbox": arguments.sandbox, "settings": parse_settings(arguments.settings)}
    )
    task, settings, said = eval_settings(arguments)
    rules, source = make_task(arguments.env, **settings)
    most = len(source)
    if isinstance(source, Arithmetic) and "size" not in parse_settings(arguments.settings):
        most = min(most, MADE_UP)
    count = min(len(source), arguments.problems or most)
    problems = [source[i] for i in range(count)]
    make = policy_maker(arguments, rules)  # slow: after what can be wrong
    say(said)
    mode = "interpreter" if rules.interpreter else "text-only"
    stem = f"{arguments.env}-{Path(arguments.model).name}-{mode}"
    name = f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    out = arguments.out or Path("runs") / "eval" / name

    def on_group(index: int, group: list[Transcript]) -> None:
        write_transcripts(out / "transcripts.jsonl", group)

    with (
        open_sandbox(arguments.sandbox, rules) or contextlib.nullcontext() as sandbox,
        evaluation_folder(out),
    ):
        policy = make()
        progress = Progress()
        with shown(progress):
            summary, _ = evaluate(
                policy,
                rules,
                problems,
                arguments.k,
                sandbox,
                arguments.seed,
                on_group,
                # While the programs of some run, others must fill the batch.
                concurrency=max(256, 2 * arguments.batch),
                progress=progress,
            )
        seconds = round(progress.seconds, 1)
    record = {
        "command": {k: str(v) for k, v in vars(arguments).items()},
        "settings": settings,
        "checkpoint_task": None if task is None else task.to_json(),
        "versions": versions(),
        "revision": REVISION,
        "seconds": seconds,
        **summary.to_json(),
    }
    if arguments.api:
        record["usage"] = dataclasses.asdict(policy.usage)
    (out / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"\n{arguments.env}, avg@{arguments.k}, {count} problems, {seconds} s\n")
    title = f"{Path(arguments.model).name}, {mode}"
    print(table({title: summary}))
    if summary.calls:
        print(f"\n{tool_table({title: summary})}")
    print(f"\nstop reasons: {', '.join(f'{k} {v}' for k, v in summary.stop_reasons.items())}")
    if arguments.api:
        print(f"used: {policy.usage}")
    print(f"transcripts and figures: {out}")
    return 0


@contextlib.contextmanager
def evaluation_folder(folder: Path) -> Iterator[None]:
    """Keeps a folder for one evaluation. If that stops before its end, what it has finished stays, and it is said where.

    Raises:
        FileExistsError: If the folder holds another one's results or transcripts.
    """
    transcripts = folder / "transcripts.jsonl"
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--out must be a folder, which {folder} is not")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if (folder / "results.json").exists():
            raise FileExistsError
        transcripts.touch(exist_ok=False)  # of two evaluations one makes it
    except FileExistsError:
        raise SettingsError(
            f"{folder} holds an evaluation already, or one is under way there: choose another --out, or remove it"
        ) from None
    try:
        yield
    except BaseException:
        if transcripts.stat().st_size:
            print(f"what was finished: {transcripts}", file=sys.stderr)
        else:
            transcripts.unlink()
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()
        raise


def eval_settings(
    arguments: argparse.Namespace,
) -> tuple[CheckpointTask | None, dict[str, Any], list[str]]:
    """What is evaluated: the command line's settings, over those of the model's `retool.json`, over the defaults.

    `arguments` then hold the environment's id, the token budget and the sampling that were found.

    Returns:
        The checkpoint's task, if it has one; the environment's settings; and lines that say where they come from.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If no environment is named, the checkpoint's `retool.json` is wrong, or an option for models behind an
            API comes without one.
    """
    from retool_env.checkpoint_task import TEMPERATURE, TOP_P, merged
    from retool_env.task import registered_settings

    given = parse_settings(arguments.settings)
    if arguments.text_only:
        given["interpreter"] = False
    if arguments.api is None and arguments.max_tokens is not None:
        given.setdefault("max_tokens", arguments.max_tokens)
    if arguments.env is not None:
        registered_settings(arguments.env)  # before the Hub is asked
    usual = eval_defaults(arguments)
    task, lines = checkpoint_task(arguments) if arguments.api is None else (None, [])
    arguments.env = arguments.env or (task and task.id)
    if arguments.env is None:
        raise SettingsError("name an environment with --env: no retool.json of the model names one")
    sampling = {"temperature": TEMPERATURE, "top_p": TOP_P}
    if task is not None:
        usual |= task.settings_for(arguments.env)
        sampling = task.sampling_for(arguments.env)
    asked = {name: getattr(arguments, name) for name in sampling}
    asked = {name: number for name, number in asked.items() if number is not None}
    lines += task_lines(task, arguments, {**given, **asked})
    if arguments.max_tokens is None:
        arguments.max_tokens = MAX_TOKENS
    for name, number in {**sampling, **asked}.items():
        setattr(arguments, name, number)
    return task, with_test_split(arguments.env, merged(usual, given)), lines


def eval_defaults(arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the environment that a kind of model asks for, where neither its checkpoint nor the user sets any.

    Raises:
        ValueError: If an option for models behind an API comes without one.
    """
    from retool_env.protocol.prompt import default_prompt

    if arguments.api is None:
        for name in ("api_key_env", "native_tools", "completions"):
            if getattr(arguments, name):
                raise SettingsError(
                    f"--{name.replace('_', '-')} is for models behind an API: give --api"
                )
        return {"max_tokens": MAX_TOKENS}
    if arguments.native_tools:  # the API describes the tool, so that the prompt must not
        return {"prompt_template": default_prompt(interpreter=False)}
    return {}


def policy_maker(arguments: argparse.Namespace, rules: Rules) -> Callable[[], Any]:
    """What makes the policy; loading a model is left to it.

    Raises:
        MissingPackage: If the package of an API's client is missing.
        SettingsError: If the API's key or limits are not where they should be.
    """
    from retool_env.protocol.hermes import Hermes
    from retool_env.rollout.named import Model, make_policy

    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p}
    if arguments.api is None:
        model = Model(arguments.model, dtype=arguments.dtype)
        return lambda: make_policy("transformers", model, max_batch=arguments.batch, **sampling)
    if rules.max_tokens is not None:
        raise SettingsError("an API gives no tokens to count: set --max-tokens or max_characters")
    variable = arguments.api_key_env
    if variable and not os.environ.get(variable):
        raise SettingsError(
            f"--api-key-env {variable_name(variable)}: there is no such environment variable, or it is empty"
        )
    way = "completions" if arguments.completions else "chat"
    policy = make_policy(
        "openai",
        Model(arguments.model),
        urls=arguments.api,
        api_key=os.environ[variable] if variable else None,
        way="tools" if arguments.native_tools else way,
        tool=Hermes(True, rules.session, rules.display).tools[0],
        max_tokens=arguments.max_tokens,
        concurrency=arguments.batch,
        **sampling,
    )
    return lambda: policy
