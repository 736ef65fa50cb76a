"""`retool.json`: the task of a checkpoint, and the values that the file may not hold."""

from __future__ import annotations

import copy
import dataclasses
import http.server
import json
import os
import threading

import gymnasium as gym
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retool_env import REVISION, Limits, Rules
from retool_env.checkpoint_checks import RULES
from retool_env.checkpoint_task import (
    FILE,
    MOST_BYTES,
    CheckpointTask,
    differences,
    merged,
    read_task,
    task_rules,
)
from retool_env.task import make_task

ARITHMETIC = "ReTool-Arithmetic-v0"
ENV = {
    "id": ARITHMETIC,
    "difficulty": [1, 1, 4],
    "prompt_template": "{query}\n",
    "max_calls": 3,
    "max_tokens": 160,
    "errors": "last_line",
}
RECORD = CheckpointTask.of(ENV).to_json()


def changed(**values):
    """The object of a file, with changed values; `rules__max_calls` is a key of `rules`."""
    record = copy.deepcopy(RECORD)
    for name, value in values.items():
        part, _, key = name.partition("__")
        if key:
            record[part][key] = value
        else:
            record[part] = value
    return record


def write(folder, record):
    text = record if isinstance(record, str) else json.dumps(record)
    (folder / FILE).write_text(text, encoding="utf-8")
    return folder


# --- what is written ----------------------------------------------------------------------------


def test_what_is_written_is_read_again_and_makes_the_same_task(tmp_path):
    CheckpointTask.of(ENV).save(tmp_path / "model")
    task = read_task(f"{tmp_path}/model/")
    assert task == CheckpointTask.of(ENV)
    assert [p.name for p in (tmp_path / "model").iterdir()] == [FILE]
    rules, problems = make_task(**task.env)
    wanted, wanted_problems = make_task(**ENV)
    assert rules == wanted == task_rules(task)
    assert [problems[i] for i in range(6)] == [wanted_problems[i] for i in range(6)]
    assert task.sampling == {"temperature": 1.0, "top_p": 0.7} and task.revision == REVISION


def test_every_setting_of_an_episode_is_in_the_file():
    """A new field of `Rules` must be in the file, unless a stranger must not set it.

    Faults are not in it: an evaluation has faults only where its command names them.
    """
    fields = {field.name for field in dataclasses.fields(Rules)}
    assert {*RULES, "protocol", "prompt_template", "faults"} == fields
    assert set(RECORD["rules"]) == set(RULES)
    assert set(RECORD["rules"]["limits"]) == {field.name for field in dataclasses.fields(Limits)}


def test_a_template_in_a_file_is_written_as_its_text(tmp_path):
    path = tmp_path / "template.json"
    path.write_text(json.dumps({"retool": "Solve {{it}}: {query}"}))
    task = CheckpointTask.of({"id": ARITHMETIC, "prompt_template": str(path)})
    assert task.prompt_template == "Solve {{it}}: {query}"
    assert str(tmp_path) not in json.dumps(task.to_json())


def test_what_a_file_may_not_hold_is_left_out_and_named(tmp_path):
    problems = tmp_path / "p.jsonl"
    problems.write_text('{"question": "1 + 1?", "answer": "2"}\n')
    env = {
        "id": "ReTool-JSONL-v0",
        "path": str(problems),
        "answer_key": "answer",
        "reward": lambda transcript: 0.0,
        "max_calls": 5000,
        "limits": {"wall_seconds": 20, "memory_mb": 64},
        "prompt_template": "{query}{query:>9}",
    }
    task = CheckpointTask.of(env)
    assert set(task.left_out) == {
        "path",
        "reward",
        "max_calls",
        "limits.wall_seconds",
        "prompt_template",
    }
    assert task.rules["limits"] == {
        **dataclasses.asdict(Limits()),
        "memory_mb": 64,
    }
    assert task.rules["reward"] == "paper" and task.rules["max_calls"] == Rules().max_calls
    assert task.problems == {"question_key": None, "answer_key": "answer"}
    assert str(problems) not in json.dumps(task.to_json())
    assert CheckpointTask.from_json(json.loads(json.dumps(task.to_json()))) == task
    said = task.summary("ReTool-JSONL-v0", "x")
    assert "limits.memory_mb=64" in said and "; not in it: " in said and "\n" not in said


