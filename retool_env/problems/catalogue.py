"""The catalogue of the public data sets: where each is, and what is known about it.

`DATA_SETS` has an entry for each set of problems. Its key is the part of the problems' ids before
the row: `hmmt/2026-02` for the problem `hmmt/2026-02/7`. `published` gives the date of a problem.
A model whose training data are newer than this date may have seen the problem.
"""

import re
from dataclasses import dataclass

from retool_env.errors import SettingsError
from retool_env.problem import Problem
from retool_env.problems.loading import HubSplit

_DATE = re.compile(r"\d{4}(?:-(?:0[1-9]|1[0-2])(?:-(?:0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True)
class DataSet:
    """A public set of problems."""

    title: str
    """The name for a reader, for example `AIME 2026`."""
    hub: HubSplit
    """The split on the Hub."""
    files: tuple[str, ...]
    """The possible names of the local file in the folder of `RETOOL_DATA`, without suffix."""
    rows: int
    """The number of rows on the Hub."""
    published: str
    """The date of the first publication in ISO 8601, as exactly as it is known: `2026-02`."""
    licence: str | None
    """The licence that the publisher of the data set states; `None` if none is known."""
    columns: tuple[str, ...]
    """The columns that are read."""


_NON_COMMERCIAL = "CC BY-NC-SA 4.0"
_INTEGER = ("problem", "answer")
_ARENA = ("problem", "answer", "problem_type")


def _arena(title: str, repo: str, file: str, *, rows: int, published: str) -> DataSet:
    """A competition of MathArena. Its rows may be neither sold nor bundled."""
    hub = HubSplit(f"MathArena/{repo}", "train")
    return DataSet(title, hub, (file,), rows, published, _NON_COMMERCIAL, _ARENA)


def _math(split: str, rows: int) -> DataSet:
    hub = HubSplit("DigitalLearningGmbH/MATH-lighteval", split)
    columns = ("problem", "solution", "level", "type")
    return DataSet("MATH", hub, (f"math_levels_3_to_5_{split}",), rows, "2021-03", "MIT", columns)


def _gsm8k(split: str, rows: int) -> DataSet:
    hub = HubSplit("openai/gsm8k", split, "main")
    columns = ("question", "answer")
    return DataSet("GSM8K", hub, (f"gsm8k_{split}",), rows, "2021-10", "MIT", columns)


def _olymmath(config: str) -> DataSet:
    hub = HubSplit("RUC-AIBOX/OlymMATH", "test", config)
    file = f"olymmath_{config.replace('-', '_')}"
    columns = ("problem", "answer", "subject")
    return DataSet(f"OlymMATH {config}", hub, (file,), 100, "2025-03-27", "MIT", columns)


DATA_SETS: dict[str, DataSet] = {
    "aime/2024": DataSet(
        "AIME 2024",
        HubSplit("HuggingFaceH4/aime_2024", "train"),
        ("aime24",),
        rows=30,
        published="2024-02",
        licence=None,
        columns=_INTEGER,
    ),
    "aime/2025": DataSet(
        "AIME 2025",
        HubSplit("math-ai/aime25", "test"),
        ("aime25",),
        rows=30,
        published="2025-02-12",
        licence=None,
        columns=_INTEGER,
    ),
    "aime/2026": _arena("AIME 2026", "aime_2026", "aime26", rows=30, published="2026-02-06"),
    "hmmt/2025-02": _arena(
        "HMMT February 2025", "hmmt_feb_2025", "hmmt_feb25", rows=30, published="2025-02"
    ),
    "hmmt/2025-11": _arena(
        "HMMT November 2025", "hmmt_nov_2025", "hmmt_nov25", rows=30, published="2025-11"
    ),
    "hmmt/2026-02": _arena(
        "HMMT February 2026", "hmmt_feb_2026", "hmmt_feb26", rows=33, published="2026-02-14"
    ),
    "brumo/2025": _arena("BRUMO 2025", "brumo_2025", "brumo25", rows=30, published="2025-04"),
    "apex/2025": _arena("MathArena Apex 2025", "apex_2025", "apex25", rows=12, published="2025"),
    "apex/shortlist": _arena(
        "MathArena Apex shortlist", "apex-shortlist", "apex_shortlist", rows=48, published="2025"
    ),
    "beyondaime": DataSet(
        "BeyondAIME",
        HubSplit("ByteDance-Seed/BeyondAIME", "test"),
        ("beyondaime",),
        rows=100,
        published="2025",
        licence=None,
        columns=_INTEGER,
    ),
    "amo": DataSet(
        "AMO-Bench",
        HubSplit("meituan-longcat/AMO-Bench", "test"),
        ("amo_bench",),
        rows=50,
        published="2025-10-31",
        licence="MIT",
        columns=("prompt", "answer", "answer_type"),
    ),
    "olymmath/en-easy": _olymmath("en-easy"),
    "olymmath/en-hard": _olymmath("en-hard"),
    "olymmath/zh-easy": _olymmath("zh-easy"),
    "olymmath/zh-hard": _olymmath("zh-hard"),
    "math500": DataSet(
        "MATH-500",
        HubSplit("HuggingFaceH4/MATH-500", "test"),
        ("math500",),
        rows=500,
        published="2021-03",  # with MATH; the selection of 500 is of 2023
        licence=None,
        columns=("problem", "answer", "subject", "level"),
    ),
    "math/train": _math("train", 7_500),
    "math/test": _math("test", 5_000),
    "gsm8k/train": _gsm8k("train", 7_473),
    "gsm8k/test": _gsm8k("test", 1_319),
    "dapo/train": DataSet(
        "DAPO-Math-17k",
        HubSplit("BytedTsinghua-SIA/DAPO-Math-17k", "train"),
        ("dapo_math_17k", "dapo-math-17k"),
        rows=1_791_700,
        published="2025-03",
        licence=None,
        columns=("prompt", "reward_model.ground_truth"),
    ),
}
"""The public data sets, by the beginning of their problems' ids."""


def published(problem: Problem) -> str | None:
    """Returns the date on which a problem was published, in ISO 8601; `None` if it is unknown.

    A date in the problem's metadata comes first, so that your own file can have a column
    `published`. The date is a year, a month or a day: `2025`, `2025-11`, `2025-11-08`.
    """
    own = str(problem.metadata.get("published", ""))
    if _DATE.fullmatch(own):
        return own
    known = DATA_SETS.get(problem.id.rpartition("/")[0])
    return known.published if known else None


def check_date(text: str) -> str:
    """Returns a date in ISO 8601: a year, a month or a day.

    Raises:
        SettingsError: The text is not such a date.
    """
    if not _DATE.fullmatch(text):
        raise SettingsError(f"{text!r} is not a date, such as 2025, 2025-06 or 2025-06-30")
    return text


def is_published_by(date: str, model_date: str) -> bool:
    """Whether a problem may have been public at a model's date.

    The shorter of two dates decides, since a problem of 2025 may be older than a model of June
    2025. A problem of the same day or month counts as published.

    Args:
        date: The date of the problem, in ISO 8601.
        model_date: The date of the model's training data, in ISO 8601.

    Example:
        >>> is_published_by("2025-02-12", "2025-06"), is_published_by("2025-11", "2025-06")
        (True, False)
    """
    length = min(len(date), len(model_date))
    return date[:length] <= model_date[:length]
