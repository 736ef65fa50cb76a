"""The `retool` command, mostly in this process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.episodes import sample
from helpers.model_api import ModelAPI, Reply, serving
from helpers.recorded_runs import write_eval

import retool_env
from retool_env import REVISION, cli
from retool_env.checkpoint_task import CheckpointTask
from retool_env.cli import main
from retool_env.evaluation.folder import Records
from retool_env.key_values import parse_settings
from retool_env.sandbox import SandboxUnavailable, nsjail
from retool_env.transcript import check_transcript, read_transcripts

ARITHMETIC = "ReTool-Arithmetic-v0"


@pytest.fixture
def outside(tmp_path, monkeypatch) -> Path:
    """A working directory outside of the clone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- eval ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator[str]:
    torch = pytest.importorskip("torch", reason="a model needs torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        from agents.models.tiny import make_checkpoint
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several threads are slower on a busy machine
    yield str(make_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny", seed=0))
    torch.set_num_threads(threads)


SMALL = ("--problems", "2", "--k", "2", "--max-tokens", "32", "prompt_template=Q {query}\n")


def test_eval_writes_what_it_found_and_prints_a_table(checkpoint, outside, capsys):
    arguments = ["eval", "--env", ARITHMETIC, "--model", checkpoint, *SMALL, "difficulty=2"]
    assert main([*arguments, "--out", "found"]) == 0
    out, err = capsys.readouterr()
    counts = err.splitlines()[-1].split(", ")
    assert counts[0] == "4/4 episodes" and "0 right" in counts and "0 generating" in counts
    assert f"{ARITHMETIC}, avg@2, 2 problems" in out
    assert "| accuracy, 95 % interval |" in out and "| tiny, interpreter |" in out
    transcripts = list(read_transcripts("found/episodes.jsonl"))
    assert len(transcripts) == 4 and len({t.problem.id for t in transcripts}) == 2
    for transcript in transcripts:
        check_transcript(transcript)
        assert transcript.problem.metadata["difficulty"] == 2
        assert transcript.interpreter and transcript.weight_version == 0
        assert 0 < len(transcript.completion_ids) <= 32
    record = json.loads(Path("found/eval.json").read_text())
    assert (record["problems"], record["k"], record["status"]) == (2, 2, "finished")
    assert record["command"]["model"] == record["model"]["name"] == checkpoint
    assert len(record["model"]["weights"]) == 64 and record["rules"]["max_tokens"] == 32
    summary = json.loads(Path("found/figures.json").read_text())["summary"]
    lengths = [len(t.completion_ids) for t in transcripts]
    assert summary["episodes"] == 4 and summary["response_tokens"] == sum(lengths) / 4

    # Each folder holds one evaluation.
    before = {path: path.read_bytes() for path in Path("found").iterdir()}
    capsys.readouterr()
    assert main([*arguments, "--out", "found"]) == 1
    assert "found holds an evaluation already" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("found").iterdir()}
    # Equal seeds give equal samples.
    assert main([*arguments, "--out", "again"]) == 0
    again = list(read_transcripts("again/episodes.jsonl"))
    assert sorted(map(repr, map(_ids, again))) == sorted(map(repr, map(_ids, transcripts)))
    assert main([*arguments, "--out", "other", "--seed", "1"]) == 0
    other = list(read_transcripts("other/episodes.jsonl"))
    assert sorted(map(repr, map(_ids, other))) != sorted(map(repr, map(_ids, transcripts)))


def _ids(transcript):
    return transcript.problem.id, transcript.completion_ids


@pytest.mark.parametrize("how", ["--text-only", "interpreter=false"])
def test_eval_without_an_interpreter(how, checkpoint, outside, capsys, monkeypatch):
    def refuse(name="nsjail"):
        raise AssertionError("a sandbox was made")

    monkeypatch.setattr("retool_env.interpreter.make_sandbox", refuse)
    assert main(["eval", "--env", ARITHMETIC, "--model", checkpoint, *SMALL, how]) == 0
    assert "| tiny, text-only |" in capsys.readouterr().out
    [folder] = Path("runs/eval").iterdir()
    assert folder.name.startswith(f"{ARITHMETIC}-tiny-text-only-")
    assert not any(t.interpreter for t in read_transcripts(folder / "episodes.jsonl"))
    # A second evaluation in the same second gets another folder.
    stamp = folder.name.split("-")[-3:-1]
    monkeypatch.setattr("time.strftime", lambda *_: "-".join(stamp))
    assert main(["eval", "--env", ARITHMETIC, "--model", checkpoint, *SMALL, how]) == 0
    assert len(list(Path("runs/eval").iterdir())) == 2


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ("unsafe", "unsafe"),
        ("http://a:1,http://b:2", "http://a:1,http://b:2"),
        ('{"packages": ["numpy"]}', {"packages": ["numpy"]}),
    ],
)
def test_eval_opens_the_sandbox_it_is_told_to(given, setting, checkpoint, outside, monkeypatch):
    opened = []

    def open_sandbox(setting, rules):
        opened.append((setting, rules.display))
        raise SandboxUnavailable("seen")

    monkeypatch.setattr("retool_env.interpreter.open_sandbox", open_sandbox)
    command = ["eval", "--env", ARITHMETIC, "--model", checkpoint, "--sandbox", given]
    assert main([*command, *SMALL, "display=true"]) == 1
    assert opened == [(setting, True)] and not Path("runs").exists()


