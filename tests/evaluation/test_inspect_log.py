"""A log of Inspect AI: the fields that its format needs, and, with the package, its own reader."""

import json
import zipfile

import pytest
from evaluation.test_export import FAILED, OTHER, folder_of
from evaluation.test_records import transcript, under_fault

from retool_env.errors import SettingsError
from retool_env.evaluation.export import export

NEEDED = {
    "log": {"version", "status", "eval", "plan", "results", "stats"},
    "eval": {"created", "task", "task_id", "run_id", "dataset", "model", "config"},
    "sample": {"id", "epoch", "input", "target", "messages", "output", "metadata", "model_usage"},
    "summary": {"id", "epoch", "input", "target", "completed"},
    "score": {"name", "scorer", "metrics"},
    "call": {"id", "function", "arguments", "type"},
}
"""Fields of each part without which Inspect does not read or show a log."""


@pytest.fixture
def evaluation(tmp_path):
    other = transcript("3", problem=OTHER, correct=True)
    folder = folder_of(tmp_path / "e", transcript(), transcript("3"), other, FAILED)
    figures = {"figures": [{"key": "accuracy/avg@2", "mean": 0.75}]}
    (folder / "figures.json").write_text(json.dumps(figures))
    return folder


def test_a_zip_and_a_json_hold_the_fields_that_the_format_needs(evaluation, tmp_path):
    path = export(evaluation, "inspect", tmp_path / "logs")
    assert path.parent == tmp_path / "logs"
    assert path.name.startswith("2026-01-02T03-04-05+00-00_ReTool-JSONL-v0_")
    assert export(evaluation, "inspect", tmp_path / "logs") == path  # the name is settled
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
        summaries = json.loads(archive.read("summaries.json"))
        start = json.loads(archive.read("_journal/start.json"))
        names = [name for name in archive.namelist() if name.startswith("samples/")]
        samples = [json.loads(archive.read(name)) for name in names]
    assert names[:2] == ["samples/own/1_epoch_1.json", "samples/own/1_epoch_2.json"]
    whole = json.loads(export(evaluation, "inspect", tmp_path / "log.json").read_text())
    assert list(whole)[-1] == "samples" and whole.pop("samples") == samples and whole == header
    assert header.keys() >= NEEDED["log"] and header["eval"].keys() >= NEEDED["eval"]
    assert start == {"version": 2, "eval": header["eval"], "plan": header["plan"]}
    for sample, summary in zip(samples, summaries, strict=True):
        assert sample.keys() >= NEEDED["sample"] and summary.keys() >= NEEDED["summary"]
    assert header["eval"]["dataset"]["sample_ids"] == ["own/1", "own/2"]
    [score] = header["results"]["scores"]
    assert score.keys() >= NEEDED["score"]
    assert score["metrics"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert (score["scored_samples"], score["unscored_samples"]) == (3, 1)
    assert header["results"]["metadata"]["figures"] == {"accuracy/avg@2": 0.75}
    assert header["stats"]["model_usage"]["m"]["output_tokens"] == 4 * 4


def test_an_episode_is_a_sample(evaluation, tmp_path):
    log = json.loads(export(evaluation, "inspect", tmp_path / "log.json").read_text())
    right, wrong, _, failed = log["samples"]
    assert (right["id"], right["epoch"], wrong["epoch"]) == ("own/1", 1, 2)
    assert right["scores"]["correct"]["value"] == "C" and right["target"] == "2"
    assert wrong["scores"]["correct"]["value"] == "I"
    assert wrong["scores"]["correct"]["answer"] == "3"
    assert "scores" not in failed and "infrastructure" in failed["error"]["message"]
    assert [message["role"] for message in right["messages"]] == [
        *("user", "assistant", "tool", "assistant")
    ]
    [call] = right["messages"][1]["tool_calls"]
    assert call.keys() >= NEEDED["call"] and call["arguments"] == {"code": "1/0"}
    assert right["messages"][2]["tool_call_id"] == call["id"]
    assert right["messages"][2]["content"] == "error"
    assert right["output"]["completion"] == "<answer>2</answer>"
    usage = {"input_tokens": 20, "output_tokens": 4, "total_tokens": 34}
    assert right["model_usage"]["m"].items() >= usage.items()
    assert len({sample["uuid"] for sample in log["samples"]}) == 4


def test_a_tool_message_names_its_fault(tmp_path):
    folder = folder_of(tmp_path / "e", transcript(), under_fault(True))
    log = json.loads(export(folder, "inspect", tmp_path / "log.json").read_text())
    clean, faulty = (sample["messages"][2]["metadata"] for sample in log["samples"])
    assert (faulty["fault"], faulty["injected"]) == ("wrong_value", True)
    assert "fault" not in clean


def test_a_local_models_usage_is_its_tokens(tmp_path):
    folder = folder_of(tmp_path / "e", transcript(tokens=3), usage=None)
    log = json.loads(export(folder, "inspect", tmp_path / "log.json").read_text())
    used = log["samples"][0]["model_usage"]["m"]
    assert (used["input_tokens"], used["output_tokens"]) == (2, 6)


@pytest.mark.parametrize(
    ("status", "shown"), [("finished", "success"), ("stopped", "cancelled"), ("running", "started")]
)
def test_the_status_of_the_evaluation_is_the_logs(status, shown, tmp_path):
    folder = folder_of(tmp_path / "e", transcript(), status=status)
    log = json.loads(export(folder, "inspect", tmp_path / "log.json").read_text())
    assert log["status"] == shown


def test_an_evaluation_without_episodes_is_refused_and_leaves_no_file(tmp_path):
    folder = folder_of(tmp_path / "e")
    for name in ("log.eval", "log.json"):
        with pytest.raises(SettingsError, match="no episode yet"):
            export(folder, "inspect", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("name", ["log.eval", "log.json"])
def test_inspect_reads_the_log(name, evaluation, tmp_path):
    log = pytest.importorskip("inspect_ai.log", reason="pip install 'retool-env[inspect]'")
    path = str(export(evaluation, "inspect", tmp_path / name))
    read = log.read_eval_log(path)
    assert (read.status, read.eval.task, len(read.samples)) == ("success", "ReTool-JSONL-v0", 4)
    assert read.results.scores[0].metrics["accuracy"].value == pytest.approx(2 / 3)
    sample = read.samples[0]
    assert sample.messages[1].tool_calls[0].arguments == {"code": "1/0"}
    assert sample.messages[2].text == "error" and sample.scores["correct"].value == "C"
    assert read.samples[3].error is not None and sample.model_usage["m"].output_tokens == 4
    assert log.read_eval_log(path, header_only=True).samples is None
    assert len(log.read_eval_log_sample_summaries(path)) == 4
    assert log.read_eval_log_sample(path, "own/2", 1).target == "3"
