"""`--model-date` of `retool eval`: the problems that a model may have seen in its training."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retool_env.errors import SettingsError

if TYPE_CHECKING:
    from retool_env.problem import Problem


def add_model_date(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--model-date`."""
    parser.add_argument(
        "--model-date",
        type=_date,
        metavar="DATE",
        help="the date of the model's training data, such as 2025-06: names the problems that were "
        "published by then",
    )


def _date(text: str) -> str:
    from retool_env.problems.catalogue import check_date

    try:
        return check_date(text)
    except SettingsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def dates_of(problems: Sequence[Problem]) -> dict[str, int]:
    """The number of problems by their date of publication; problems without a date are left out."""
    from retool_env.problems import published

    dates = (published(problem) for problem in problems)
    return dict(sorted(Counter(date for date in dates if date is not None).items()))


def contamination(environments: Mapping[str, Sequence[Problem]], date: str | None) -> list[str]:
    """A line for each environment that says which problems a model may have seen.

    Args:
        environments: The problems by the environment's id.
        date: The date of the model's training data, in ISO 8601; `None`: nothing is said.
    """
    if date is None:
        return []
    return [f"{id}: {_sentence(problems, date)}" for id, problems in environments.items()]


def _sentence(problems: Sequence[Problem], date: str) -> str:
    from retool_env.problems import published
    from retool_env.problems.catalogue import is_published_by

    old: Counter[str] = Counter()
    new: Counter[str] = Counter()
    for problem in problems:
        if (day := published(problem)) is not None:
            (old if is_published_by(day, date) else new)[_set_of(problem, day)] += 1
    total = len(problems)
    parts = []
    if old:
        parts.append(
            f"{old.total()} of {total} problems were published by {date} and may be contaminated: "
            f"{_shown(old)}"
        )
    if new:
        parts.append(f"{new.total()} of {total} problems are newer than {date}: {_shown(new)}")
    if undated := total - old.total() - new.total():
        parts.append(f"the date of {undated} of {total} problems is unknown")
    return "; ".join(parts)


def _set_of(problem: Problem, day: str) -> str:
    from retool_env.problems import DATA_SETS

    key = problem.id.rpartition("/")[0]
    title = DATA_SETS[key].title if key in DATA_SETS else key
    return f"{title} ({day})" if title else day


def _shown(sets: Counter[str]) -> str:
    return ", ".join(sets)