def test_eval_in_a_sandbox_of_few_packages(checkpoint, outside, capsys):
    sandbox = '{"name": "nsjail", "packages": ["numpy"], "guests": 1}'
    command = ["eval", "--env", ARITHMETIC, "--model", checkpoint, "--sandbox", sandbox]
    arguments = ["--out", "found", *SMALL, "session=true", "errors=last_line"]
    assert main([*command, *arguments]) == 0
    results = json.loads(Path("found/eval.json").read_text())
    assert "'packages': ['numpy']" in results["command"]["sandbox"]
    assert results["settings"]["session"] is True and results["settings"]["errors"] == "last_line"


# --- eval of a checkpoint that carries its task ---------------------------------------------------

OWN = {
    "id": ARITHMETIC,
    "difficulty": 2,
    "prompt_template": "Q {query}\n",
    "max_calls": 3,
    "max_tokens": 16,
}


@pytest.fixture
def trained(checkpoint, outside) -> Path:
    """A checkpoint with its `retool.json`, in the working directory."""
    shutil.copytree(checkpoint, "trained")
    CheckpointTask.of(OWN).save("trained")
    return Path("trained")


FEW = ("--problems", "2", "--k", "1", "--out", "found")


@pytest.mark.parametrize("named", [[], ["--env", ARITHMETIC]])
@pytest.mark.parametrize("model", ["trained", "./trained/"])
def test_eval_takes_the_task_of_the_checkpoint_and_says_so(named, model, trained, capsys):
    assert main(["eval", *named, "--model", model, *FEW]) == 0
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if "retool.json" in line]
    said = "difficulty=2, max_calls=3, max_tokens=16, temperature=1, top_p=0.7"
    assert lines == [
        f"retool.json: task {ARITHMETIC}, protocol tags, a prompt of its own, {said} (from {model})"
    ]
    assert "differs" not in out and f"{ARITHMETIC}, avg@1, 2 problems" in out
    transcripts = list(read_transcripts("found/episodes.jsonl"))
    for transcript in transcripts:
        assert transcript.spans[0].text == f"Q {transcript.problem.question}\n"
        assert transcript.problem.metadata["difficulty"] == 2
        assert transcript.problem.id.startswith("arithmetic/test-")
        assert len(transcript.completion_ids) <= 16
    results = json.loads(Path("found/eval.json").read_text())
    assert results["settings"]["max_calls"] == 3 and results["settings"]["split"] == "test"
    assert results["checkpoint_task"]["id"] == ARITHMETIC
    assert results["command"]["temperature"] == 1.0 and results["command"]["top_p"] == 0.7


