"""`python -m agents <algorithm> --preset <name> [key=value ...]`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from safetensors import SafetensorError

from agents.base.config import accept_revision
from agents.base.inherited import inherit_task
from agents.base.presets import PRESETS, merge_settings
from agents.base.registry import OWN_FORMS, algorithms, load_algorithm, section_of
from agents.base.run import dry_run
from agents.base.settings import SettingsError, build_settings, describe
from agents.base.sharding import leave_process_group
from agents.base.status import CODES, Status
from agents.base.stopping import Stopped, shielded
from retool_env.errors import NotFinite
from retool_env.execution import SandboxUnavailable
from retool_env.key_values import dump_yaml, parse_settings
from retool_env.printable import reader_left
from retool_env.rollout import PolicyUnavailable
from retool_env.servers.address import redact

IGNORE_OPTION = "--ignore-retool-json"


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point of the command.

    Args:
        argv: The command's arguments; `None`: the arguments of this process.

    Returns:
        The exit status.
    """
    as_program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["smollm2"]:
        return make_smollm2(argv[1:])
    if argv[:1] == ["replay"]:
        return replay(argv[1:])
    parser = make_parser()
    arguments = parser.parse_intermixed_args(argv)
    words = [word for word in (arguments.algorithm, *arguments.settings) if word is not None]
    # A setting may stand before the algorithm.
    arguments.algorithm = next((word for word in words if "=" not in word), None)
    arguments.settings = [word for word in words if word is not arguments.algorithm]
    if arguments.algorithm is None:
        parser.print_help()
        return 0 if arguments.help else 2
    folder: Path | None = None
    try:
        algorithm = load_algorithm(arguments.algorithm)
        if as_program:
            # The imported objects stay until the end. With thousands of episodes in flight, the
            # garbage collector would visit them so often that it took a third of the engine's time.
            gc.collect()
            gc.freeze()
        if arguments.help:
            parser.print_help()
            print(f"\nsettings of {arguments.algorithm}:\n{describe(algorithm.Settings)}")
            return 0
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and getattr(algorithm, "ONE_PROCESS", False):
            raise SettingsError(f"{arguments.algorithm} runs in one process: start only one")
        section = section_of(arguments.algorithm, algorithm)
        if arguments.dry_run:
            check_run(algorithm, section, arguments)
            return 0
        settings = read_settings(algorithm, section, arguments)
        folder = arguments.runs / settings.name
        if arguments.resume and arguments.force and os.environ.get("RANK", "0") == "0":
            accept_revision(folder)
        checkpoint = algorithm.train(settings, folder, arguments.resume)
        with shielded():  # the run has ended
            leave_process_group()
    except KeyboardInterrupt as stop:
        with shielded():
            leave_process_group()  # all processes stop together
            if os.environ.get("RANK", "0") == "0":
                if folder is not None:
                    Status(folder).stopped_early()
                print("stopped: the same command with --resume goes on", file=sys.stderr)
        if isinstance(stop, Stopped):
            return CODES["stopped"]
        return 128 + next(iter(stop.args), signal.SIGINT)
    except (SettingsError, FileNotFoundError, ImportError, SandboxUnavailable) as error:
        print(f"python -m agents {arguments.algorithm}: {redact(str(error))}", file=sys.stderr)
        return 2
    except NotFinite as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", [])])
        print(f"python -m agents {arguments.algorithm}: {redact(text)}", file=sys.stderr)
        return 1
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, BrokenPipeError) and reader_left():
            return 141  # as a program that SIGPIPE ends
        # torch and safetensors, which write the weights, have other errors for a full disk.
        curable = isinstance(error, OSError | PolicyUnavailable | SafetensorError)
        if not curable and "inline_container" not in str(error):
            raise
        cure = "solve this problem; then the same command with --resume goes on"
        print(
            f"python -m agents {arguments.algorithm}: {redact(str(error))}\n{cure}", file=sys.stderr
        )
        return 1
    if os.environ.get("RANK", "0") == "0":
        print(f"done: {checkpoint}")
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    presets = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
    parser = argparse.ArgumentParser(
        prog="python -m agents",
        description=f"{__doc__} `python -m agents smollm2 FOLDER` makes a SmolLM2-135M-Instruct "
        "checkpoint. `python -m agents replay RUN --algorithm NAME` computes losses of a run anew.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument(
        "algorithm",
        nargs="?",
        help=f"{', '.join(algorithms())}; or an algorithm of your own: {OWN_FORMS}",
    )
    parser.add_argument("--preset", help=f"{presets}, or a YAML file's path (tiny)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run of that name where it stopped"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --resume: continue although the run's episodes have another revision",
    )
    parser.add_argument(
        IGNORE_OPTION, action="store_true", help="ignore the task in the model's retool.json"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs (runs)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the settings as a preset and check them, but start nothing",
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="print this help and the algorithm's settings"
    )
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings that override the preset's"
    )
    return parser


