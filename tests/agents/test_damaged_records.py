"""Damaged records: a continued run names the damage and the cure, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
from helpers.small_runs import given, make_small, records, settings

from agents import grpo, ppo, rft, sft
from agents.__main__ import main
from agents.base import session
from agents.base.records import read_episodes
from agents.base.run import Run
from agents.base.settings import SettingsError
from agents.traces.report import read_report, table
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.transcript import Span, StopReason, Transcript, write_transcripts

pytestmark = pytest.mark.usefixtures("one_thread")

DEEP = b"[" * 100_000


def of_object(change):
    """A damage to the values of a JSON object."""
    return lambda text: json.dumps(change(json.loads(text))).encode()


TEXTS = {
    "cut in the middle": lambda text: text[: len(text) // 2],
    "a list": lambda text: b"[1, 2]",
    "a number": lambda text: b"7",
    "null": lambda text: b"null",
    "no keys": lambda text: b"{}",
    "nested deeply": lambda text: b'{"step": ' + DEEP,
    "NUL bytes": lambda text: text[:5] + b"\0\0\0" + text[8:],
    "not UTF-8": lambda text: text.replace(b'"', b'"\xff\xfe', 1),
    "a huge integer": lambda text: b'{"step": ' + b"9" * 5000 + b"}",
    "two objects": lambda text: text + b' {"step": 1}',
}
"""Kinds of damage to a line, or to a file that holds one object."""

PLACES = {
    "a folder": lambda path: path.mkdir(),
    "a named pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
"""Things that may lie at a file's path."""

FIGURES = {
    "step": [float("nan"), "3", None, -1, 10**30, True],
    "seconds": [float("nan"), "3", None, [1]],
    "env/accuracy": ["0.5", [1], {}],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


SFT = {"traces": 8, "batch_size": 4, "micro_batch": 4, "epochs": 2, "env.max_tokens": 60}
MORE = {"grpo": {"steps": 4, "save_steps": 2}, "ppo": {"steps": 4, "save_steps": 2}}
MORE["sft"] = {**SFT, "save_steps": 2, "trl": {"logging_steps": 1, "save_total_limit": 2}}


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    """A finished run of each algorithm, in a folder of its own."""
    folder = tmp_path_factory.mktemp("runs")
    for name, module in {"grpo": grpo, "ppo": ppo, "sft": sft}.items():
        module.train(settings(name, model=model, **MORE[name]), folder / name)
    return folder


@pytest.fixture
def stopped(finished, tmp_path):
    """Copies of these runs, as they were before they ended."""

    def copy(name):
        shutil.copytree(finished / name, tmp_path / name)
        (tmp_path / name / "done").unlink()
        return tmp_path / name

    return copy


def contents(folder):
    """All files, but for the lock, the status, and what is damaged beyond reading."""
    unread = "lock", "status.json"
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and path.name not in unread
    }


def refused(folder, model, capsys, *text, **more):
    """The run does not go on: one line says so, with status 2, and nothing of it is touched."""
    name, before = folder.name, contents(folder)
    command = [name, "--preset", "tiny", "--runs", str(folder.parent), "--resume"]
    capsys.readouterr()
    status = main([*command, *given(name, model=model, name=name, **MORE[name] | more)])
    message = capsys.readouterr().err
    assert status == 2, message
    [line] = [each for each in message.splitlines() if each.startswith("python -m agents")]
    assert message.endswith(line + "\n")
    for each in text:
        assert str(each) in line, line
    assert len(line) < 1000
    assert contents(folder) == before
    assert json.loads((folder / "status.json").read_text())["state"] in ("failed", "finished")
    assert not list(folder.rglob("*.part"))
    return line


def damage_line(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = change(lines[number - 1].rstrip(b"\n")) + b"\n"
    path.write_bytes(b"".join(lines))


@pytest.mark.some(8)
@pytest.mark.parametrize("damage", TEXTS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "transcripts.jsonl"])
def test_a_damaged_line_is_named(name, damage, stopped, model, capsys):
    run = stopped("grpo")
    damage_line(run / name, 2, TEXTS[damage])
    line = refused(run, model, capsys, f"{run / name}, line 2: ", "Restore it, or delete that line")
    assert "Error" not in line


