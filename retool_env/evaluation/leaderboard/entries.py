"""The entries of a leaderboard: the runs in a folder, and the tables of comparable runs.

An entry is a folder of `retool recover` or of `retool eval`, one or two levels below the folder of
the leaderboard. Entries share a table if all their settings are equal, apart from the model and its
own sampling. A run that is damaged or not finished is left out with its reason, so that it hides no
other run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retool_env.errors import DataError, MissingFile, RetoolError
from retool_env.evaluation.leaderboard.measures import Measures, measure_eval, measure_recover
from retool_env.evaluation.records import (
    EVAL,
    RULES_OF_ONE_RUN,
    EvalRecord,
    all_rules,
    read_episodes,
    read_record,
)
from retool_env.evaluation.recover.records import (
    RECOVER,
    RecoverRecord,
    read_arms,
    read_left_out,
    read_recover,
)
from retool_env.evaluation.recover.submission import Finding
from retool_env.printable import one_line

Check = Callable[[Path, RecoverRecord], Sequence[Finding]]
"""A function that checks the folder of a submission."""

_ANY_SIZE = ("whole",)
"""The checks that say how much was run. The table itself shows that, so ranks do not need them."""


@dataclass(frozen=True)
class Entry:
    """One run of one model."""

    folder: Path
    """The folder."""
    name: str
    """The path of the folder below the leaderboard's folder."""
    record: EvalRecord
    """The record; a `RecoverRecord` for a run of `retool recover`."""
    measures: Measures
    """The figures."""
    findings: tuple[Finding, ...] | None = None
    """The results of the checks; `None`: not checked."""

    @property
    def failed(self) -> list[str]:
        """The names of the checks that failed."""
        return [finding.name for finding in self.findings or () if not finding.right]

    @property
    def distrusted(self) -> bool:
        """Whether a failed check takes the rank away."""
        own = getattr(self.record, "suite", "") == "own"
        harmless = (*_ANY_SIZE, "suite") if own else _ANY_SIZE
        return any(name not in harmless for name in self.failed)


@dataclass(frozen=True)
class LeftOutRun:
    """A run that is in no table."""

    name: str
    """The path of the folder below the leaderboard's folder."""
    reason: str
    """The reason, for a reader."""


def find_runs(folder: Path) -> list[Path]:
    """The folders of runs one and two levels below a folder, in the order of their names.

    Args:
        folder: The folder; it may itself be a run.

    Raises:
        MissingFile: There is no such folder.
        DataError: It holds no run.
    """
    if not folder.is_dir():
        raise MissingFile(f"{folder} was not found: name a folder that holds folders of runs")
    found = [folder] if _is_run(folder) else [run for one in _below(folder) for run in _runs(one)]
    if not found:
        raise DataError(
            f"{folder} holds no run: neither {RECOVER} nor {EVAL} was found one or two levels "
            "below it; make a run with `retool recover` or `retool eval`"
        )
    return found


def _runs(folder: Path) -> list[Path]:
    return [folder] if _is_run(folder) else [one for one in _below(folder) if _is_run(one)]


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _is_run(folder: Path) -> bool:
    return (folder / RECOVER).exists() or (folder / EVAL).exists()


def read_entries(folder: Path, check: Check | None = None) -> tuple[list[Entry], list[LeftOutRun]]:
    """Reads all runs of a folder, one after the other; only their figures stay in memory.

    Args:
        folder: The folder of the leaderboard.
        check: The checker of submissions; `None`: nothing is checked.

    Returns:
        The entries, and the runs that are left out.

    Raises:
        MissingFile: There is no such folder.
        DataError: It holds no run.
    """
    entries: list[Entry] = []
    left_out: list[LeftOutRun] = []
    for path in find_runs(folder):
        name = str(path.relative_to(folder)) if path != folder else path.name
        try:
            entries.append(_read(path, name, check))
        except (RetoolError, OSError) as error:
            left_out.append(LeftOutRun(name, str(error)))
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # The fields of a damaged record have any type: it must not hide the other runs.
            left_out.append(LeftOutRun(name, f"its records are damaged: {error!r:.200}"))
    return entries, left_out


def _read(path: Path, name: str, check: Check | None) -> Entry:
    if not (path / RECOVER).exists():
        record = read_record(path)
        _require_finished(record)
        measures = measure_eval(record, list(read_episodes(path, tokens=False)))
        return Entry(path, name, record, _with_episodes(measures))
    recover = read_recover(path)
    _require_finished(recover)
    arms = list(read_arms(path, tokens=False))
    measures = measure_recover(recover, arms, read_left_out(path))
    return Entry(path, name, recover, _with_episodes(measures), _checked(path, recover, check))


def _require_finished(record: EvalRecord) -> None:
    if record.status != "finished":
        raise DataError(f"the run is {record.status}: finish it with --resume")


def _with_episodes(measures: Measures) -> Measures:
    if not measures.values["accuracy"]:
        raise DataError("the run has no episode without faults")
    return measures


def _checked(path: Path, record: RecoverRecord, check: Check | None) -> tuple[Finding, ...] | None:
    if check is None:
        return None
    try:
        return tuple(check(path, record))
    except RetoolError as error:  # a file of the run lacks, or the suite's data can't be loaded
        return (Finding("check", False, str(error)),)


@dataclass(frozen=True)
class Table:
    """The entries that are compared and ranked together."""

    settings: dict[str, Any]
    """The settings that all entries share, as plain JSON values."""
    entries: tuple[Entry, ...]
    """The entries."""

    @property
    def title(self) -> str:
        """A short title."""
        setting = self.settings
        if setting["command"] == "retool eval":
            return f"{one_line(str(setting['env']))}, without faults"
        if setting["suite"] == "own":
            title = f"Own problems {setting['fingerprint'][:8]}"
        else:
            title = f"Suite {setting['suite']}, {setting['part']}"
        return one_line(title + ", quick" * bool(setting["quick"]))

    def differences(self, other: Table) -> list[str]:
        """The settings in which this table differs, as `name: mine, not theirs`."""
        mine, theirs = self.settings, other.settings
        return [
            f"{name}: {_short(mine.get(name))}, not {_short(theirs.get(name))}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]


def _short(value: object) -> str:
    return one_line(str(value), 60)


def tables_of(entries: Iterable[Entry]) -> list[Table]:
    """The tables of comparable entries: whole suites first, then by the number of entries."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(json.dumps(settings_of(entry.record)), []).append(entry)
    made = [Table(json.loads(text), tuple(some)) for text, some in groups.items()]
    return sorted(
        made,
        key=lambda table: (
            table.settings["command"] == "retool eval",
            bool(table.settings.get("quick")),
            -len(table.entries),
        ),
    )


def settings_of(record: EvalRecord) -> dict[str, Any]:
    """The settings that must be equal for a comparison; the model and its sampling are left out.

    The numbers of samples are left out as well, since they change the width of the intervals only.

    Args:
        record: The record of a run.
    """
    settings: dict[str, Any] = {"command": "retool eval", "env": record.env}
    if isinstance(record, RecoverRecord):
        names = ("suite", "part", "suite_hash", "quick", "kinds", "rates")
        settings = {"command": "retool recover", **{n: getattr(record, n) for n in names}}
    rules = all_rules(record.rules)
    return {
        **settings,
        **{"fingerprint": record.fingerprint, "revision": record.revision},
        "prompt": record.prompt,
        **{f"rules.{n}": value for n, value in rules.items() if n not in RULES_OF_ONE_RUN},
    }
