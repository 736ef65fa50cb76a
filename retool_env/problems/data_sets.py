"""The public data sets: AIME, DAPO-Math-17k, GSM8K, MATH.

Each function returns a source held in memory. Where its rows come from, a file or the Hub, is in
:mod:`retool_env.problems.loading`; ids hold the row's position in the original, so that they are
the same from both.
"""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retool_env.grading import extract_boxed
from retool_env.problems.loading import HubSplit, Row, hub_dataset, json_rows, load, local_file
from retool_env.problems.problem import Problem, ProblemList

if TYPE_CHECKING:
    import pyarrow

Location = str | os.PathLike[str] | None

_AIME = {
    2024: HubSplit("HuggingFaceH4/aime_2024", "train"),
    2025: HubSplit("math-ai/aime25", "test"),
}
_DAPO = HubSplit("BytedTsinghua-SIA/DAPO-Math-17k", "train")
_DAPO_FILES = ("dapo_math_17k.jsonl", "dapo-math-17k.parquet")
_DAPO_PREFIX = re.compile(
    r"\A\s*Solve the following math problem step by step\. The last line of your response should "
    r"be of the form Answer: \$?Answer.{0,80}is the answer to the problem\.\s*"
)
_DAPO_SUFFIX = re.compile(
    r"\s*Remember to put your answer on its own line after \"Answer:\"\.?\s*\Z"
)
_BATCH_ROWS = 100_000
_SPLITS = ("train", "test")


def aime(year: Literal[2024, 2025] | None = None, *, path: Location = None) -> ProblemList:
    """The 30 problems of AIME I and II of a year, or all 60: ReTool's evaluation set.

    Args:
        year: ``None`` for both years.
        path: A JSON-lines file of that one year; else ``aime24.jsonl`` and ``aime25.jsonl`` in the
            folder of ``RETOOL_DATA``, else the Hub. Columns: ``input`` and ``output``, or
            ``problem`` and ``answer``.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another year, or a `path` without a year.
    """
    if year is None:
        if path is not None:
            raise ValueError("a path is one year's file: pass year=2024 or year=2025 with it")
        years = (aime(2024), aime(2025))
        return ProblemList(source[i] for source in years for i in range(len(source)))
    if year not in _AIME:
        raise ValueError(f"year is 2024, 2025 or None (both), not {year!r}")

    def convert(index: int, row: Row) -> Problem:
        question, answer = ("input", "output") if "input" in row else ("problem", "answer")
        return Problem(
            f"aime/{year}/{index}",
            row[question].strip(),
            str(row[answer]).strip(),
            {"year": year},
        )

    return load(path, f"aime{year % 100}.jsonl", _AIME[year], convert)