@pytest.mark.some(1)
@pytest.mark.parametrize("name", ["metrics.jsonl", "transcripts.jsonl"])
def test_a_last_line_is_passed_over_only_if_it_was_cut_short(name, stopped, model, capsys):
    run = stopped("grpo")
    whole = (run / name).read_bytes()
    for end in (b'{"step": 9}}', b"[1", b"\0\0\0", b'{"step": 9, "lo\n', b'{"step": 9}{"step": 8'):
        (run / name).write_bytes(whole + end)
        refused(run, model, capsys, f"{run / name}, line {whole.count(b'\n') + 1}: ")
    for end in (b'{"step": 9, "lo', b"\n"):
        (run / name).write_bytes(whole + end)
        grpo.train(settings("grpo", model=model, **MORE["grpo"]), run, resume=True)
        assert (run / name).read_bytes() == whole
        (run / "done").unlink()
    lines = whole.splitlines(keepends=True)
    (run / name).write_bytes(lines[0] + b"\n" + b"".join(lines[1:])[:-1])  # what follows is a line
    grpo.train(settings("grpo", model=model, **MORE["grpo"]), run, resume=True)
    assert (run / name).read_bytes() == whole


def test_lines_stay_as_they_were_written(stopped, model):
    """Those after the checkpoint go, and those before keep what this version does not know."""
    run = stopped("grpo")
    shutil.rmtree(run / "trainer")
    path = run / "metrics.jsonl"
    run_of = Run(run, settings("grpo", model=model, **MORE["grpo"]), True, "steps")
    checkpoint = run / "trainer" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 2}')
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = b'{"step":1,   "new": [NaN, {"x": 1e999}]}\n'
    path.write_bytes(b"".join(lines))
    assert run_of.resume_point() == str(checkpoint)
    assert path.read_bytes() == b"".join(lines[:2])
    assert len((run / "transcripts.jsonl").read_bytes().splitlines()) == 2 * 8


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in FIGURES.items() for value in values]
)
def test_a_figure_of_the_wrong_kind_is_named(key, value, stopped, model, capsys):
    run = stopped("grpo")
    damage_line(run / "metrics.jsonl", 3, of_object(lambda record: {**record, key: value}))
    refused(run, model, capsys, "metrics.jsonl, line 3: not a record: ", f'"{key}"')


@pytest.mark.parametrize("value", [float("nan"), "3", [1], -1.5, 10**30, True])
def test_an_episode_of_no_step_is_named(value, stopped, model, capsys):
    run = stopped("grpo")
    change = of_object(lambda record: {**record, "trained_version": value})
    damage_line(run / "transcripts.jsonl", 5, change)
    refused(run, model, capsys, "transcripts.jsonl, line 5: not a transcript of a training run: ")


OBJECTS = ["config.json", "trainer/checkpoint-4/trainer_state.json"]


@pytest.mark.some(8)
@pytest.mark.parametrize(
    ("algorithm", "damage"),
    [
        *(("grpo", damage) for damage in (*TEXTS, "an empty file")),
        *((algorithm, "a list") for algorithm in ("ppo", "sft")),
    ],
)
@pytest.mark.parametrize("name", OBJECTS)
def test_a_damaged_object_is_named(name, algorithm, damage, stopped, model, capsys):
    run = stopped(algorithm)
    text = (run / name).read_bytes()
    (run / name).write_bytes(TEXTS[damage](text) if damage in TEXTS else b"")
    cure = "name=..." if name == "config.json" else f"delete {(run / name).parent}: the run then"
    refused(run, model, capsys, f"{run / name}: ", "Restore it, or ", cure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": None}, '"settings" is None'),
        ({"settings": [1]}, '"settings" is [1]'),
        ({"processes": "1"}, "\"processes\" is '1'"),
        ({"changes": 3}, '"changes" is 3'),
        ({"changes": [3]}, '"changes" is [3]'),
        ({"changes": [{"setting": "steps", "to": 3}]}, 'it lacks "from"'),
        ({"revision": "x"}, "\"revision\" is 'x'"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(change, message, stopped, model, capsys):
    run = stopped("grpo")
    record = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**record, **change}))
    refused(run, model, capsys, f"{run / 'config.json'}: {message}")
    del record["settings"]
    (run / "config.json").write_text(json.dumps(record))
    refused(run, model, capsys, f'{run / "config.json"}: it lacks "settings"')


