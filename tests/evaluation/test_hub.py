"""Results for a model's repository on the Hub: their form, and evaluations that cannot be shown."""

import dataclasses

import pytest
import yaml
from evaluation.test_export import FAILED, OTHER, folder_of
from evaluation.test_records import transcript

from retool_env.errors import SettingsError
from retool_env.evaluation.export import export


@pytest.fixture
def evaluation(tmp_path):
    other = transcript("3", problem=OTHER, correct=True)
    return folder_of(tmp_path / "e", transcript(), transcript("3"), other, FAILED)


def test_a_result_for_the_hub_is_in_its_form(evaluation, tmp_path):
    path = export(evaluation, "hub", tmp_path / "repo", dataset="org/Bench", task="math")
    assert path == tmp_path / "repo" / ".eval_results" / "bench_with_tools.yaml"
    [entry] = yaml.safe_load(path.read_text())
    assert entry["dataset"] == {"id": "org/Bench", "task_id": "math"}
    assert entry["value"] == 66.67 and entry["date"] == "2026-01-02"
    assert "1 episodes failed" in entry["notes"] and entry["notes"].startswith("With tools; avg@2")
    hub = pytest.importorskip("huggingface_hub", reason="it reads the format")
    [read] = hub.parse_eval_result_entries([entry])
    assert (read.dataset_id, read.task_id, read.value) == ("org/Bench", "math", 66.67)
    assert hub.eval_result_entries_to_yaml([read]) == [entry]


def test_an_environments_data_set_is_known_and_a_model_without_tools_has_a_name_of_its_own(
    tmp_path,
):
    text = dataclasses.replace(transcript(), interpreter=False)
    path = export(folder_of(tmp_path / "e", text, env="ReTool-GSM8K-v0"), "hub")
    assert path.name == "gsm8k.yaml"
    [entry] = yaml.safe_load(path.read_text())
    assert entry["dataset"]["id"] == "openai/gsm8k" and "Without tools" in entry["notes"]


@pytest.mark.parametrize(
    ("fields", "options", "words"),
    [
        ({}, {}, "name a benchmark with --dataset ORG/NAME"),
        ({}, {"dataset": "../x"}, "--dataset must be ORG/NAME"),
        ({"status": "stopped"}, {"dataset": "a/b"}, "finish it with --resume"),
    ],
)
def test_what_cannot_be_shown_on_the_hub_is_refused(fields, options, words, tmp_path):
    folder = folder_of(tmp_path / "e", transcript(), **fields)
    with pytest.raises(SettingsError, match=words):
        export(folder, "hub", **options)
    assert not (folder / "export").exists()