def test_the_split_is_nobodys_to_say():
    task = CheckpointTask.of({**ENV, "split": "test"})
    assert "split" not in json.dumps(task.to_json())
    with pytest.raises(ValueError, match="problems: unknown key 'split'"):
        CheckpointTask.from_json(changed(problems__split="train"))


def test_settings_that_an_id_stands_for_are_the_ids():
    assert CheckpointTask.of({"id": "ReTool-AIME24-v0"}).problems == {}
    assert CheckpointTask.of({"id": "ReTool-AIME-v0", "year": 2025}).problems == {"year": 2025}


def test_an_environment_of_ones_own_is_carried_where_it_is_registered():
    kwargs = {"problems": "arithmetic", "difficulty": 2, "max_calls": 1}
    gym.register("Own-v0", entry_point="retool_env.env:ReToolEnv", kwargs=kwargs)
    try:
        record = CheckpointTask.of({"id": "Own-v0"}).to_json()
        assert record["rules"]["max_calls"] == 1 and "difficulty" not in record["problems"]
        assert CheckpointTask.from_json(record).id == "Own-v0"
    finally:
        del gym.registry["Own-v0"]
    with pytest.raises(ValueError, match="id: no environment 'Own-v0'"):
        CheckpointTask.from_json(record)


# --- what is read -------------------------------------------------------------------------------