def check_run(algorithm: Any, section: str, arguments: argparse.Namespace) -> None:
    """`--dry-run`: print the settings, and check them as the run itself would.

    Only the settings go to standard output, so that they can be redirected to a file.

    Args:
        algorithm: The algorithm's module or object.
        section: The preset's section for the algorithm.
        arguments: The parsed arguments of the command.

    Raises:
        SettingsError: If a setting is wrong.
    """
    if arguments.force:
        raise SettingsError("--dry-run changes nothing: leave --force out")
    with contextlib.redirect_stdout(sys.stderr):
        settings = read_settings(algorithm, section, arguments)
    if os.environ.get("RANK", "0") == "0":
        print(
            f"# Settings of `python -m agents {arguments.algorithm}`. "
            f"With --preset FILE.yaml {IGNORE_OPTION} they give this run again."
        )
        print(dump_yaml(dataclasses.asdict(settings)), end="", flush=True)
    with contextlib.redirect_stdout(sys.stderr), dry_run():
        algorithm.train(settings, arguments.runs / settings.name, arguments.resume)


def read_settings(algorithm: Any, section: str, arguments: argparse.Namespace) -> Any:
    """The algorithm's settings, from three sources.

    The command line overrides the task in the model's `retool.json`, which overrides the preset.

    Args:
        algorithm: The algorithm's module or object.
        section: The preset's section for the algorithm.
        arguments: The parsed arguments of the command.

    Raises:
        SettingsError: If a setting is unknown or has a wrong type, or the model's `retool.json` is
            wrong.
    """
    preset = arguments.preset or "tiny"
    cls = algorithm.Settings
    values = merge_settings(cls, section, preset, arguments.settings)
    settings = build_settings(cls, values)
    model, env = getattr(settings, "model", None), getattr(settings, "env", None)
    trains = getattr(algorithm, "TRAINS_MODEL", True)
    if not trains or model is None or not isinstance(env, dict):
        return settings
    asked = parse_settings(arguments.settings).get("env") or {}
    before = merge_settings(cls, section, preset, ()).get("env") or {}
    named = asked.get("id") or (before.get("id") if arguments.preset else None)
    folder = arguments.runs / settings.name
    if arguments.ignore_retool_json or model == "tiny":  # the run makes `tiny`, without a task
        model = None
    cure = f", or ignore it with {IGNORE_OPTION}"
    env = inherit_task(before, asked, model, named, folder, arguments.resume, cure)
    return build_settings(cls, {**values, "env": env})


def make_smollm2(argv: Sequence[str]) -> int:
    """`python -m agents smollm2 FOLDER`: make the checkpoint; returns the exit status."""
    from agents.models.smollm2 import CheckpointError, make_checkpoint

    parser = argparse.ArgumentParser(prog="python -m agents smollm2")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/models/smollm2"))
    try:
        print(make_checkpoint(parser.parse_args(argv).folder))
    except CheckpointError as error:
        print(f"python -m agents smollm2: {error}", file=sys.stderr)
        return 1
    return 0


def replay(argv: Sequence[str]) -> int:
    """`python -m agents replay RUN --algorithm NAME`; returns the exit status."""
    from agents.base.replay import main as replay_run

    try:
        return replay_run(argv)
    except (SettingsError, FileNotFoundError, ImportError) as error:
        print(f"python -m agents replay: {redact(str(error))}", file=sys.stderr)
        return 2


def _terminate(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does, so that its resources are closed."""
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = main()
        sys.stdout.flush()  # a closed pipe shows here at the latest
    except BrokenPipeError:
        if not reader_left():
            raise
        status = 141  # as a program that SIGPIPE ends
    for ending in (signal.SIGINT, signal.SIGTERM):
        # While Python closes: no traceback, and the status stays the status of the run.
        signal.signal(ending, lambda *_: os._exit(status))
    sys.exit(status)
