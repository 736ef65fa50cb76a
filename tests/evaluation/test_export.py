"""Exports hold every episode and call once, need little memory, and name what is wrong."""

import csv
import json
import re
import sys
import tracemalloc

import pytest
import yaml
from evaluation.test_records import PROBLEM, record, transcript

from retool_env.errors import DataError, MissingPackage, SettingsError
from retool_env.evaluation.export import FORMATS, export
from retool_env.evaluation.records import EpisodeRecord
from retool_env.evaluation.rows import (
    CALL_COLUMNS,
    EPISODE_COLUMNS,
)
from retool_env.execution import Execution, Outcome
from retool_env.problem import Problem
from retool_env.rollout.policy import Usage
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts

FIELDS = {
    "problems": 2,
    "k": 2,
    "status": "finished",
    "started": "2026-01-02T03:04:05+00:00",
    "price": {"prompt": 1.0, "completion": 2.0, "cached": 0.5},
}
OTHER = Problem("own/2", '1 + 2,\n"?"', "3", {"level": 4})
FAILED = transcript(problem=OTHER, stop_reason=StopReason.INFRASTRUCTURE, answer=None, correct=None)
USAGE = Usage(2, 30, 4, cached_tokens=10)


def folder_of(folder, *transcripts, usage=USAGE, **fields):
    """Writes an evaluation; two episodes of each problem."""
    folder.mkdir(exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(record(**FIELDS | fields).to_json()))
    with open(folder / "episodes.jsonl", "w") as file:
        for number, each in enumerate(transcripts):
            line = EpisodeRecord("m", each.problem.id, number % 2, 0, each, usage)
            file.write(json.dumps(line.to_json()) + "\n")
    return folder


@pytest.fixture
def evaluation(tmp_path):
    other = transcript("3", problem=OTHER, correct=True)
    return folder_of(tmp_path / "e", transcript(), transcript("3"), other, FAILED)


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_for_each_episode_and_each_call(evaluation):
    out = export(evaluation, "csv")
    assert out == evaluation / "export" / "csv"
    episodes, calls = rows_of(out / "episodes.csv"), rows_of(out / "calls.csv")
    assert list(episodes[0]) == list(EPISODE_COLUMNS) and list(calls[0]) == list(CALL_COLUMNS)
    assert [row["correct"] for row in episodes] == ["true", "false", "true", ""]
    assert [row["status"] for row in episodes] == ["finished"] * 3 + ["failed"]
    assert episodes[2]["question"] == '1 + 2,\n"?"' and episodes[2]["metadata"] == '{"level": 4}'
    assert episodes[0]["outcomes"] == "runtime_error" and episodes[0]["calls_ran"] == "0"
    assert (calls[0]["program"], calls[0]["exception"]) == ("1/0", "ZeroDivisionError")
    assert len(calls) == 4 and calls[3]["sample"] == "1"
    assert sorted(path.name for path in out.iterdir()) == [
        ".retool-export",
        "calls.csv",
        "episodes.csv",
    ]


