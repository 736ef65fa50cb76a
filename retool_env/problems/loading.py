"""Loading of data sets: finds the rows in a file or on the Hugging Face Hub, and selects problems.

The rows come from the first of these places that exists:

1. the `path` that the caller gives;
2. a file with a known name in the folder that the environment variable `RETOOL_DATA` names;
3. the Hub, through `datasets.load_dataset`, whose cache also works without a network.

So nothing is downloaded if a file exists. Each question is kept once. Omitted rows are counted in
`ProblemList.omitted`, and the log names the first of them.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import DataError
from retool_env.files import file_fault
from retool_env.problem import Problem, ProblemList, ProblemsUnavailable
from retool_env.problems.columns import Reason, Row, UnusableRow, is_same_gold
from retool_env.problems.rows import BATCH_ROWS, SUFFIXES, read_rows, table_rows

if TYPE_CHECKING:
    from datasets import Dataset

FOLDER_VARIABLE = "RETOOL_DATA"
"""The environment variable that holds the folder with local data sets."""

_PROBE_SECONDS = 5.0
_SHOWN_LOCATIONS = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set on the Hub."""

    repo: str
    """The id of the data set, for example `openai/gsm8k`."""
    split: str
    """The name of the split, for example `train`."""
    config: str | None = None
    """The configuration of the data set; `None` if it has only one."""


def local_file(path: str | os.PathLike[str] | None, *names: str) -> Path | None:
    """Returns the file of a data set; `None` if the data set must come from the Hub.

    Args:
        path: The file that the caller gives; `None`: the function looks for a file in the folder of
            `RETOOL_DATA`.
        *names: The possible names of the file, in order, without suffix. The suffixes of all forms
            are tried (`rows.SUFFIXES`).

    Raises:
        ProblemsUnavailable: `path` is not a regular file, or the folder of `RETOOL_DATA` does not
            exist.
    """
    if path is not None:
        if fault := file_fault(path):
            raise ProblemsUnavailable(fault)
        return Path(path)
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return None
    if not Path(folder).is_dir():
        raise ProblemsUnavailable(
            f"{FOLDER_VARIABLE} names {folder!r}, which is not a folder; correct or unset it"
        )
    files = (Path(folder, "".join(parts)) for parts in product(names, SUFFIXES, ("", ".gz")))
    return next((file for file in files if file.is_file()), None)


def hub_dataset(hub: HubSplit, file_name: str) -> "Dataset":
    """Loads a split from the Hub, or from the cache.

    Args:
        hub: The split.
        file_name: The name of a local file that can replace the split, for the error text.

    Raises:
        ProblemsUnavailable: The split is not cached, and can't be loaded. The error text names both
            remedies.
    """
    try:
        import datasets
    except ImportError as error:
        raise ProblemsUnavailable(
            f"{hub.repo} needs `datasets`: pip install 'retool-env[hub]'. {_advice(hub, file_name)}"
        ) from error
    try:
        with nullcontext() if hub_answers(hub.repo) else _only_cached():
            return datasets.load_dataset(hub.repo, hub.config, split=hub.split)
    # No network, an unknown or restricted data set, a missing split, a broken cache.
    except (OSError, ValueError, RuntimeError) as error:
        raise ProblemsUnavailable(
            f"{hub.repo} ({hub.split}) can't be loaded: {error}. {_advice(hub, file_name)}"
        ) from error


def load(
    path: str | os.PathLike[str] | None,
    file_names: tuple[str, ...],
    hub: HubSplit,
    convert: Callable[[int, Row], Problem],
    leave_out: Collection[Reason] = (),
) -> ProblemList:
    """Loads a data set and turns its rows into problems.

    Args:
        path: The file that the caller gives; `None`: the folder of `RETOOL_DATA`, or the Hub.
        file_names: The possible names of the file in this folder: see `local_file`.
        hub: The split on the Hub.
        convert: Makes a problem of a row's position and the row.
        leave_out: The reasons for which a row is omitted: see `collect`.

    Raises:
        ProblemsUnavailable: See `local_file` and `hub_dataset`.
        ValueError: See `collect`.
    """
    if file := local_file(path, *file_names):
        return collect(read_rows(file), os.fspath(file), convert, leave_out)
    dataset = hub_dataset(hub, f"{file_names[0]}.jsonl").with_format("arrow")
    rows = table_rows(dataset.iter(batch_size=BATCH_ROWS), hub.repo)
    return collect(rows, hub.repo, convert, leave_out)


