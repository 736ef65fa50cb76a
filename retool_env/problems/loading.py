"""Where the rows of a data set come from: a file, or the Hugging Face Hub.

In this order: the `path` that the caller names; a file of a known name in the folder named by the
environment variable ``RETOOL_DATA``; the Hub, through `datasets.load_dataset`, whose cache also
works without a network. Nothing is ever downloaded where a file was found.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retool_env.files import file_fault, read_lines
from retool_env.problems.problem import Problem, ProblemList, ProblemsUnavailable

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER_VARIABLE = "RETOOL_DATA"
"""Names the environment variable that names the folder with local data sets."""

_PROBE_SECONDS = 5.0

Row = dict[str, Any]


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set on the Hub."""

    repo: str
    """Its id, e.g. ``openai/gsm8k``."""
    split: str
    """E.g. ``train``."""
    config: str | None = None
    """The configuration, where there are several."""


def local_file(path: str | os.PathLike[str] | None, *names: str) -> Path | None:
    """Return the file to read, or ``None`` if the Hub is next.

    Args:
        path: What the caller named; it must be a regular file.
        names: File names looked for, in order, in the folder of ``RETOOL_DATA``.

    Raises:
        ProblemsUnavailable: `path` is not a regular file, or the folder of ``RETOOL_DATA`` doesn't exist.
    """
    if path is not None:
        if fault := file_fault(path):
            raise ProblemsUnavailable(fault)
        return Path(path)
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return None
    if not Path(folder).is_dir():
        raise ProblemsUnavailable(f"{FOLDER_VARIABLE} names {folder!r}, which is no folder")
    return next((Path(folder, name) for name in names if Path(folder, name).is_file()), None)


def json_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """Yield ``(place, row)`` for every line of a JSON-lines file that isn't blank.

    Raises:
        ValueError: A line isn't a JSON object, isn't UTF-8, or is too long, or this is no regular file; the message names
            file and line.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{os.fspath(path)}, line {number}"
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 ({error.reason})") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
        except RecursionError as error:
            raise ValueError(f"{place}: nested too deeply") from error
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected an object with columns, found {row!r:.60}")
        yield place, row


def hub_dataset(hub: HubSplit, file_name: str) -> "Dataset":
    """Load a split from the Hub, or from its cache.

    Args:
        hub: What to load.
        file_name: The local file that would have done, for the message.

    Raises:
        ProblemsUnavailable: It is neither cached nor to be had; the message gives both ways out.
    """
    try:
        import datasets
    except ImportError as error:
        raise ProblemsUnavailable(
            f"{hub.repo} needs `datasets`: pip install 'retool-env[hub]'. {_advice(hub, file_name)}"
        ) from error
    try:
        with nullcontext() if _hub_answers(hub.repo) else _only_cached():
            return datasets.load_dataset(hub.repo, hub.config, split=hub.split)
    # Offline, no such data set, gated, a split that is missing, a broken cache.
    except (OSError, ValueError, RuntimeError) as error:
        raise ProblemsUnavailable(
            f"{hub.repo} ({hub.split}) can't be loaded: {error}. {_advice(hub, file_name)}"
        ) from error


def load(
    path: str | os.PathLike[str] | None,
    file_name: str,
    hub: HubSplit,
    convert: Callable[[int, Row], Problem | None],
) -> ProblemList:
    """Load a data set and turn each row into a problem.

    Args:
        path: What the caller named, if anything.
        file_name: The name looked for in the folder of ``RETOOL_DATA``.
        hub: Where it is on the Hub.
        convert: Called with a row's position and the row; ``None`` leaves the row out.

    Raises:
        ProblemsUnavailable: See :func:`local_file` and :func:`hub_dataset`.
        ValueError: A row isn't of the expected shape; the message names its place.
    """
    if file := local_file(path, file_name):
        rows = json_rows(file)
    else:
        dataset = hub_dataset(hub, file_name)
        rows = ((f"{hub.repo}, row {index}", row) for index, row in enumerate(dataset))
    problems = []
    for index, (place, row) in enumerate(rows):
        try:
            problem = convert(index, row)
        except KeyError as error:
            raise ValueError(f"{place}: no column {error}, only {sorted(row)}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{place}: {error}") from error
        if problem is not None:
            problems.append(problem)
    return ProblemList(problems)


def _hub_answers(repo: str) -> bool:
    """Ask once, within seconds: `load_dataset` retries an unreachable host for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(repo, timeout=_PROBE_SECONDS)
    except HfHubHTTPError:
        return True  # it answered; what it objects to is for `load_dataset` to say
    except Exception:  # no network, offline mode, a proxy that fails: the types vary by version
        return False
    return True


def _only_cached() -> AbstractContextManager:
    from unittest import mock

    import datasets

    return mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True)


def _advice(hub: HubSplit, file_name: str) -> str:
    return (
        f"Either pass path=, or put {file_name} into a folder and set {FOLDER_VARIABLE} to it; "
        f"or get {hub.repo} from the Hugging Face Hub: with a network it downloads by itself "
        f"(`hf auth login` first if access is restricted), and later runs use the cache in HF_HOME."
    )