def test_parquet_and_csv_hold_the_same(evaluation, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'retool-env[export]'")
    out = export(evaluation, "parquet", tmp_path / "p")
    for name in ("episodes", "calls"):
        rows = parquet.read_table(out / f"{name}.parquet").to_pylist()
        text = rows_of(export(evaluation, "csv") / f"{name}.csv")
        assert [list(row) for row in rows] == [list(row) for row in text]
        assert [row["problem"] for row in rows] == [row["problem"] for row in text]
    first = parquet.read_table(out / "episodes.parquet").to_pylist()[0]
    assert first["outcomes"] == ["runtime_error"] and first["correct"] is True
    # 20 tokens read at 1 dollar a million, 10 from the cache at 0.5, and 4 written at 2.
    assert first["cost"] == pytest.approx(33e-6)
    assert (first["model_tokens"], first["response_tokens"]) == (6, 7)
    header = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert [each["config_name"] for each in header["configs"]] == ["episodes", "calls"]


def test_the_parquet_folder_is_a_dataset_of_two_configurations(evaluation, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="pip install 'retool-env[hub]'")
    out = export(evaluation, "parquet", tmp_path / "p")
    cache = str(tmp_path / "cache")
    calls = datasets.load_dataset(str(out), "calls", split="train", cache_dir=cache)
    assert len(calls) == 4 and calls[0]["program"] == "1/0"


@pytest.mark.parametrize("to", ["csv", "parquet", "datasets"])
@pytest.mark.parametrize("name", ["README.md", "episodes.csv", "dataset_info.json", "notes.txt"])
def test_a_users_folder_is_left_alone_and_an_exports_is_written_again(
    to, name, evaluation, tmp_path
):
    if to != "csv":
        pytest.importorskip("pyarrow")
    out = tmp_path / "mine"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(SettingsError, match="mine holds other files: choose an empty"):
        export(evaluation, to, out)
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "mine"
    (out / name).unlink()
    export(evaluation, to, out)
    export(evaluation, to, out)


@pytest.mark.parametrize("name", ["x.json", "x.eval"])
def test_a_users_file_is_not_overwritten_by_a_log(name, evaluation, tmp_path):
    out = tmp_path / name
    for content in (b"{}", b"PK", b""):
        out.write_bytes(content)
        with pytest.raises(SettingsError, match=f"{name} is not a log of retool-env"):
            export(evaluation, "inspect", out)
        assert out.read_bytes() == content
    out.unlink()
    first = export(evaluation, "inspect", out).read_bytes()
    assert len(export(evaluation, "inspect", out).read_bytes()) == len(first)


def test_a_users_result_is_not_overwritten(evaluation, tmp_path):
    arguments = (evaluation, "hub", tmp_path, "a/b")
    path = export(*arguments)
    export(*arguments)
    path.write_text("- value: 3\n")
    with pytest.raises(SettingsError, match=f"{path.name} is not of retool-env"):
        export(*arguments)


@pytest.mark.parametrize(
    ("name", "kind"), [("recover.json", "a record of"), ("config.json", "a training run")]
)
def test_a_folder_of_another_record_is_named(name, kind, tmp_path):
    (tmp_path / name).write_text('{"algorithm": "grpo", "settings": {}}')
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "transcripts.jsonl").write_text("")
    with pytest.raises(DataError, match=f"holds {kind}.*, not an evaluation"):
        export(tmp_path, "csv")