def test_a_number_of_steps_that_is_none_is_named(stopped, model, capsys):
    run = stopped("grpo")
    record = json.loads((run / "config.json").read_text())
    for steps in ("4", None, float("nan"), [4]):
        record["settings"]["steps"] = steps
        (run / "config.json").write_text(json.dumps(record))
        refused(run, model, capsys, f'{run / "config.json"}: "steps" is ')


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("global_step", 3),
        ("global_step", "4"),
        ("global_step", float("nan")),
        ("global_step", 10**30),
        ("epoch", None),
        ("max_steps", "many"),
        ("log_history", {}),
        ("log_history", [1]),
        ("save_steps", "x"),
        ("stateful_callbacks", 3),
    ],
)
def test_a_state_of_the_wrong_kind_is_named(key, value, stopped, model, capsys):
    """Also where the checkpoint is older than its seal, so that nothing says what it was like."""
    run = stopped("grpo")
    path = run / "trainer" / "checkpoint-4" / "trainer_state.json"
    (path.parent / "files.json").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    refused(run, model, capsys, f'{path}: "{key}" is ', "delete ")


FILES = {
    "grpo": ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"],
    "ppo": ["model.safetensors", "model_1.safetensors", "optimizer.bin", "random_states_0.pkl"],
    "sft": ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"],
}


@pytest.mark.some(8)
@pytest.mark.parametrize(
    ("algorithm", "name", "damage"),
    [
        (algorithm, name, damage)
        for algorithm, names in FILES.items()
        for name in names
        for damage in ("missing", "zeros", "empty", "cut", *PLACES)
        if damage in ("missing", "zeros") or (algorithm, name) == ("grpo", "optimizer.pt")
    ],
)
def test_a_checkpoint_is_whole_or_not_gone_on_from(algorithm, name, damage, stopped, model, capsys):
    """A trainer of transformers goes on without an optimizer's state, and without a word."""
    run = stopped(algorithm)
    path = run / "trainer" / "checkpoint-4" / name
    text = path.read_bytes()
    path.unlink()
    if damage in PLACES:
        PLACES[damage](path)
    elif damage != "missing":
        short = {"empty": b"", "cut": text[: len(text) // 2], "zeros": bytes(len(text))}
        path.write_bytes(short[damage])
    if damage == "zeros":  # of which the size says nothing
        if name == "random_states_0.pkl":
            pytest.skip("accelerate goes on without, and in PPO nothing is drawn from them")
        longer = {"epochs": 3} if algorithm == "sft" else {"steps": 6}
        said = f"{path.parent}: it can't be loaded (", "delete it: "
        refused(run, model, capsys, *said, **longer)
    elif damage in PLACES:
        refused(run, model, capsys, f"{path}: it is {damage}, not a file. Move it away")
    else:
        then = "goes on from step 2" if algorithm == "sft" else "begins anew"
        refused(run, model, capsys, f"{path}: ", f"delete {path.parent}: the run then {then}")


def test_the_checkpoint_before_is_named_where_there_is_one(stopped, model, capsys):
    run = stopped("sft")
    (run / "trainer" / "checkpoint-4" / "optimizer.pt").unlink()
    cure = f"delete {run / 'trainer' / 'checkpoint-4'}: the run then goes on from step 2"
    refused(run, model, capsys, cure)
    shutil.rmtree(run / "trainer" / "checkpoint-4")
    sft.train(settings("sft", model=model, **MORE["sft"]), run, resume=True)
    assert [record["step"] for record in records(run)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "name", ["checkpoint-old", "checkpoint-4.bak", "checkpoint-", "checkpoint-²"]
)
def test_what_is_named_like_a_checkpoint_is_not_deleted_with_the_older_ones(
    name, stopped, model, capsys
):
    for algorithm in ("grpo", "ppo"):
        run = stopped(algorithm)
        odd = run / "trainer" / name
        shutil.copytree(run / "trainer" / "checkpoint-4", odd)
        refused(run, model, capsys, f"{odd}: it is not a checkpoint of the run", "Move it out")


@pytest.mark.some(4)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "transcripts.jsonl", "lock"])
def test_what_is_no_file_is_not_waited_for(name, place, stopped, model, capsys):
    run = stopped("grpo")
    (run / name).unlink()
    PLACES[place](run / name)
    said = "it is not a file. Remove it" if name == "lock" else f"it is {place}, not a file"
    refused(run, model, capsys, f"{run / name}: {said}")


