"""`retool`: evaluate a model, play an episode, check the installation, serve the sandbox."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from retool_env.errors import MissingFile, MissingPackage, RetoolError, SettingsError
from retool_env.key_values import parse_settings, parse_value
from retool_env.servers.address import check_no_secrets, redact, variable_name

if TYPE_CHECKING:
    from retool_env.checkpoint_task import CheckpointTask
    from retool_env.rules import Rules

CLONE = (
    "`retool train` runs from a clone of the repository, which holds the trainers: clone it, then, in its folder, "
    "`make setup` and `python -m agents grpo --preset tiny`"
)


IGNORE = "--ignore-retool-json"
MAX_TOKENS = 1024
"""Of a response, where nothing else is said."""
MADE_UP = 200
"""Problems of an evaluation where they are made on the spot, as many as one likes; `make demo` takes as many."""

_MOST_TOKEN_FILE = 8192


def main(argv: Sequence[str] | None = None) -> int:
    """The command's entry point.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="retool", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    # Half an option could be half of one that takes a key.
    whole = {"allow_abbrev": False}
    refused: dict[str, Any] = {"action": _KeyRefused, "nargs": "?", "help": argparse.SUPPRESS}
    evaluation = commands.add_parser(
        "eval", help="avg@k of a model on an environment's problems", **whole
    )
    evaluation.add_argument(
        "--env",
        help="an environment's id, ReTool-AIME24-v0 say (the one that the model's retool.json names)",
    )
    evaluation.add_argument(
        "--model", required=True, help="a checkpoint's folder, a Hub id, or its name at --api"
    )
    evaluation.add_argument(
        "--api", metavar="URL", help="where the model is served, as http://localhost:8000/v1"
    )
    evaluation.add_argument(
        "--api-key-env", metavar="NAME", help="the environment variable that holds the API's key"
    )
    evaluation.add_argument("--api-key", **refused, const="--api-key-env NAME")
    ways = evaluation.add_mutually_exclusive_group()
    ways.add_argument(
        "--native-tools", action="store_true", help="behind an API: calls of a tool, not tags"
    )
    ways.add_argument(
        "--completions", action="store_true", help="behind an API: without a chat, for base models"
    )
    evaluation.add_argument("--k", type=int, default=4, help="episodes a problem (4)")
    evaluation.add_argument(
        "--problems",
        type=int,
        help=f"only the first so many problems (all; of problems made on the spot, {MADE_UP})",
    )
    evaluation.add_argument("--text-only", action="store_true", help="without the interpreter")
    evaluation.add_argument(
        "--sandbox",
        type=parse_value,
        default="nsjail",
        help="nsjail, unsafe, the URLs of sandbox servers, or a mapping of make_sandbox's arguments (nsjail)",
    )
    evaluation.add_argument(
        "--max-tokens",
        type=int,
        help=f"of a response; of a turn, behind an API (the checkpoint's, or {MAX_TOKENS})",
    )
    evaluation.add_argument(
        "--temperature", type=float, help="(the checkpoint's, or the paper's: 1.0)"
    )
    evaluation.add_argument("--top-p", type=float, help="(the checkpoint's, or the paper's: 0.7)")
    evaluation.add_argument("--batch", type=int, default=32, help="episodes sampled together (32)")
    evaluation.add_argument("--dtype", default="auto", help="float32, bfloat16, ...")
    evaluation.add_argument("--seed", type=int, default=0)
    evaluation.add_argument(
        "--out", type=Path, help="a folder of its own for the transcripts and figures"
    )
    evaluation.add_argument(
        "settings", nargs="*", metavar="key=value", help="other settings of the environment"
    )
    play = commands.add_parser("play", help="solve a problem yourself, at the terminal")
    play.add_argument(
        "--env", help="(the one that --model was trained on, or ReTool-Arithmetic-v0)"
    )
    play.add_argument(
        "--model", help="a checkpoint's folder or a Hub id: play the task of its retool.json"
    )
    play.add_argument("--seed", type=int)
    for each in (evaluation, play):
        each.add_argument(
            IGNORE, action="store_true", help="pass over what the model's retool.json says"
        )
    play.add_argument("settings", nargs="*", metavar="key=value")
    commands.add_parser("doctor", help="what this machine can do, and how to mend what it cannot")
    serve = commands.add_parser(
        "serve", help="run other machines' programs in the sandbox here", **whole
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to bind to (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8080, help="0 for a free one (8080)")
    serve.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="holds what clients must send (default: the variable RETOOL_SANDBOX_TOKEN)",
    )
    serve.add_argument("--token", **refused, const="--token-file FILE, or RETOOL_SANDBOX_TOKEN")
    serve.add_argument("--max-in-flight", type=int, help="programs at once (16 a processor)")
    serve.add_argument("--max-seconds", type=float, default=120.0, help="of a program (120)")
    serve.add_argument("--grace", type=int, default=30, help="seconds to end in, when stopped (30)")
    serve.add_argument("--unsafe", action="store_true", help="without a jail")
    commands.add_parser("train", help="forwards to `python -m agents`", add_help=False)
    argv = list(sys.argv[1:] if argv is None else argv)
    command = argv[0] if argv else None
    rest = argv[1:]
    if command == "train":
        arguments = argparse.Namespace(command=command)
    elif command in commands.choices:
        # By itself, so that options and settings may stand in any order.
        arguments, rest = commands.choices[command].parse_known_intermixed_args(rest)
        arguments.command = command
    else:
        arguments = parser.parse_args(argv)
    if rest and command != "train":
        # Without their values, which may be a key's.
        options = [each.partition("=")[0] for each in rest if each.startswith("-")]
        parser.error(f"unknown arguments: {' '.join(options or rest)}")
    try:
        return {
            "eval": run_eval,
            "play": run_play,
            "doctor": run_doctor,
            "serve": run_serve,
            "train": run_train,
        }[arguments.command](arguments, rest)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (RetoolError, OSError) as error:  # the latter: no room on the disk, a port in use
        if os.environ.get("RETOOL_TRACEBACK"):
            raise
        print(f"retool {arguments.command}: {redact(str(error))}", file=sys.stderr)
        return 1