def test_the_command_line_wins_over_the_checkpoint_and_one_line_says_what_differs(trained, capsys):
    sampling = ("--temperature", "0.5", "--top-p", "0.7", "--max-tokens", "8", "--text-only")
    given = ("max_calls=5", "difficulty=2", "split=train")
    assert main(["eval", "--model", "trained", *FEW, *sampling, *given]) == 0
    out = capsys.readouterr().out
    [line] = [line for line in out.splitlines() if "differs" in line]
    assert set(line.partition(": ")[2].split(", ")) == {
        "max_calls=5 (there: 3)",
        "interpreter=False (there: True)",
        "max_tokens=8 (there: 16)",
        "temperature=0.5 (there: 1.0)",
    }
    command = json.loads(Path("found/eval.json").read_text())["command"]
    assert (command["temperature"], command["top_p"]) == (0.5, 0.7)
    for transcript in read_transcripts("found/episodes.jsonl"):
        assert len(transcript.completion_ids) <= 8 and not transcript.interpreter
        assert transcript.problem.id.startswith("arithmetic/train-")


def test_on_another_environment_only_protocol_and_prompt_are_the_checkpoints(trained, capsys):
    Path("own.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    command = ["eval", "--env", "ReTool-JSONL-v0", "--model", "trained", "path=own.jsonl"]
    assert main([*command, "--k", "1", "--max-tokens", "8", "--out", "found"]) == 0
    out = capsys.readouterr().out
    assert "differs" not in out
    assert (
        "retool.json: protocol tags, a prompt of its own (from trained, trained on "
        f"{ARITHMETIC}); other settings are ReTool-JSONL-v0's\n"
    ) in out
    [transcript] = read_transcripts("found/episodes.jsonl")
    assert transcript.spans[0].text == "Q 1 + 1?\n"
    settings = json.loads(Path("found/eval.json").read_text())["settings"]
    assert "max_calls" not in settings and "difficulty" not in settings


def test_a_wrong_retool_json_ends_the_evaluation_and_can_be_passed_over(trained, capsys):
    record = {**CheckpointTask.of(OWN).to_json(), "sandbox": "unsafe"}
    (trained / "retool.json").write_text(json.dumps(record))
    command = ["eval", "--env", ARITHMETIC, "--model", "trained", *SMALL, "--out", "found"]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("retool eval: trained/retool.json: 'sandbox': unknown key; ")
    assert "--ignore-retool-json" in captured.err and captured.err.count("\n") == 1
    assert not captured.out and not Path("found").exists()
    assert main([*command, "--ignore-retool-json"]) == 0
    out = capsys.readouterr().out
    assert "--ignore-retool-json: what trained says of its task is passed over\n" in out
    assert json.loads(Path("found/eval.json").read_text())["checkpoint_task"] is None


def test_another_revision_is_warned_of_in_one_line(trained, capsys):
    record = {**CheckpointTask.of(OWN).to_json(), "revision": REVISION + 5}
    (trained / "retool.json").write_text(json.dumps(record))
    assert main(["eval", "--model", "trained", *FEW]) == 0
    [line] = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"trained was trained on episodes of revision {REVISION + 5}" in line


def test_without_a_retool_json_that_is_said_and_an_environment_must_be_named(
    checkpoint, outside, capsys
):
    assert main(["eval", "--model", checkpoint]) == 1
    assert "name an environment with --env" in capsys.readouterr().err
    assert main(["eval", "--env", ARITHMETIC, "--model", checkpoint, *SMALL, "--out", "o"]) == 0
    out = capsys.readouterr().out
    assert f"{checkpoint} has no retool.json: the settings are {ARITHMETIC}'s own\n" in out
    [first, *_] = read_transcripts("o/episodes.jsonl")
    assert first.problem.id.startswith("arithmetic/test-")  # still held out


# --- bad arguments ------------------------------------------------------------------------------

EVAL = ["eval", "--env", ARITHMETIC, "--model", "no-model"]
WRONG = {
    "no such environment": (["eval", "--env", "Nope-v0", "--model", "x"], ARITHMETIC),
    "no such environment to play": (["play", "--env", "Nope-v0"], ARITHMETIC),
    "another's environment": (["play", "--env", "CartPole-v1"], ARITHMETIC),
    "no such folder": (["eval", "--env", ARITHMETIC, "--model", "./none"], "'./none' does not"),
    "no such run": (["eval", "--model", "runs/none/checkpoint"], "'runs/none/checkpoint' does not"),
    "no problem": ([*EVAL, "--problems", "0"], "--problems must be at least 1, not 0"),
    "no episode": ([*EVAL, "--k", "0"], "--k must be at least 1, not 0"),
    "no token": ([*EVAL, "--max-tokens", "0"], "max_tokens must be a whole number of"),
    "no pair": ([*EVAL, "difficulty"], "'difficulty' is not a setting: write it as key=value"),
    "unknown setting": ([*EVAL, "max_call=3"], "max_calls, announce_calls"),
    "unknown setting to play": (["play", "max_call=3"], "max_calls, announce_calls"),
    "bad value": ([*EVAL, "difficulty=9"], "difficulty must be 1 to 5"),
    "no such sandbox to play": (["play", "sandbox=nsjial"], "'nsjial'"),
    "a wrong sandbox to play": (["play", 'sandbox={"pakages": []}'], "'pakages'"),
    "no boolean": ([*EVAL, "session=yes"], "session must be true or false, not 'yes'"),
    "no way to show errors": (
        [*EVAL, "errors=short"],
        "errors must be one of traceback, last_line",
    ),
    "a limit as text": ([*EVAL, 'limits={"wall_seconds": "1"}'], "Limits.wall_seconds must be"),
    "no limits": ([*EVAL, "limits=foo"], "limits must be a Limits, or a mapping of its fields"),
    "an endless limit": (["play", 'limits={"wall_seconds": Infinity}'], "Limits.wall_seconds"),
    "no file": (["play", "--env", "ReTool-JSONL-v0", "path=none.jsonl"], "no file 'none.jsonl'"),
    "no path": (["play", "--env", "ReTool-JSONL-v0"], "'path'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name, outside, capsys):
    arguments, message = WRONG[name]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert err.startswith(f"retool {arguments[0]}: ") and err.count("\n") == 1
    assert message in err and not out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["evaluate"], "invalid choice: 'evaluate'"),
        (["eval"], "required: --model"),
        ([*EVAL, "--k", "two"], "invalid int value: 'two'"),
        ([*EVAL, "--kk", "2"], "unknown arguments: --kk"),
        (["doctor", "--fast"], "unknown arguments: --fast"),
    ],
)
def test_what_cannot_be_parsed_ends_with_the_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_a_missing_extra_is_named(monkeypatch, outside, capsys):
    for name in [each for each in sys.modules if each.startswith("retool_env.rollout.transf")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(EVAL) == 1
    assert "pip install 'retool-env[train]'" in capsys.readouterr().err


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("RETOOL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no environment"):
        main(["play", "--env", "Nope-v0"])


def test_an_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_doctor", interrupt)
    assert main(["doctor"]) == 130 and capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["limits.wall_seconds=-1", "--env", ARITHMETIC, "max_calls=1"],
        ["--env", ARITHMETIC, "limits.wall_seconds=-1", "--seed", "-1", "max_calls=1"],
        ["max_calls=1", "--env", ARITHMETIC, "--seed=3", "limits={wall_seconds: -1}"],
    ],
)
def test_settings_stand_anywhere_on_the_line(arguments, capsys):
    assert main(["play", *arguments]) == 1
    assert "Limits.wall_seconds must be" in capsys.readouterr().err


