"""Exports of an evaluation to the formats of other tools.

| format     | files                                                     | package    |
|------------|-----------------------------------------------------------|------------|
| `parquet`  | `episodes.parquet`, `calls.parquet`, `README.md`          | `pyarrow`  |
| `csv`      | `episodes.csv`, `calls.csv`                               | –          |
| `datasets` | a folder for `datasets.load_from_disk`                    | `datasets` |
| `inspect`  | a log of Inspect AI (`retool_env.evaluation.inspect_log`) | –          |
| `hub`      | `.eval_results/NAME.yaml` (`retool_env.evaluation.hub`)   | –          |

Episodes are read and written one by one. A file is complete or it is not there: it gets its name
after its last row.
"""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from retool_env.errors import MissingPackage, SettingsError
from retool_env.evaluation.hub import write_hub
from retool_env.evaluation.inspect_log import write_inspect_log
from retool_env.evaluation.progress import Say, counted
from retool_env.evaluation.records import EpisodeRecord, EvalRecord
from retool_env.evaluation.rows import (
    CALL_COLUMNS,
    EPISODE_COLUMNS,
    Kind,
    call_rows,
    clean,
    conversation,
    describe,
    episode_row,
    episodes_of,
)

Format = Literal["parquet", "csv", "datasets", "inspect", "hub"]
FORMATS: tuple[Format, ...] = get_args(Format)

MARK = ".retool-export"
"""The file in each folder that an export made, which a later export may therefore overwrite."""

_GROUP_BYTES = 32 << 20
"""Characters of texts that a row group of a Parquet file holds in memory before it is written."""

_CARD = """\
---
configs:
- config_name: episodes
  data_files: episodes.parquet
  default: true
- config_name: calls
  data_files: calls.parquet
tags:
- retool-env
- evaluation
---

# {name}

Episodes of {model} on {env}, and the calls of its interpreter. The columns are explained on the
page "Records" of the documentation of retool-env.
"""


def export(
    folder: str | Path,
    to: Format,
    out: str | Path | None = None,
    dataset: str | None = None,
    task: str | None = None,
    progress: Say | None = None,
) -> Path:
    """Writes an evaluation in the format of another tool.

    Args:
        folder: The folder of the evaluation, which may be the folder of an earlier version.
        to: The format.
        out: The folder of the files; for `inspect` it may be a file that ends in `.eval` or
            `.json`. `None`: `export/FORMAT` in the evaluation's folder.
        dataset: The benchmark's data set on the Hub, for `hub`. `None`: the environment's.
        task: The id of the benchmark's task, for `hub`. `None`: `default`.
        progress: Receives a line of progress for large folders; `None`: no progress is shown.

    Returns:
        The folder or file that was written.

    Raises:
        SettingsError: The format is unknown, `out` cannot be written, or nothing can be exported.
        DataError: The folder does not hold an evaluation, or a record is damaged.
        MissingPackage: A package of the format is not installed.
    """
    folder = Path(folder)
    if to not in FORMATS:
        raise SettingsError(f"the format must be one of {', '.join(FORMATS)}, not {to!r:.40}")
    record = describe(folder)
    target = folder / "export" / to if out is None else Path(out)
    if out is not None:
        _check_target(target, to)
    total = record.problems * record.k
    episodes = counted(episodes_of(folder), "episodes are written", progress, total)
    if to == "hub":
        return write_hub(episodes, record, target, dataset, task)
    if target.suffix not in (".eval", ".json") or to != "inspect":
        if target.exists() and not target.is_dir():
            raise SettingsError(f"--out must be a folder, but {target} is a file")
        target.parent.mkdir(parents=True, exist_ok=True)
    if to == "inspect":
        return write_inspect_log(folder, episodes, record, target)
    if to == "datasets":
        return _write_datasets(episodes, record, target)
    target.mkdir(exist_ok=True)
    (target / MARK).touch()
    table = _parquet if to == "parquet" else _csv
    with (
        table(target / f"episodes.{to}", EPISODE_COLUMNS) as add_episode,
        table(target / f"calls.{to}", CALL_COLUMNS) as add_call,
    ):
        for episode in episodes:
            add_episode(episode_row(episode, record))
            for row in call_rows(episode, record):
                add_call(row)
    if to == "parquet":
        names = {"name": record.name, "model": record.model.title, "env": record.env}
        (target / "README.md").write_text(_CARD.format(**names), encoding="utf-8")
    return target