@pytest.mark.parametrize("name", ["metrics.jsonl", "transcripts.jsonl"])
def test_an_empty_file_beside_a_checkpoint_is_named(name, stopped, model, capsys):
    run = stopped("grpo")
    (run / name).write_bytes(b"")
    refused(run, model, capsys, f"{run / name}: it is empty, but the run has reached step 4")


@pytest.mark.parametrize("name", [*OBJECTS, "metrics.jsonl", "transcripts.jsonl"])
def test_what_may_not_be_read_is_named(name, stopped, model, capsys):
    run = stopped("grpo")
    (run / name).chmod(0)
    if os.access(run / name, os.R_OK):
        pytest.skip("root reads everything")
    try:
        command = ["grpo", "--preset", "tiny", "--runs", str(run.parent), "--resume"]
        assert main([*command, *given("grpo", model=model, name="grpo", **MORE["grpo"])]) == 2
        assert f"{run / name}: it can't be read (Permission denied)" in capsys.readouterr().err
    finally:
        (run / name).chmod(0o644)


def test_records_without_their_settings_are_not_taken_for_another_run_s(stopped, model, capsys):
    run = stopped("grpo")
    (run / "config.json").unlink()
    refused(run, model, capsys, f"{run / 'config.json'}: it is missing beside metrics.jsonl")
    with pytest.raises(SettingsError, match=r"config\.json: it is missing beside"):
        grpo.train(settings("grpo", model=model, **MORE["grpo"]), run)


def test_a_damage_costs_a_finished_run_nothing_that_is_given_more_steps(finished, model, tmp_path):
    run = tmp_path / "grpo"
    shutil.copytree(finished / "grpo", run)
    more = settings("grpo", model=model, **{**MORE["grpo"], "steps": 6})
    damage_line(run / "transcripts.jsonl", 3, TEXTS["NUL bytes"])
    before = contents(run)
    with pytest.raises(SettingsError, match=r"transcripts\.jsonl, line 3"):
        grpo.train(more, run, resume=True)
    assert contents(run) == before and (run / "done").exists()


# Other files, of one algorithm each


@pytest.mark.some(4)
@pytest.mark.parametrize("damage", [*TEXTS, "an empty file"])
def test_damaged_traces_of_a_cold_start_are_named(damage, stopped, model, capsys):
    run = stopped("sft")
    path = run / "traces.jsonl"
    if damage in TEXTS:
        damage_line(path, 2, TEXTS[damage])
        refused(run, model, capsys, f"{path}, line 2: not a transcript: ", "delete the whole file")
    else:
        path.write_bytes(b"")
        refused(run, model, capsys, f"{path}: it is empty", "delete the whole file")


def a_transcript(name="1"):
    spans = (
        Span("prompt", "2 + 2?", (1, 2)),
        Span("model", "<answer>4</answer>", (3, 4), (-0.5, -0.25)),
    )
    reason = StopReason.ANSWERED
    problem = Problem(name, "2 + 2?", "4")
    return Transcript(problem, spans, stop_reason=reason, answer="4", correct=True, reward=1.0)