def collect(
    rows: Iterable[tuple[str, Row]],
    name: str,
    convert: Callable[[int, Row], Problem],
    leave_out: Collection[Reason] = (),
) -> ProblemList:
    """Turns rows into problems, and keeps each question once.

    Args:
        rows: Pairs of a location, which error texts show, and a row.
        name: The name of the file, or of the data set on the Hub.
        convert: Makes a problem of a row's position and the row.
        leave_out: The reasons for which a row is omitted; for any other reason, the row is an
            error. `Reason.CONFLICT` omits all rows of a question with different answers. A repeated
            question with the same answer is always omitted.

    Raises:
        ValueError: A row does not give a problem, two problems have the same id, or no row gives a
            problem. The error text names the location of each row.
    """
    kept: dict[str, tuple[str, Problem]] = {}  # by question
    ids: dict[str, str] = {}
    contested: set[str] = set()
    omitted = _Omitted(name)
    for index, (location, row) in enumerate(rows):
        try:
            problem = convert(index, row)
        except UnusableRow as error:
            if error.reason not in leave_out:
                raise DataError(f"{location}: {error}") from error
            omitted.add(error.reason, location)
            continue
        except (TypeError, ValueError) as error:
            raise DataError(f"{location}: {error}") from error
        question = problem.question
        if question in contested:
            omitted.add(Reason.CONFLICT, location)
        elif question not in kept:
            if problem.id in ids:
                raise DataError(
                    f"{location}: the id {problem.id!r} is already used at {ids[problem.id]}; give "
                    "each problem its own id"
                )
            ids[problem.id] = location
            kept[question] = location, problem
        else:
            first, known = kept[question]
            if is_same_gold(problem.answer, known.answer):
                omitted.add(Reason.REPEATED, location, " as ", first)
            elif Reason.CONFLICT in leave_out:
                answers = f" {problem.answer!r:.40}, {first} {known.answer!r:.40}"
                omitted.add(Reason.CONFLICT, location, answers, rows=2)
                contested.add(question)
                del kept[question]
            else:
                raise DataError(
                    f"{location}: the answer is {problem.answer!r:.60}, but {first} answers the "
                    f"same question with {known.answer!r:.60}; remove one of the two rows"
                )
    left_out = f"; left out are {omitted}" if omitted.counts else ""
    if not kept:
        raise DataError(f"{name} holds no usable problem{left_out}")
    if left_out:
        _log_once(f"{name}: {len(kept):,} problems{left_out}")
    return ProblemList((problem for _, problem in kept.values()), omitted.counts)


class _Omitted:
    """The omitted rows of a data set: their number by reason, and the first locations."""

    def __init__(self, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._prefix = f"{name}, "
        self._notes: dict[str, list[str]] = {}

    def add(self, reason: Reason, location: str, *details: str, rows: int = 1) -> None:
        """Counts omitted rows; the details are joined only if they will be shown."""
        self.counts[reason] += rows
        notes = self._notes.setdefault(reason, [])
        if len(notes) < _SHOWN_LOCATIONS:
            notes.append("".join((location, *details)).replace(self._prefix, ""))
        elif len(notes) == _SHOWN_LOCATIONS:
            notes.append("...")

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} with {reason} ({'; '.join(self._notes[reason])})"
            for reason, count in self.counts.items()
        )


@functools.cache
def _log_once(text: str) -> None:
    """Logs a text once: a process may load the same file for each of its environments."""
    _log.warning(text)


def hub_answers(repo: str) -> bool:
    """Returns whether the Hub answers a single request within seconds.

    `load_dataset` itself tries an unreachable host again for half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(repo, timeout=_PROBE_SECONDS)
    except HfHubHTTPError:
        return True  # the Hub answered; `load_dataset` will report the error
    except Exception:  # no network, offline mode, a broken proxy: the types vary by version
        return False
    return True


def _only_cached() -> AbstractContextManager[object]:
    from unittest import mock

    import datasets

    return mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True)


def _advice(hub: HubSplit, file_name: str) -> str:
    return (
        f"Pass path=, or put {file_name} into a folder and set {FOLDER_VARIABLE} to this folder. "
        f"Or connect this machine to the Hugging Face Hub: {hub.repo} is then downloaded "
        "(`hf auth login` first if access is restricted), and later runs use the cache in HF_HOME."
    )