def gsm8k(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    """Grade-school word problems, 7,473 and 1,319; the answer is an integer.

    Args:
        split: Which part.
        path: A JSON-lines file; else ``gsm8k_<split>.jsonl`` in the folder of ``RETOOL_DATA``,
            else the Hub. Columns: ``question``, and ``answer``, a worked solution whose result
            follows ``####``.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another split, or a row without a result.
    """
    _check_split(split)

    def convert(index: int, row: Row) -> Problem:
        return Problem(
            f"gsm8k/{split}/{index}", row["question"].strip(), worked_result(row["answer"])
        )

    return load(path, f"gsm8k_{split}.jsonl", HubSplit("openai/gsm8k", split, "main"), convert)


def math(split: Literal["train", "test"] = "train", *, path: Location = None) -> ProblemList:
    r"""Competition problems of MATH; the answer is any LaTeX expression.

    From the Hub these are all 7,500 and 5,000 problems of the original; a file may hold fewer. A
    row without a final answer, of which there are a few, can't be graded and is left out.

    Args:
        split: Which part.
        path: A JSON-lines file; else ``math_levels_3_to_5_<split>.jsonl`` in the folder of
            ``RETOOL_DATA``, else the Hub. Columns: ``problem``; ``answer``, or ``solution``, whose
            last ``\boxed{}`` is the answer; ``level``; ``subject`` or ``type``.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: Another split, or a row of another shape.
    """
    _check_split(split)

    def convert(index: int, row: Row) -> Problem | None:
        answer = row["answer"] if "answer" in row else extract_boxed(row["solution"])
        if not answer or not answer.strip():
            return None
        metadata = {"subject": row["subject"] if "subject" in row else row["type"]}
        if level := re.search(r"\d+", str(row["level"])):  # 3, or "Level 3"; two are "Level ?"
            metadata["level"] = int(level[0])
        return Problem(f"math/{split}/{index}", row["problem"].strip(), answer.strip(), metadata)

    hub = HubSplit("DigitalLearningGmbH/MATH-lighteval", split)
    return load(path, f"math_levels_3_to_5_{split}.jsonl", hub, convert)


def dapo(*, path: Location = None) -> ProblemList:
    """DAPO-Math-17k, the paper's RL data: some 17,000 problems with integer answers.

    The original repeats each problem about 100 times, 1.79 M rows; the first copy is kept. Its
    prompts tell the model how to write the answer; that wrapping is removed.

    Args:
        path: A JSON-lines or Parquet file of the original's shape; else ``dapo_math_17k.jsonl`` or
            ``dapo-math-17k.parquet`` in the folder of ``RETOOL_DATA``, else the Hub. Columns:
            ``prompt`` (chat messages) and ``reward_model.ground_truth``.

    Raises:
        ProblemsUnavailable: There is no such file, and the Hub can't be reached.
        ValueError: A row of another shape.
    """
    file = local_file(path, *_DAPO_FILES)
    problems: dict[str, Problem] = {}
    start = 0
    for table in _dapo_tables(file):
        try:
            rows = list(_first_copies(table))
        except (KeyError, ValueError) as error:  # pyarrow's errors are of these types
            place = f"{file or _DAPO.repo}, rows {start} to {start + table.num_rows - 1}"
            raise ValueError(f"{place}: {error}") from error
        for index, prompt, gold in rows:
            question = bare_question(prompt)
            if question not in problems:
                problems[question] = Problem(f"dapo/train/{start + index}", question, gold.strip())
        start += table.num_rows
    return ProblemList(problems.values())


def bare_question(prompt: str) -> str:
    r"""Remove DAPO's instructions from around a problem.

    Example:
        >>> bare_question('2?\n\nRemember to put your answer on its own line after "Answer:".')
        '2?'
    """
    return _DAPO_SUFFIX.sub("", _DAPO_PREFIX.sub("", prompt)).strip()


def worked_result(solution: str) -> str:
    r"""Return what follows the last ``####`` of a worked solution in the style of GSM8K.

    Raises:
        ValueError: Nothing does.

    Example:
        >>> worked_result("48 / 2 = <<48/2=24>>24 clips\n#### 24")
        '24'
    """
    _, mark, result = solution.rpartition("####")
    if not mark or not result.strip():
        raise ValueError("the answer has no result after '####'")
    return result.strip()


def _dapo_tables(file: Path | None) -> Iterator["pyarrow.Table"]:
    """The columns `prompt` and `reward_model`, a batch at a time: together they fill 1 GB."""
    import pyarrow
    import pyarrow.parquet

    columns = ["prompt", "reward_model"]
    if file is None:
        dataset = hub_dataset(_DAPO, _DAPO_FILES[0]).select_columns(columns)
        yield from dataset.with_format("arrow").iter(batch_size=_BATCH_ROWS)
    elif file.suffix == ".parquet":
        parquet = pyarrow.parquet.ParquetFile(file)
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            yield pyarrow.Table.from_batches([batch])
    else:
        for rows in itertools.batched(json_rows(file), _BATCH_ROWS):
            yield pyarrow.Table.from_pylist([row for _, row in rows])


def _first_copies(table: "pyarrow.Table") -> Iterator[tuple[int, str, str]]:
    """Yield ``(row, prompt, gold)`` of the first copy of each prompt in the table.

    Arrow compares the prompts; only the first copies become Python objects.
    """
    import numpy
    import pyarrow.compute as pc

    prompts = table["prompt"].combine_chunks()
    if pc.any(pc.not_equal(pc.fill_null(pc.list_value_length(prompts), 0), 1)).as_py():
        raise ValueError("every prompt should be a list of one chat message")
    texts = pc.struct_field(pc.list_element(prompts, 0), "content")
    golds = pc.struct_field(table["reward_model"].combine_chunks(), "ground_truth")
    if texts.null_count or golds.null_count:
        raise ValueError("a row has no prompt or no reward_model.ground_truth")
    codes = pc.dictionary_encode(texts).indices.to_numpy(zero_copy_only=False)
    for row in sorted(numpy.unique(codes, return_index=True)[1].tolist()):
        yield row, texts[row].as_py(), str(golds[row].as_py())


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