def test_a_folder_for_load_from_disk_holds_calls_and_conversations(evaluation, tmp_path):
    datasets = pytest.importorskip("datasets", reason="pip install 'retool-env[hub]'")
    for _ in range(2):  # the second export replaces the first
        out = export(evaluation, "datasets", tmp_path / "d")
        made = datasets.load_from_disk(str(out))
    assert len(made) == 4 and made[0]["calls"][0]["program"] == "1/0"
    roles = [message["role"] for message in made[0]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]
    assert made[0]["messages"][1]["program"] == "1/0" and made[3]["correct"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "e"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(SettingsError, match="mine holds other files"):
        export(evaluation, "datasets", tmp_path / "mine")


@pytest.mark.parametrize("to", ["csv", "parquet", "datasets", "inspect"])
def test_any_text_is_written(to, tmp_path):
    odd = 'half \ud800 "of, a\n\0 pair'
    if to in ("parquet", "datasets"):
        pytest.importorskip("pyarrow")
    spans = (
        Span("prompt", "q"),
        Span("model", f"<code>{odd}</code>"),
        Span("env", odd, execution=Execution(Outcome.OK, odd), form="plain"),
    )
    made = Transcript(PROBLEM, spans, stop_reason=StopReason.CALL_LIMIT, answer=odd)
    assert export(folder_of(tmp_path / "e", made, usage=None), to, tmp_path / "out").exists()


def test_older_folders_are_exported(tmp_path):
    write_transcripts(tmp_path / "transcripts.jsonl", [transcript(), transcript("3"), FAILED])
    command = {"model": "runs/x", "seed": "4", "env": "ReTool-GSM8K-v0", "k": "3", "api": "None"}
    old = {"command": command, "problems": 1, "revision": 2, "seconds": 3.5, "settings": {}}
    (tmp_path / "results.json").write_text(json.dumps(old))
    for to in set(FORMATS) - {"datasets", "parquet"}:
        assert export(tmp_path, to).exists()
    rows = rows_of(tmp_path / "export" / "csv" / "episodes.csv")
    assert [row["sample"] for row in rows] == ["0", "1", "0"]
    assert {(row["model"], row["env"], row["seed"]) for row in rows} == {
        ("runs/x", "ReTool-GSM8K-v0", "4")
    }


# --- what is wrong --------------------------------------------------------------------------------


def test_folders_without_an_evaluation_are_named(evaluation, tmp_path):
    with pytest.raises(DataError, match="nowhere was not found"):
        export(tmp_path / "nowhere", "csv")
    with pytest.raises(DataError, match=r"holds 1 evaluations: name one of them, .*/e"):
        export(tmp_path, "csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is not the folder of an evaluation"):
        export(tmp_path / "empty", "csv")
    (evaluation / "eval.json").unlink()
    with pytest.raises(DataError, match=r"eval.json was not found"):
        export(evaluation, "csv")
    with pytest.raises(SettingsError, match="must be one of parquet, csv"):
        export(evaluation, "excel")


def test_out_must_be_a_folder(evaluation, tmp_path):
    (tmp_path / "file").write_text("mine")
    for to in FORMATS:
        with pytest.raises(SettingsError, match="--out must be a folder"):
            export(evaluation, to, tmp_path / "file", dataset="a/b")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("to", ["csv", "parquet", "datasets", "inspect"])
def test_a_damaged_episode_is_named_and_leaves_the_earlier_export(to, evaluation, tmp_path):
    if to in ("parquet", "datasets"):
        pytest.importorskip("datasets")
    out = tmp_path / "out"
    export(evaluation, to, out)
    before = {path: path.read_bytes() for path in out.rglob("*")}
    with open(evaluation / "episodes.jsonl", "a") as file:
        file.write('{"schema": 1}\n')
    with pytest.raises(DataError, match=r"episodes.jsonl, line 5 is not an episode"):
        export(evaluation, to, out)
    assert {path: path.read_bytes() for path in out.rglob("*")} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "out"]


@pytest.mark.parametrize(
    ("to", "package", "extra"), [("parquet", "pyarrow", "export"), ("datasets", "datasets", "hub")]
)
def test_a_missing_package_is_named(to, package, extra, evaluation, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackage, match=rf"pip install 'retool-env\[{extra}\]'"):
        export(evaluation, to)


def test_progress_names_the_number_of_all_episodes(evaluation, monkeypatch):
    monkeypatch.setattr("retool_env.evaluation.progress.SECONDS", 0.0)
    lines = []
    export(evaluation, "csv", progress=lines.append)
    assert re.fullmatch(r"1 of \d+ episodes are written", lines[0])


@pytest.mark.parametrize("to", ["csv", "inspect"])
def test_memory_does_not_grow_with_the_episodes(to, tmp_path):
    line = json.dumps(EpisodeRecord("m", "own/1", 0, 0, transcript("2" * 20_000)).to_json())
    folder = folder_of(tmp_path / "e")
    peaks = []
    for count in (20, 20, 200):  # the first time modules are loaded
        with open(folder / "episodes.jsonl", "w") as file:
            for sample in range(count):
                file.write(line.replace('"sample": 0', f'"sample": {sample}') + "\n")
        tracemalloc.start()
        export(folder, to, tmp_path / "out")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 1_000_000  # bytes; the file has grown by more than 7 million
