"""The JSON Schemas of an evaluation's folder describe what a real evaluation writes."""

import dataclasses
import importlib.resources
import json
from pathlib import Path

import pytest
from evaluation.test_records import episode, record
from helpers.model_api import ModelAPI, Reply, serving

from retool_env.cli import main
from retool_env.evaluation.identity import ModelIdentity
from retool_env.evaluation.records import EvalRecord
from retool_env.execution import Execution, Outcome
from retool_env.metrics.figures import Figure
from retool_env.rollout.policy import Usage
from retool_env.transcript import FORMAT, Span, StopReason, Transcript

FILES = {
    "eval.json": "eval",
    "figures.json": "figures",
    "episodes.jsonl": "episode",
    "usage.jsonl": "usage",
}


def schema_of(name):
    folder = importlib.resources.files("retool_env.evaluation") / "schema"
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def errors_of(name, value):
    jsonschema = pytest.importorskip("jsonschema", reason="pip install 'retool-env[dev]'")
    validator = jsonschema.Draft202012Validator(schema_of(name))
    validator.check_schema(validator.schema)
    return [f"{error.json_path}: {error.message:.200}" for error in validator.iter_errors(value)]


def values_of(path):
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return [json.loads(line) for line in lines]


def scripted(conversation) -> Reply:
    """Fails once, mends its program, and answers."""
    turns = ("<code>print(1/0)</code>", "<code>print(5)</code>", "<answer>5</answer>")
    return Reply(turns[len(conversation) // 2])


def test_a_real_evaluation_writes_what_the_schemas_say(tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    monkeypatch.chdir(tmp_path)
    command = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--out", "found"]
    command += ["--sandbox", '{"name": "nsjail", "guests": 1}', "--price", "1,2"]
    with serving(ModelAPI(scripted)) as url:
        assert main([*command, "--api", url, "--problems", "2", "--k", "2"]) == 0
    for file, name in FILES.items():
        values = values_of(Path("found", file))
        assert values
        for value in values:
            assert errors_of(name, value) == [], file
    found = values_of(Path("found/episodes.jsonl"))
    assert {call["exception"] for line in found for call in line["calls"]} == {
        "ZeroDivisionError",
        None,
    }


@pytest.mark.parametrize(
    "more",
    [
        {"tokens": 4},
        {"stop_reason": StopReason.INFRASTRUCTURE, "answer": None, "correct": None},
        {"reward": -1.0, "weight_version": 0, "protocol": "hermes"},
    ],
)
def test_episodes_of_local_models_are_described(more):
    value = json.loads(json.dumps(dataclasses.replace(episode(**more), usage=None).to_json()))
    assert errors_of("episode", value) == []


def fields_of(cls):
    return {field.name for field in dataclasses.fields(cls)}


def properties_of(schema, *path):
    """The properties of an object in a schema, through lists and values that may be null."""
    for name in path:
        schema = schema["properties"][name]
        schema = schema.get("items", schema)
        schema = next((part for part in schema.get("anyOf", []) if "properties" in part), schema)
    return set(schema["properties"])


def test_every_field_is_described():
    schema = schema_of("episode")
    assert properties_of(schema) == set(episode().to_json())
    assert properties_of(schema, "calls") == set(episode().to_json()["calls"][0])
    assert properties_of(schema, "transcript") == fields_of(Transcript) | {"format"}
    assert properties_of(schema, "transcript", "spans") == fields_of(Span)
    assert properties_of(schema, "transcript", "spans", "execution") == fields_of(Execution)
    assert properties_of(schema, "usage") == fields_of(Usage) == properties_of(schema_of("usage"))
    assert properties_of(schema_of("eval")) == fields_of(EvalRecord)
    assert properties_of(schema_of("eval"), "model") == fields_of(ModelIdentity)
    assert properties_of(schema_of("figures"), "figures") == fields_of(Figure)


def test_every_value_of_a_closed_set_is_described():
    transcript = schema_of("episode")["properties"]["transcript"]["properties"]
    assert transcript["stop_reason"]["enum"] == [str(reason) for reason in StopReason]
    assert FORMAT in transcript["format"]["enum"]
    call = schema_of("episode")["properties"]["calls"]["items"]["properties"]
    assert call["outcome"]["enum"] == [str(outcome) for outcome in Outcome]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"k": 0}, "$.k"),
        ({"status": "done"}, "$.status"),
        ({"model": {}}, "$.model"),
        ({"schema": 2}, "$.schema"),
        ({"price": {"prompt": -1, "completion": 1, "cached": None}}, "$.price"),
    ],
)
def test_a_wrong_record_is_refused(change, place):
    value = record(started="2026-01-02T03:04:05+00:00").to_json()
    assert errors_of("eval", value) == []
    assert place in str(errors_of("eval", {**value, **change}))


def test_a_schema_accepts_fields_of_later_versions():
    assert errors_of("eval", {**record().to_json(), "later": 1}) == []
