"""Options that `retool eval` and `retool recover` share: the model, the sampling, the folder."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.commands.eval_settings import MAX_TOKENS, api_fields, check_engine
from retool_env.commands.keys import refuse_key
from retool_env.errors import SettingsError
from retool_env.key_values import parse_settings, parse_value
from retool_env.servers.address import check_no_secrets

if TYPE_CHECKING:
    from retool_env.evaluation.cost import Price


def add_api_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of models behind an API."""
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


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the sandbox, the sampling and the engine."""
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


def add_record_options(parser: argparse.ArgumentParser, record: str, folder: str) -> None:
    """Adds the options of the folder of records, of its continuation and of its price.

    Args:
        parser: The parser of the command.
        record: The noun for the work that the folder records, as help texts name it.
        folder: The folder of all such records below `runs`.
    """
    parser.add_argument("--name", help=f"the {record}'s name: its folder is runs/{folder}/NAME")
    parser.add_argument("--out", type=Path, help=f"the folder, in place of runs/{folder}/NAME")
    parser.add_argument(
        "--resume",
        action="store_true",
        help=f"continue the {record} of --name or --out; a larger --k or --problems adds episodes",
    )
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="with --resume: run episodes again that an infrastructure failure ended",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --resume: continue a record of another revision of the environment",
    )
    parser.add_argument(
        "--max-failed",
        type=share,
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


def share(text: str) -> float:
    """A share from a command line: `0.05` or `5%`."""
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share, such as 0.05 or 5%")
    return number


def check_options(arguments: argparse.Namespace, price: Price | None, folder: str) -> None:
    """Check options that concern no model.

    Args:
        arguments: The command line.
        price: Dollars of an API's tokens; `None`: unknown.
        folder: The folder of all records of the command below `runs`.

    Raises:
        SettingsError: An option is out of range, or lacks another option.
    """
    from retool_env.rollout.checkpoint_files import check_dtype

    for name in ("k", "problems", "m", "samples"):
        number = getattr(arguments, name, None)
        if number is not None and number < 1:
            raise SettingsError(f"--{name} must be at least 1, not {number}")
    limit = arguments.limit_cost
    if limit is not None and (price is None or not 0 < limit < math.inf):
        raise SettingsError("--limit-cost must be above 0, and needs --price")
    if arguments.resume and not (arguments.name or arguments.out):
        raise SettingsError("--resume needs the --name of its record, or its folder as --out")
    for option in ("retry_failed", "force"):
        if getattr(arguments, option) and not arguments.resume:
            raise SettingsError(f"--{option.replace('_', '-')} goes with --resume")
    below = Path(arguments.name or "x")
    if below.is_absolute() or ".." in below.parts or not below.parts:
        raise SettingsError(f"--name must be a name below runs/{folder}, not {arguments.name!r}")
    check_dtype("--dtype", arguments.dtype)
    check_engine(arguments)
    given = parse_settings(arguments.settings)
    check_no_secrets({"--sandbox": arguments.sandbox, "settings": given})
    api_fields(arguments)