def _check_target(target: Path, to: Format) -> None:
    """Checks that an export to `--out` overwrites no file of the user.

    A folder for `inspect` or `hub` may hold other files: their writers check the one file.

    Raises:
        SettingsError: The folder holds files that no export has written.
    """
    if to in ("inspect", "hub") or not target.is_dir() or (target / MARK).exists():
        return
    if any(target.iterdir()):
        raise SettingsError(f"{target} holds other files: choose an empty or a new folder as --out")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file, which replaces `path` when the block ends well."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


Add = Callable[[dict[str, Any]], None]
"""Writes a row."""


@contextlib.contextmanager
def _csv(path: Path, columns: Mapping[str, Kind]) -> Iterator[Add]:
    with replacing(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        yield lambda row: writer.writerow({name: _cell(value) for name, value in row.items()})


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(value) if isinstance(value, list) else value


@contextlib.contextmanager
def _parquet(path: Path, columns: Mapping[str, Kind]) -> Iterator[Add]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise MissingPackage(
            "Parquet needs the package pyarrow: pip install 'retool-env[export]'"
        ) from None
    types = {"text": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    types["texts"] = pa.list_(pa.string())
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    rows: list[dict[str, Any]] = []
    held = 0

    def add(row: dict[str, Any]) -> None:
        nonlocal held
        rows.append(row)
        held += sum(len(value) for value in row.values() if isinstance(value, str))
        if held >= _GROUP_BYTES:
            write()

    def write() -> None:
        nonlocal held
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        rows.clear()
        held = 0

    with (
        replacing(path) as part,
        parquet.ParquetWriter(part, schema, compression="zstd") as writer,
    ):
        yield add
        write()


def _write_datasets(episodes: Iterable[EpisodeRecord], record: EvalRecord, target: Path) -> Path:
    """Writes one dataset: an episode a row, with its calls and its conversation as lists."""
    try:
        import datasets
    except ImportError:
        raise MissingPackage(
            "the format datasets needs the package datasets: pip install 'retool-env[hub]'"
        ) from None
    types = {"text": "string", "int": "int64", "float": "float64", "bool": "bool"}
    values = {name: datasets.Value(name) for name in set(types.values())}

    def feature(kind: Kind) -> Any:
        return [values["string"]] if kind == "texts" else values[types[kind]]

    own_columns = {name: kind for name, kind in CALL_COLUMNS.items() if name not in EPISODE_COLUMNS}
    features = {name: feature(kind) for name, kind in EPISODE_COLUMNS.items()}
    features["calls"] = [{name: feature(kind) for name, kind in own_columns.items()}]
    features["messages"] = [{name: values["string"] for name in ("role", "content", "program")}]

    def rows() -> Iterator[dict[str, Any]]:
        for episode in episodes:
            row = episode_row(episode, record)
            calls = call_rows(episode, record)
            row["calls"] = [{name: call[name] for name in own_columns} for call in calls]
            row["messages"] = [
                clean({"program": None, **message}) for message in conversation(episode.transcript)
            ]
            yield row

    part = target.with_name(f".{target.name}.part")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as cache, _quiet(datasets):
            made = datasets.Dataset.from_generator(
                rows,
                features=datasets.Features(features),
                cache_dir=cache,
                writer_batch_size=100,
                fingerprint="retool-env",
            )
            made.save_to_disk(str(part))
        (part / MARK).touch()
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except datasets.exceptions.DatasetGenerationError as error:
        raise error.__cause__ or error from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


@contextlib.contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Without the progress bars of `datasets`."""
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
