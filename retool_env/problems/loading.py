"""Where the rows of a data set come from, a file or the Hugging Face Hub, and what is kept of them.

In this order: the `path` that the caller names; a file of a known name in the folder named by the
environment variable `RETOOL_DATA`; the Hub, through `datasets.load_dataset`, whose cache also
works without a network. Nothing is ever downloaded where a file was found.

A question is kept once. What is left out of a data set is counted, logged, and told by
`ProblemList.omitted`.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
"""Names the environment variable that names the folder with local data sets."""

_PROBE_SECONDS = 5.0
_SHOWN_PLACES = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSplit:
    """One split of a data set on the Hub."""

    repo: str
    """Its id, e.g. `openai/gsm8k`."""
    split: str
    """E.g. `train`."""
    config: str | None = None
    """The configuration, where there are several."""


def local_file(path: str | os.PathLike[str] | None, *names: str) -> Path | None:
    """Return the file to read, or `None` if the Hub is next.

    Args:
        path: What the caller named; it must be a regular file.
        names: File names without their endings, looked for, in order, in the folder of
            `RETOOL_DATA`, with the endings of all forms (`rows.SUFFIXES`).

    Raises:
        ProblemsUnavailable: `path` is not a regular file, or the folder of `RETOOL_DATA` doesn't
            exist.
    """
    if path is not None:
        if fault := file_fault(path):
            raise ProblemsUnavailable(fault)
        return Path(path)
    if not (folder := os.environ.get(FOLDER_VARIABLE)):
        return None
    if not Path(folder).is_dir():
        raise ProblemsUnavailable(f"{FOLDER_VARIABLE} names {folder!r}, which is no folder")
    files = (
        Path(folder, f"{name}{suffix}{packed}")
        for name in names
        for suffix in SUFFIXES
        for packed in ("", ".gz")
    )
    return next((file for file in files if file.is_file()), None)


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
        with nullcontext() if hub_answers(hub.repo) else _only_cached():
            return datasets.load_dataset(hub.repo, hub.config, split=hub.split)
    # Offline, no such data set, gated, a split that is missing, a broken cache.
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
    """Load a data set and turn its rows into problems.

    Args:
        path: What the caller named, if anything.
        file_names: The names looked for in the folder of `RETOOL_DATA`: see `local_file`.
        hub: Where it is on the Hub.
        convert: Called with a row's position and the row.
        leave_out: See `collect`.

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
    """Turn rows into problems, each question once.

    Args:
        rows: Each with its place, for errors.
        name: What they are of: a file, or a data set on the Hub.
        convert: Called with a row's position and the row.
        leave_out: Rows to be left out rather than to be an error, by reason. Of a question with
            different answers all rows are; a question that comes again with the same answer always
            is.

    Raises:
        ValueError: A row isn't of the expected shape, two problems have the same id, or there is no
            problem; the message names the place or both places.
    """
    kept: dict[str, tuple[str, Problem]] = {}  # by question
    ids: dict[str, str] = {}
    contested: set[str] = set()
    omitted = _Omitted(name)
    for index, (place, row) in enumerate(rows):
        try:
            problem = convert(index, row)
        except UnusableRow as error:
            if error.reason not in leave_out:
                raise DataError(f"{place}: {error}") from error
            omitted.add(error.reason, place)
            continue
        except (TypeError, ValueError) as error:
            raise DataError(f"{place}: {error}") from error
        question = problem.question
        if question in contested:
            omitted.add(Reason.CONFLICT, place)
        elif question not in kept:
            if problem.id in ids:
                raise DataError(
                    f"{place}: the id {problem.id!r} is already that of {ids[problem.id]}"
                )
            ids[problem.id] = place
            kept[question] = place, problem
        else:
            first, known = kept[question]
            if is_same_gold(problem.answer, known.answer):
                omitted.add(Reason.REPEATED, place, " as ", first)
            elif Reason.CONFLICT in leave_out:
                said = f" {problem.answer!r:.40}, {first} {known.answer!r:.40}"
                omitted.add(Reason.CONFLICT, place, said, rows=2)
                contested.add(question)
                del kept[question]
            else:
                raise DataError(
                    f"{place}: the answer is {problem.answer!r:.60}, but {first} answers the same "
                    f"question with {known.answer!r:.60}: remove one of them"
                )
    left_out = omitted.said() and f"; left out are {omitted.said()}"
    if not kept:
        raise DataError(f"{name} holds no problem{left_out}")
    if left_out:
        _log_once(f"{name}: {len(kept):,} problems{left_out}")
    return ProblemList((problem for _, problem in kept.values()), omitted.counts)


class _Omitted:
    """What is left out of a data set: how many rows for which reason, and the first of them."""

    def __init__(self, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._prefix = f"{name}, "
        self._notes: dict[str, list[str]] = {}

    def add(self, reason: Reason, place: str, *said: str, rows: int = 1) -> None:
        """Count what is left out; `said` is joined only if it is going to be shown."""
        self.counts[reason] += rows
        notes = self._notes.setdefault(reason, [])
        if len(notes) < _SHOWN_PLACES:
            notes.append("".join((place, *said)).replace(self._prefix, ""))
        elif len(notes) == _SHOWN_PLACES:
            notes.append("...")

    def said(self) -> str:
        """The counts with the first places; empty if nothing is left out."""
        return ", ".join(
            f"{count:,} with {reason} ({'; '.join(self._notes[reason])})"
            for reason, count in self.counts.items()
        )


@functools.cache
def _log_once(text: str) -> None:
    """A process may load the same file many times, for each of its environments."""
    _log.warning(text)


def hub_answers(repo: str) -> bool:
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


def _only_cached() -> AbstractContextManager[object]:
    from unittest import mock

    import datasets

    return mock.patch.object(datasets.config, "HF_HUB_OFFLINE", True)


def _advice(hub: HubSplit, file_name: str) -> str:
    return (
        f"Either pass path=, or put {file_name} into a folder and set {FOLDER_VARIABLE} to it; "
        f"or get {hub.repo} from the Hugging Face Hub: with a network it downloads by itself "
        f"(`hf auth login` first if access is restricted), and later runs use the cache in HF_HOME."
    )