def test_settings_after_options_reach_an_evaluation(checkpoint, outside, capsys):
    command = ["eval", "session=true", "--env", ARITHMETIC, "--model", checkpoint]
    assert main([*command, "--out", "found", *SMALL, "limits.wall_seconds=3"]) == 0
    settings = json.loads(Path("found/eval.json").read_text())["settings"]
    assert settings["session"] is True and settings["limits"] == {"wall_seconds": 3}


def test_settings_are_json_or_text():
    pairs = ["a=1", "b=0.5", "c=true", "d=text", 'e={"wall_seconds": 1}', "f=x=y", "g=", "h=null"]
    assert parse_settings(pairs) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": "text",
        "e": {"wall_seconds": 1},
        "f": "x=y",
        "g": "",
        "h": None,
    }


# --- doctor -------------------------------------------------------------------------------------


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"retool-env {retool_env.__version__}\n"


def test_doctor_is_content(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "\nok      sandbox     works: ready " in out and out.endswith("the sandbox works here\n")


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(nsjail, "find_binary", lambda _: "/bin/false")
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "\nmissing sandbox " in captured.out and "retool serve" in captured.out
    assert "cannot be run here" in captured.err


# --- train --------------------------------------------------------------------------------------


def test_train_outside_a_clone_says_how_to_get_one(outside, capsys):
    assert main(["train", "grpo", "--preset", "tiny"]) == 1
    err = capsys.readouterr().err
    assert "clone it" in err and "make setup" in err and "python -m agents" in err


def test_train_in_a_clone_forwards_its_arguments(monkeypatch):
    started = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(os, "execv", lambda *call: started.append(call))
    main(["train", "grpo", "--preset", "tiny", "seed=1", "-h"])
    rest = ["-m", "agents", "grpo", "--preset", "tiny", "seed=1", "-h"]
    assert started == [(sys.executable, [sys.executable, *rest])]


@pytest.mark.slow
def test_train_through_the_installed_command(tmp_path):
    """The command finds the clone by the working directory only, not by its module path."""
    code = "import sys; from retool_env.cli import main; sys.exit(main(['train', '--help']))"
    command = [sys.executable, "-P", "-c", code]
    inside = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert inside.returncode == 0 and "python -m agents" in inside.stdout, inside.stderr
    outside = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert outside.returncode == 1 and "clone it" in outside.stderr


# --- eval of a model behind an API --------------------------------------------------------------


def in_tags(conversation) -> Reply:
    """Computes the expression in the last line of the prompt, with tags."""
    if not isinstance(conversation, str):
        conversation = "".join(message["content"] for message in conversation)
    question, _, result = conversation.rpartition("Compute ")[2].partition("<interpreter>")
    if result:
        return Reply(f"<answer>\\boxed{{{result.split()[0]}}}</answer>")
    return Reply(f"<code>\n```python\nprint({question.partition('.')[0]})\n```\n</code>")


def in_calls(conversation) -> Reply:
    """Computes the expression with native calls if there is a tool; uses only the answer tags."""
    if conversation[-1]["role"] == "tool":
        return Reply(f"<answer>{conversation[-1]['content']}</answer>")
    assert "<code>" not in conversation[0]["content"]
    question = conversation[0]["content"].rpartition("Compute ")[2].partition(".")[0]
    return Reply("", (("code_interpreter", json.dumps({"code": f"print({question})"})),))


BEHIND = ("eval", "--env", ARITHMETIC, "--model", "m", "--out", "found")
ONE_GUEST = ("--sandbox", '{"name": "nsjail", "guests": 1}')


@pytest.mark.parametrize(
    ("options", "model"),
    [((), in_tags), (("--completions",), in_tags), (("--native-tools",), in_calls)],
)
def test_eval_behind_an_api_with_the_real_sandbox(options, model, outside, capsys, monkeypatch):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    monkeypatch.setenv("MY_KEY", "secret")
    # The packages that load a model are not needed.
    monkeypatch.setitem(sys.modules, "retool_env.rollout.transformers", None)
    api = ModelAPI(model, key="secret")
    with serving(api) as url:
        connection = ("--api", url, "--api-key-env", "MY_KEY", *options)
        size = ("--problems", "3", "--k", "2", "--max-tokens", "50", "difficulty=4")
        assert main([*BEHIND, *ONE_GUEST, *connection, *size]) == 0
    out, err = capsys.readouterr()
    assert "| m, interpreter |" in out and "100.0 % [" in out
    assert "| calls that ran, in all " in out and "| 6 of 6 " in out
    assert all("/6 episodes, " in line for line in err.splitlines())  # no warning among them
    assert "6/6 episodes, " in err and ", 6 right, " in err and " characters/s, " in err
    transcripts = list(read_transcripts("found/episodes.jsonl"))
    assert len(transcripts) == 6 and all(t.correct and len(t.calls) == 1 for t in transcripts)
    for transcript in transcripts:
        check_transcript(transcript)
        assert transcript.spans[0].token_ids is None
        assert ("You may use a Python" in transcript.spans[0].text) == (model is in_tags)
    results = json.loads(Path("found/eval.json").read_text())
    read = sum(len(json.dumps(r.get("messages") or r.get("prompt"))) for r in api.requests)
    assert results["usage"]["requests"] == 12 and results["usage"]["prompt_tokens"] == read
    assert f"used: 12 requests, {read:,} tokens in" in out
    assert "secret" not in json.dumps(results) + out
    assert {request["max_tokens"] for request in api.requests} == {50}
    assert {(r["temperature"], r["top_p"]) for r in api.requests} == {(1.0, 0.7)}
    assert len({request["seed"] for request in api.requests}) == 12


def test_eval_behind_an_api_describes_a_session_in_its_tool(outside, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    api = ModelAPI(in_calls)
    with serving(api) as url:
        options = ("--api", url, "--native-tools", "--problems", "1", "--k", "1")
        modes = ("session=true", "display=true")
        assert main([*BEHIND, *ONE_GUEST, *options, *modes]) == 0
        assert main([*BEHIND, *options, "--text-only", "--out", "other"]) == 0
    described = api.requests[0]["tools"][0]["function"]["description"]
    assert "in the process of those before it" in described and "last line" in described
    assert "tools" not in api.requests[-1]
    assert "| m, text-only |" in capsys.readouterr().out


def test_of_two_evaluations_with_one_folder_at_once_one_is_refused(outside, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    begun, may_go_on = threading.Event(), threading.Event()

    def model(conversation) -> Reply:
        begun.set()
        may_go_on.wait(10)
        return Reply("<answer>1</answer>")

    with serving(ModelAPI(model)) as url, ThreadPoolExecutor() as pool:
        command = [*BEHIND, "--api", url, "--text-only", "--problems", "2", "--k", "1"]
        first = pool.submit(main, command)
        assert begun.wait(60)
        assert main(command) == 1
        assert "another process works in found" in capsys.readouterr().err
        may_go_on.set()
        assert first.result(60) == 0
    assert len(list(read_transcripts("found/episodes.jsonl"))) == 2
    assert main(command) == 1
    assert "found holds an evaluation already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), 130), (OSError("no space left"), 1)]
)
@pytest.mark.parametrize("finished", [2, 0])
def test_what_an_evaluation_has_finished_stays_when_it_stops(
    finished, error, status, outside, capsys, monkeypatch
):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

    def stop(self, episode):
        if len(self.ended) == finished:
            raise error
        append(self, episode)

    append = Records.append
    with serving(ModelAPI(lambda _: Reply("<answer>1</answer>"))) as url:
        command = [*BEHIND, "--api", url, "--text-only", "--problems", "9", "--k", "1"]
        with monkeypatch.context() as patch:
            patch.setattr(Records, "append", stop)
            assert main(command) == status
        err = capsys.readouterr().err
        assert f"{finished} of 9 episodes are kept in found; give the command again with" in err
        record = json.loads(Path("found/eval.json").read_text())
        assert record["status"] == "stopped" and record["usage"]["requests"] > finished
        assert main(command) == 1 and "continue it with --resume" in capsys.readouterr().err
        assert main([*command, "--resume"]) == 0
    assert f"{finished} episodes are on record, {9 - finished} are left" in capsys.readouterr().out
    assert len({t.problem.id for t in read_transcripts("found/episodes.jsonl")}) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--native-tools",), "--native-tools is for models behind an API: give --api"),
        (("--completions",), "--completions is for models"),
        (("--api-key-env", "HOME"), "--api-key-env is for models"),
        (("--api", "localhost:8000"), "'localhost:8000' is not a URL of an API"),
        (
            ("--api", "http://h/v1", "--api-key-env", "NO_KEY"),
            "NO_KEY: this environment variable is not set",
        ),
        (("--api", "http://h/v1", "max_tokens=9"), "set --max-tokens or max_characters"),
        (("--api", "http://h/v1", "--batch", "0"), "concurrency"),
    ],
)
def test_eval_behind_an_api_with_wrong_options(options, words, outside, capsys, monkeypatch):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

    def refuse(*_):
        raise AssertionError("a sandbox was made")

    monkeypatch.setattr("retool_env.interpreter.open_sandbox", refuse)
    assert main([*BEHIND, *options]) == 1
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not Path("found").exists()


