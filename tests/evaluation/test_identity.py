"""Models and problems are told apart by their content."""

import subprocess

import pytest

from retool_env.evaluation import identity
from retool_env.evaluation.identity import ModelIdentity, commit, fingerprint, weights_hash
from retool_env.problem import Problem


def checkpoint(folder, weights=b"w", name="model.safetensors"):
    folder.mkdir(parents=True)
    (folder / name).write_bytes(weights)
    return folder


def test_checkpoints_of_one_name_are_told_apart_by_their_weights(tmp_path):
    first = ModelIdentity.of(str(checkpoint(tmp_path / "a" / "checkpoint")))
    same = ModelIdentity.of(str(checkpoint(tmp_path / "b" / "checkpoint")))
    other = ModelIdentity.of(str(checkpoint(tmp_path / "c" / "checkpoint", b"v")))
    assert first.kind == "checkpoint" and len(first.fingerprint) == 8
    assert first.weights == same.weights != other.weights
    assert (first.title, other.title) == ("a/checkpoint", "c/checkpoint")


def test_the_hash_is_of_all_weight_files_and_nothing_else(tmp_path):
    folder = checkpoint(tmp_path / "m")
    before = weights_hash(folder)
    (folder / "README.md").write_text("x")
    assert weights_hash(folder) == before
    (folder / "model-2.safetensors").write_bytes(b"")
    assert weights_hash(folder) != before
    (tmp_path / "empty").mkdir()
    assert weights_hash(tmp_path / "empty") is None


@pytest.mark.parametrize(
    ("name", "url", "kind", "title"),
    [
        ("Qwen/Qwen2.5-7B", None, "hub", "Qwen2.5-7B"),
        ("gpt-5", "http://h/v1", "api", "gpt-5"),
        ("org/model", "http://h/v1", "api", "model"),
    ],
)
def test_models_that_are_no_folder(name, url, kind, title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = ModelIdentity.of(name, url)
    assert (found.kind, found.title, found.url) == (kind, title, url)
    assert ModelIdentity.from_json(vars(found)) == found


def test_a_model_of_the_hub_has_the_commit_that_lies_in_the_cache(tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub.constants", reason="comes with transformers")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("abc123\n")
    assert ModelIdentity.of("org/model").revision == "abc123"


def test_problems_are_told_apart_by_id_question_answer_and_order():
    one, two = Problem("1", "q", "a"), Problem("2", "q", "a")
    prints = {
        fingerprint(each)
        for each in (
            [one, two],
            [two, one],
            [one],
            [one, Problem("2", "q", "b")],
            [one, Problem("2", "r", "a")],
        )
    }
    assert len(prints) == 5
    assert fingerprint(iter([one, two])) == fingerprint([one, two])


def test_the_commit_says_whether_the_clone_was_changed(tmp_path, monkeypatch):
    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    module = tmp_path / "retool_env" / "evaluation" / "identity.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(identity, "__file__", str(module))
    assert commit() is None  # an installed package
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    clean = commit()
    assert clean is not None and len(clean) == 40
    module.write_text("changed")
    assert commit() == clean + "+"


@pytest.mark.parametrize(
    "wrong", [{"name": True}, {"name": None}, {"weights": [1]}, {"revision": 1}]
)
def test_an_identity_of_another_type_is_named(wrong):
    record = {"name": "m", "kind": "hub", **wrong}
    with pytest.raises(TypeError, match=f"the model's {next(iter(wrong))} has the wrong value"):
        ModelIdentity.from_json(record)