class _KeyRefused(argparse.Action):
    """An option that would take a key; its `const` says what to give in its place."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Ends the command, without showing the key."""
        parser.error(
            f"{option_string} would show the key to everybody who lists the processes: give {self.const}"
        )


def run_eval(arguments: argparse.Namespace, _: Sequence[str]) -> int:
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


def task_lines(
    task: CheckpointTask | None, arguments: argparse.Namespace, given: dict[str, Any]
) -> list[str]:
    """Lines that say what is taken from a checkpoint.

    Args:
        task: The checkpoint's.
        arguments: The command line, with the environment's id.
        given: The settings of the command line, its sampling included.
    """
    from retool_env.checkpoint_task import differences

    if task is None:
        local = arguments.model and not getattr(arguments, "api", None)
        if not local or arguments.ignore_retool_json:
            return []
        return [f"{arguments.model} has no retool.json: the settings are {arguments.env}'s own"]
    lines = [task.summary(arguments.env, arguments.model)]
    before = task.settings_for(arguments.env)
    if arguments.env == task.id:
        before |= task.sampling
    if differ := differences(before, given, "there"):
        lines.append(f"the command line differs from it: {differ}")
    return lines


def checkpoint_task(arguments: argparse.Namespace) -> tuple[CheckpointTask | None, list[str]]:
    """The task of the model that the command line names; and a line where it is passed over.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If its `retool.json` is wrong.
    """
    from retool_env.checkpoint_task import read_task

    model = arguments.model
    if model.startswith((".", "/", "~")) and not Path(model).is_dir():
        raise MissingFile(f"there is no checkpoint folder {model!r}")
    if arguments.ignore_retool_json:
        return None, [f"{IGNORE}: what {model} says of its task is passed over"]
    task = read_task(model, f", or pass over it with {IGNORE}")
    if task and (warning := task.revision_warning(model)):
        print(warning, file=sys.stderr)
    return task, []


def say(lines: Sequence[str]) -> None:
    """Print lines, before what takes its time."""
    for line in lines:
        print(line, flush=True)


