"""The kind of a folder's record, for error texts."""

import json

import pytest

from retool_env.evaluation.kinds import kind_of

RUN = json.dumps({"algorithm": "grpo", "settings": {}})
FILES = [
    ({}, ""),
    ({"config.json": '{"model_type": "llama"}'}, ""),
    ({"config.json": "["}, ""),
    ({"config.json": "3"}, ""),
    ({"config.json": RUN, "transcripts.jsonl": ""}, "a training run"),
    ({"recover.json": "", "results.json": "", "eval.yaml": ""}, "a record of `retool recover`"),
    ({"eval.json": ""}, "an evaluation"),
    ({"results.json": "{}"}, "an evaluation of an earlier version"),
    ({"transcripts.jsonl": ""}, "an evaluation of an earlier version"),
]


@pytest.mark.parametrize(("files", "kind"), FILES)
def test_the_kind_of_a_folder(files, kind, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert kind_of(tmp_path) == kind