def test_samples_of_a_round_are_not_dropped_where_one_can_not_be_read(tmp_path):
    path = tmp_path / "kept.jsonl"
    write_transcripts(path, [a_transcript(str(i // 2)) for i in range(6)])
    with path.open("a") as file:
        file.write('{"problem": {"id')  # a stop cut it short
    assert {name: len(group) for name, group in rft.kept_groups(path, 2).items()} == {
        "0": 2,
        "1": 2,
        "2": 2,
    }
    whole = path.read_bytes()
    damage_line(path, 4, TEXTS["NUL bytes"])
    damaged = path.read_bytes()
    with pytest.raises(SettingsError, match=r"kept\.jsonl, line 4: .*its problem is sampled"):
        rft.kept_groups(path, 2)
    assert path.read_bytes() == damaged
    path.write_bytes(b"".join(line for line in damaged.splitlines(True) if b"\0" not in line))
    assert list(rft.kept_groups(path, 2)) == ["0", "2"]
    assert len(whole.splitlines()) == 6


def test_traces_of_a_round_that_can_not_be_read_are_named(tmp_path):
    path = tmp_path / "round-1.jsonl"
    for text in (b"", b"[]\n", b'{"spans": \n'):
        path.write_bytes(text)
        with pytest.raises(SettingsError, match=r"round-1\.jsonl.*chosen again"):
            rft.round_traces(path)


def test_damaged_stages_of_a_round_are_named(model, tmp_path, monkeypatch):
    rules = Rules(interpreter=False, max_tokens=2, prompt_template="{query}")
    problems = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(6))
    monkeypatch.setattr(session, "find_task", lambda env: (rules, problems))
    monkeypatch.setattr(rft, "choose", lambda groups, keep: [t for g in groups for t in g][:4])
    monkeypatch.setattr(rft, "distinct", list)
    monkeypatch.setattr(sft, "read_traces", lambda path, _: list(read_episodes(path, "x")))
    tuning = {"epochs": 1, "batch_size": 2, "trl": {"logging_steps": 1}}
    made = settings("rft", model=model, rounds=2, problems=3, k=2, sft=tuning)
    run = tmp_path / "run"
    rft.train(made, run)
    (run / "done").unlink()
    for name in (
        "stages/round-1.jsonl",
        "stages/round-2.jsonl",
        "stages/round-1/config.json",
        "metrics.jsonl",
        "config.json",
    ):
        whole = (run / name).read_bytes()
        for damage in ("NUL bytes", "a list", "nested deeply"):
            (run / name).write_bytes(TEXTS[damage](whole) + b"\n")
            before = contents(run)
            with pytest.raises(SettingsError, match=re.escape(f"{run / name}")):
                rft.train(made, run, resume=True)
            assert contents(run) == before
        (run / name).write_bytes(whole)
    (run / "stages" / "round-1.jsonl").unlink()  # as its message advises: it is chosen anew
    rft.train(made, run, resume=True)
    assert [record["step"] for record in records(run)] == [1, 2]
    assert len((run / "stages" / "round-1.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("damage", [*TEXTS, "other kinds"])
def test_a_report_of_a_cold_start_that_can_not_be_read_is_named(damage, tmp_path):
    text = {"lines": 3, "verified": 2, "dropped": {"no code": 1}, "failed": 0}
    text |= {"answers_unchecked": 0, "programs": {"run": 2, "failed": 0}}
    text |= {"made_up_results": {"all": 0, "contradicted": 0}}
    path = tmp_path / "report.json"
    path.write_text(json.dumps(text))
    assert "| verified" in table(read_report(tmp_path))
    if damage in TEXTS:
        path.write_bytes(TEXTS[damage](path.read_bytes()))
    else:
        path.write_text(json.dumps({**text, "programs": {"run": "2", "failed": 0}}))
    with pytest.raises(SettingsError, match=r"report\.json: .*delete .*done: --resume then"):
        read_report(tmp_path)