def with_test_split(id: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an environment with held-out problems: the split `test`, where there are splits and none is named."""
    from retool_env.problems import SOURCES
    from retool_env.task import registered_settings

    registered = registered_settings(id)
    source = (
        SOURCES.get(registered["problems"]) if isinstance(registered["problems"], str) else None
    )
    named = {"split", "path"} & {*registered, *settings}  # a file has no splits
    if named or source is None or "split" not in inspect.signature(source).parameters:
        return settings
    return {**settings, "split": "test"}


def policy_maker(arguments: argparse.Namespace, rules: Rules) -> Callable[[], Any]:
    """What makes the policy; loading a model is left to it.

    Raises:
        ImportError: If the packages that it needs are missing.
        ValueError: If the API's key or limits are not where they should be.
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


def run_play(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`retool play`: a person is the policy."""
    from retool_env.checkpoint_task import merged
    from retool_env.task import registered_settings

    given = parse_settings(arguments.settings)
    task, lines = checkpoint_task(arguments) if arguments.model else (None, [])
    arguments.env = arguments.env or (task and task.id) or "ReTool-Arithmetic-v0"
    registered_settings(arguments.env)
    settings: dict[str, Any] = {"void_turn": "continue"}
    if task is not None:
        settings |= task.settings_for(arguments.env)
    lines += task_lines(task, arguments, given)
    if settings.pop("max_tokens", None) is not None:
        lines.append("max_tokens is left out: what a person writes is text")
    settings = merged(settings, given)
    if task is not None:
        settings = with_test_split(arguments.env, settings)
    try:
        env = gym.make(arguments.env, render_mode="human", **settings)
    except (TypeError, gym.error.Error) as error:  # Gymnasium's own settings
        raise SettingsError(str(error)) from error
    say(lines)
    env.reset(seed=arguments.seed)
    ended = False
    while not ended:
        action = read_turn()
        _, _, terminated, truncated, info = env.step(action)
        ended = terminated or truncated
    print(f"the answer is {info['transcript'].problem.answer}")
    env.close()
    return 0


def read_turn() -> str:
    """Lines from the terminal until a closing tag, an empty line outside a program, or the end of input."""
    text = ""
    print("\nyour turn, up to </code>, </answer> or an empty line:")
    for line in sys.stdin:
        text += line
        empty = not line.strip() and "<code>" not in text  # programs have empty lines
        if empty or "</code>" in line or "</answer>" in line:
            break
    return text.strip("\n")


def run_doctor(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`retool doctor`."""
    from retool_env.doctor import Status, examine

    found = []
    for finding in examine():
        print(finding, flush=True)
        found.append(finding.status)
    if Status.MISSING in found:
        print("\nprograms cannot be run here until that is mended", file=sys.stderr)
        return 1
    print("\nthe sandbox works here")
    return 0


def run_serve(arguments: argparse.Namespace, _: Sequence[str]) -> int:
    """`retool serve`."""
    from retool_env.sandbox import make_sandbox

    try:
        from retool_env.sandbox.server import MAXIMUM, serve
    except ModuleNotFoundError as error:
        raise MissingPackage(f"{error}; pip install 'retool-env[serve]'") from error
    try:
        maximum = dataclasses.replace(MAXIMUM, wall_seconds=arguments.max_seconds)
    except SettingsError as error:
        raise SettingsError(f"--max-seconds: {error}") from None
    if arguments.token_file is not None:
        token = read_token(arguments.token_file)
    else:
        token = os.environ.get("RETOOL_SANDBOX_TOKEN")
    serve(
        lambda: make_sandbox("unsafe" if arguments.unsafe else "nsjail"),
        arguments.host,
        arguments.port,
        token,
        max_in_flight=arguments.max_in_flight,
        maximum=maximum,
        grace_seconds=arguments.grace,
    )
    return 0


def read_token(path: Path) -> str:
    """The token in a file, without the line break at its end. A file that others can read is warned of.

    Raises:
        OSError: If there is no such file, or it can't be read.
        ValueError: If it is not a regular file, too large, or not text.
    """
    # A FIFO would be waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise SettingsError(f"--token-file: {path} is not a regular file")
        content = os.read(descriptor, _MOST_TOKEN_FILE + 1)
    finally:
        os.close(descriptor)
    if len(content) > _MOST_TOKEN_FILE:
        raise SettingsError(f"--token-file: {path} is larger than a token can be")
    if mode & 0o077:
        print(
            f"warning: others than its owner may use {path}: chmod 600 {path}",
            file=sys.stderr,
        )
    try:
        text = content.decode("ascii")
    except UnicodeDecodeError:
        raise SettingsError(f"--token-file: {path} holds more than ASCII text") from None
    return text.removesuffix("\n").removesuffix("\r")


def run_train(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """`retool train`: forwards to the clone's trainers."""
    if not Path("agents/presets").is_dir():
        print(CLONE, file=sys.stderr)
        return 1
    os.execv(sys.executable, [sys.executable, "-m", "agents", *rest])


if __name__ == "__main__":
    sys.exit(main())