def test_eval_behind_an_api_with_a_wrong_key(outside, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    with serving(ModelAPI(in_tags, key="secret")) as url:
        assert main([*BEHIND, *ONE_GUEST, "--api", url, "--problems", "2"]) == 1
    *counts, said = capsys.readouterr().err.splitlines()
    assert said.startswith("retool eval: ") and "refuses the key, or needs one" in said
    assert all(line.startswith("0/8 episodes, ") for line in counts)


def test_eval_behind_an_api_names_its_own_extra(outside, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    assert main([*BEHIND, "--api", "http://h/v1"]) == 1
    err = capsys.readouterr().err
    assert "pip install 'retool-env[openai]'" in err and "[train]" not in err


@pytest.mark.parametrize(
    "given",
    [
        ("--api-key", "hunter2"),
        ("--api-key=hunter2",),
        ("--api-ke", "hunter2"),
        ("--api-key-env", "sk-hunter2"),
        ("--sandbox", '{"name": "http://h:1", "token": "hunter2"}'),
        ("--sandbox", "http://me:hunter2@h:1"),
        ("--api", "http://me:hunter2@h/v1"),
        ("--api", "http://h/v1?key=hunter2"),
    ],
)
def test_eval_shows_and_stores_no_key(given, outside, capsys):
    pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
    api = () if given[0] == "--api" else ("--api", "http://h/v1")
    command = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", *api, *given]
    with contextlib.suppress(SystemExit):
        assert main([*command, "max_tokens=null", "max_characters=99"]) == 1
    told = capsys.readouterr()
    assert told.err and "hunter2" not in told.err + told.out
    assert not list(Path().rglob("eval.json"))


def test_a_reader_that_leaves_is_no_error(tmp_path):
    folder = write_eval(tmp_path / "run", [sample("a", "42", correct=True)])
    command = [sys.executable, "-m", "retool_env.cli", "score", str(folder)]
    reader, writer = os.pipe()
    os.close(reader)  # as `| head -0` leaves it
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
    assert (folder / "scores-math.json").exists()  # written before the words about it


def test_an_error_does_not_steer_the_terminal(outside, capsys):
    assert main(["report", "\x1b[31mred\u202e"]) == 1
    assert capsys.readouterr().err.startswith("retool report: \\x1b[31mred\\u202e was not found")