REFUSED = {
    "no object": ([], "JSON object"),
    "a sandbox": (changed(sandbox="unsafe"), "'sandbox': unknown key"),
    "a sandbox among the rules": (changed(rules__sandbox="http://x"), "rules: unknown key 'sand"),
    "faults": (changed(faults={"rate": 1}), "'faults': unknown key"),
    "a key of a stranger": (changed(auto_map="x.py"), "'auto_map': unknown key"),
    "a path": (changed(problems__path="/etc/passwd"), "problems: unknown key 'path'"),
    "another source's setting": (changed(problems__year=2024), "problems: unknown key 'year'"),
    "a path for a prompt": (changed(prompt_template="/etc/passwd"), "prompt_template: "),
    "an attribute": (changed(prompt_template="{query.__class__}"), "prompt_template: "),
    "an item": (changed(prompt_template="{query[0]}"), "prompt_template: "),
    "a width": (changed(prompt_template="{query:>1000000000}"), "prompt_template: "),
    "a conversion": (changed(prompt_template="{query!r}"), "prompt_template: "),
    "another field": (changed(prompt_template="{query}{x}"), "prompt_template: "),
    "half a field": (changed(prompt_template="{query"), "prompt_template: "),
    "a number for a prompt": (changed(prompt_template=3), "prompt_template: "),
    "a long prompt": (changed(prompt_template="{query}" + " " * 20_000), "prompt_template: "),
    "an escape for the terminal": (changed(prompt_template="{query}\x1b[2J"), "prompt_template: "),
    "half a character": (changed(prompt_template="{query}\ud800"), "prompt_template: "),
    "no such environment": (changed(id="Nope-v0"), "id: no environment 'Nope-v0'"),
    "another's environment": (changed(id="CartPole-v1"), "id: no environment"),
    "a list for an id": (changed(id=["a"]), "id: it must be"),
    "a long id": (changed(id="x" * 9999), "id: it must be"),
    "no such protocol": (changed(protocol="shell"), "protocol: "),
    "a list for a protocol": (changed(protocol=[]), "protocol: "),
    "seconds above the default": (changed(rules__limits={"wall_seconds": 6}), "limits.wall_sec"),
    "memory above the default": (changed(rules__limits={"memory_mb": 2048}), "limits.memory_mb"),
    "processes above the default": (changed(rules__limits={"processes": 17}), "limits.processes"),
    "an unknown limit": (changed(rules__limits={"gpus": 1}), "limit"),
    "limits as a list": (changed(rules__limits=[]), "rules.limits: "),
    "a limit as text": (changed(rules__limits={"tmp_mb": "1"}), "tmp_mb"),
    "too many calls": (changed(rules__max_calls=10**30), "rules.max_calls: "),
    "too many tokens": (changed(rules__max_tokens=2**40), "rules.max_tokens: "),
    "too many characters": (changed(rules__output_characters=10**9), "rules.output_characters: "),
    "endless seconds": (changed(rules__max_seconds=1e300), "max_seconds"),
    "calls as text": (changed(rules__max_calls="3"), "max_calls must be"),
    "true for a number": (changed(rules__max_calls=True), "max_calls must be"),
    "text for true": (changed(rules__session="yes"), "session must be"),
    "code for a reward": (changed(rules__reward="os:system"), "no reward preset"),
    "a list for a reward": (changed(rules__reward=[1]), "rules.reward: "),
    "rules as text": (changed(rules="all"), "rules: it must be an object"),
    "too hard": (changed(problems__difficulty=6), "problems.difficulty: "),
    "no level": (changed(problems__difficulty=[]), "problems.difficulty: "),
    "many levels": (changed(problems__difficulty=[1] * 10_000), "problems.difficulty: "),
    "very many problems": (changed(problems__size=10**12), "problems.size: "),
    "a seed of its own kind": (changed(problems__seed="0"), "problems.seed: "),
    "hot sampling": (changed(sampling__temperature=1e9), "sampling.temperature: "),
    "no nucleus": (changed(sampling__top_p=0), "sampling.top_p: "),
    "sampling as text": (changed(sampling__top_p="0.7"), "sampling.top_p: "),
    "half a sampling": (changed(sampling={"top_p": 0.7}), "sampling: "),
    "another sampling": (changed(sampling__top_k=3), "sampling: unknown key 'top_k'"),
    "no revision": (changed(revision=0), "revision: "),
    "a revision as text": (changed(revision="2"), "revision: "),
    "a later format": (changed(format=2), "format: 2"),
    "true for a format": (changed(format=True), "format: "),
    "words left out": (changed(left_out=["buy this"]), "left_out: "),
    "one word left out": (changed(left_out="path"), "left_out: "),
    "objects left out": (changed(left_out=[{}]), "left_out: "),
    "not a number": (json.dumps(RECORD).replace("0.7", "NaN"), "NaN is not a number"),
    "infinity": (json.dumps(RECORD).replace("0.7", "-Infinity"), "Infinity is not a number"),
    "an overflow": (json.dumps(RECORD).replace("0.7", "1e999"), "sampling.top_p: "),
    "a key twice": ('{"id": "a", "id": "b"}', "twice"),
    "half a file": (json.dumps(RECORD)[:50], "not JSON"),
    "an empty file": ("", "not JSON"),
    "many brackets": ("[" * 50_000, "nested too deeply"),
    "many digits": ('{"format": ' + "9" * 50_000 + "}", "retool.json: "),
    "a large file": (" " * (MOST_BYTES + 1), "larger than"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_a_stranger_is_refused_by_file_and_key(name, tmp_path):
    record, message = REFUSED[name]
    write(tmp_path, record)
    with pytest.raises(ValueError) as refused:
        read_task(tmp_path, ", or say so")
    said = str(refused.value)
    assert said.startswith(f"{tmp_path / FILE}: ") and message in said
    assert said.endswith("Mend or remove the file, or say so") and len(said) < 1500
    assert "\x1b" not in said


@pytest.mark.parametrize("name", [n for n in RECORD if n not in ("problems", "left_out")])
def test_a_missing_key_is_named(name, tmp_path):
    record = changed()
    del record[name]
    with pytest.raises(ValueError, match=f"{FILE}: {name}: it is missing"):
        read_task(write(tmp_path, record))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / FILE)
    with pytest.raises(ValueError, match="is a pipe"):
        read_task(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="is a device"):
        read_task(tmp_path)
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no file"):
        read_task(tmp_path)


def test_lower_limits_and_budgets_without_a_bound_are_taken(tmp_path):
    record = changed(rules__max_calls=None, rules__limits={"wall_seconds": 0.5})
    record["rules"].update(max_tokens=None, max_characters=None)
    task = read_task(write(tmp_path, record))
    rules = task_rules(task)
    assert rules.limits == Limits(wall_seconds=0.5) and rules.max_calls is None
    assert "max_tokens" not in task.env


def test_rules_that_an_older_version_did_not_have_get_their_defaults(tmp_path):
    record = changed(rules={"max_calls": 3}, problems={})
    del record["left_out"]
    task = read_task(write(tmp_path, record))
    assert task_rules(task) == Rules(max_calls=3, prompt_template="{query}\n")
    assert task.problems == {"seed": 0, "difficulty": 1, "size": 10_000}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
_keys = st.sampled_from(
    [(k,) for k in RECORD]
    + [(part, k) for part in ("rules", "problems", "sampling") for k in RECORD[part]]
    + [("rules", "limits", k) for k in RECORD["rules"]["limits"]]
)


@given(_keys, _json)
def test_any_value_of_any_key_is_taken_as_it_is_or_refused(key, value):
    record = changed()
    place = record
    for part in key[:-1]:
        place = place[part]
    place[key[-1]] = value
    try:
        task = CheckpointTask.from_json(record)
    except ValueError as error:
        assert str(error)
        return
    again = CheckpointTask.from_json(json.loads(json.dumps(task.to_json(), allow_nan=False)))
    assert again == task
    limits = task_rules(task).limits
    assert all(getattr(limits, k) <= v for k, v in dataclasses.asdict(Limits()).items())
    assert task_rules(task).template.format(query="x")


@given(st.text(alphabet="{}query!:>9.[]_ ", max_size=30))
def test_no_template_does_more_than_to_put_the_problem_in(template):
    try:
        task = CheckpointTask(ARITHMETIC, prompt_template=template)
    except ValueError:
        return
    parts = template.replace("{{", "\0").replace("}}", "\1").split("{query}")
    filled = "37".join(parts).replace("\0", "{").replace("\1", "}")
    assert task_rules(task).template.format(query="37") == filled


# --- what is taken ------------------------------------------------------------------------------


def test_another_id_takes_protocol_and_prompt_alone():
    task = CheckpointTask.of({**ENV, "protocol": "hermes"})
    talk = {"protocol": "hermes", "prompt_template": "{query}\n"}
    assert task.settings_for("ReTool-GSM8K-v0") == talk
    assert dataclasses.replace(task, id=None, problems={}).settings_for(ARITHMETIC) == talk
    other = dataclasses.replace(task, sampling={"temperature": 0.2, "top_p": 0.9})
    assert other.sampling_for(ARITHMETIC) == {"temperature": 0.2, "top_p": 0.9}
    assert other.sampling_for("ReTool-GSM8K-v0") == {"temperature": 1.0, "top_p": 0.7}


def test_settings_over_others_keep_each_limit_and_say_what_differs():
    before = {"max_calls": 3, "errors": "last_line", "limits": {"wall_seconds": 1, "tmp_mb": 2}}
    given = {"max_calls": 5, "errors": "last_line", "limits": {"tmp_mb": 4}, "path": "x"}
    assert merged(before, given) == {
        "max_calls": 5,
        "errors": "last_line",
        "limits": {"wall_seconds": 1, "tmp_mb": 4},
        "path": "x",
    }
    said = differences(before, {**given, "limits": {"tmp_mb": 2}}, "there")
    assert said == "max_calls=5 (there: 3)"


def test_another_revision_is_warned_of():
    task = CheckpointTask.of(ENV)
    assert task.revision_warning("x") == ""
    warning = dataclasses.replace(task, revision=REVISION + 1).revision_warning("x")
    assert f"revision {REVISION + 1}" in warning and "CHANGELOG.md" in warning


# --- where it lies ------------------------------------------------------------------------------


def test_a_model_without_the_file_has_no_task(tmp_path):
    assert read_task(tmp_path) is None
    assert read_task("./nowhere") is None and read_task("/nowhere/at/all") is None
    (tmp_path / "model.gguf").write_text("x")
    assert read_task(tmp_path / "model.gguf") is None


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake Hub that serves `some/model`: its files and its server. The cache is temporary."""
    constants = pytest.importorskip("huggingface_hub.constants")
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path)
            self.send_response(200 if content is not None else 404)
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", '"e"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    url = f"http://127.0.0.1:{server.server_port}/" + template.partition("//")[2].partition("/")[2]
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
    yield files, server
    server.shutdown()
    server.server_close()


def test_a_model_on_the_hub_brings_its_file(hub):
    files, server = hub
    place = f"/some/model/resolve/main/{FILE}"
    assert read_task("some/model") is None
    files[place] = b" " * (MOST_BYTES + 1)
    with pytest.raises(ValueError, match=r"retool.json of some/model on the Hub: .*, or say so"):
        read_task("some/model", ", or say so")
    files[place] = json.dumps(RECORD).encode()
    assert read_task("some/model") == CheckpointTask.of(ENV)
    # Without a network, the cache answers; it holds no other model.
    server.shutdown()
    server.server_close()
    assert read_task("some/model") == CheckpointTask.of(ENV)
    assert read_task("some/other") is None
