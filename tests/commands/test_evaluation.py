"""`retool eval` as a harness: nothing that was paid for is lost, and what went wrong is said."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.model_api import ModelAPI, Reply, refusal, serving

from retool_env.cli import main
from retool_env.commands import eval_plan
from retool_env.evaluation import read_episodes
from retool_env.evaluation.identity import ModelIdentity

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

COMMAND = ["eval", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--text-only", "--out", "found"]


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def answer(conversation) -> Reply:
    """Deterministic: what is answered hangs on the question alone."""
    return Reply(f"<answer>{sum(map(ord, str(conversation))) % 3}</answer>")


def ran(url, *options, status=0, command=COMMAND):
    assert main([*command, "--api", url, *options]) == status


def recorded(folder="found"):
    return {episode.key: episode.transcript for episode in read_episodes(folder)}


def record(folder="found"):
    return json.loads(Path(folder, "eval.json").read_text())


def figures(folder="found"):
    text = json.loads(Path(folder, "figures.json").read_text())["figures"]
    return {figure["key"]: figure for figure in text}


def test_a_larger_k_or_more_problems_add_episodes(capsys):
    api = ModelAPI(answer)
    with serving(api) as url:
        ran(url, "--problems", "3", "--k", "1")
        ran(url, "--problems", "3", "--k", "2", "--resume")
        assert len(api.requests) == 6
        ran(url, "--problems", "5", "--k", "2", "--resume")
        assert len(api.requests) == 10
        ran(url, "--problems", "5", "--k", "2", "--out", "whole")
    assert recorded() == recorded("whole") and len(recorded()) == 10
    assert figures() == figures("whole")
    assert (record()["k"], record()["problems"]) == (2, 5)
    assert "6 episodes are on record, 4 are left" in capsys.readouterr().out


def test_faults_are_named_by_the_command_recorded_and_resumed(capsys):
    """Each sample meets the same faults, whether it ran at once or after a resume."""
    turns = ("<code>print(5, 6)</code>", "<code>print(7, 8)</code>", "<answer>5</answer>")
    with_tool = [part for part in COMMAND if part != "--text-only"]
    with_tool += ["--sandbox", '{"name": "nsjail", "guests": 1}', "--problems", "3"]
    faults = 'faults={"rate": 0.6, "kinds": ["wrong_value", "busy", "empty"]}'

    with serving(ModelAPI(lambda messages: Reply(turns[len(messages) // 2]))) as url:
        ran(url, "--k", "1", faults, command=with_tool)
        ran(url, "--k", "3", faults, "--resume", command=with_tool)
        ran(url, "--k", "3", faults, "--out", "whole", command=with_tool)
        ran(url, "--k", "3", "--resume", status=1, command=with_tool)
        assert "rules.faults" in capsys.readouterr().err
        ran(url, "--k", "1", "--out", "without", command=with_tool)
    assert recorded() == recorded("whole")
    ordered = [[c.execution.fault for c in t.calls] for t in recorded().values()]
    assert len({repr(pair) for pair in ordered}) > 3
    assert record()["rules"]["faults"] == {
        "suite": "v0",
        "rate": 0.6,
        "kinds": ["wrong_value", "busy", "empty"],
        "seed": 0,
        "by_rollout": True,
    }
    injected = sum(bool(f and f.injected) for pair in ordered for f in pair)
    assert figures()["fault/injected"]["mean"] * figures()["fault/injected"]["count"] == injected
    assert record("without")["rules"]["faults"] is None
    assert "fault/injected" not in figures("without")


def test_a_finished_evaluation_is_shown_again_without_a_request(capsys):
    api = ModelAPI(answer)
    with serving(api) as url:
        ran(url, "--problems", "2", "--k", "2")
        first = capsys.readouterr().out
        ran(url, "--problems", "2", "--k", "2", "--resume")
    assert len(api.requests) == 4
    lines = [line for line in first.splitlines() if line.startswith("|")]
    assert [line for line in capsys.readouterr().out.splitlines() if line in lines] == lines


def test_another_evaluation_is_not_resumed(capsys):
    with serving(ModelAPI(answer)) as url:
        ran(url, "--problems", "2", "--k", "1")
        ran(url, "--problems", "2", "--k", "1", "--resume", "--seed", "1", status=1)
    assert "this one differs in seed: 1, not 0" in capsys.readouterr().err


def test_further_fields_are_sent_recorded_and_part_of_what_is_resumed(capsys):
    api = ModelAPI(answer)
    fields = ("--api-arg", "reasoning_effort=high", "--api-arg", 'a={"b": [1, null]}')
    left_out = ("--no-top-p", "--no-temperature", "--api-arg", "seed=null")
    options = ("--problems", "1", "--k", "1")
    with serving(api) as url:
        ran(url, *options, *fields, *left_out, "--api-arg", "max_completion_tokens=77")
        [request] = api.requests
        assert {"temperature", "top_p", "seed", "max_tokens"}.isdisjoint(request)
        sent = {"reasoning_effort": "high", "a": {"b": [1, None]}, "max_completion_tokens": 77}
        assert sent.items() <= request.items()
        assert record()["sampling"] == {**sent, "seed": None, "way": "chat"}
        ran(url, *options, *left_out, "--resume", status=1)
    err = capsys.readouterr().err
    assert "sampling.reasoning_effort: None, not 'high'" in err
    assert "sampling.max_tokens: 1024, not None" in err
    assert len(api.requests) == 1


def test_what_answers_call_their_model_is_recorded_over_all_starts():
    api = ModelAPI(answer)
    with serving(api) as url:
        ran(url, "--problems", "1", "--k", "1")
        before = record()["answered_as"]
        ran(url, "--problems", "1", "--k", "2", "--resume")
    assert before == record()["answered_as"] == [{"model": "m", "system_fingerprint": None}]


def test_fields_that_the_api_refuses_are_recorded_over_all_starts():
    api = ModelAPI(answer, stops="refuses", renamed=True)
    with serving(api) as url:
        ran(url, "--problems", "1", "--k", "1")
        before = record()["left_out"]
        ran(url, "--problems", "1", "--k", "2", "--resume")
    assert sorted(before) == ["max_tokens", "stop"] and record()["left_out"] == before


def test_a_prompt_that_the_api_refuses_is_a_failed_episode(capsys):
    def model(conversation) -> Reply:
        refused = conversation[-1]["content"] == first[0]
        return Reply(refused="a filter") if refused else answer(conversation)

    first = []
    api = ModelAPI(lambda conversation: first.append(conversation[-1]["content"]) or Reply(""))
    options = ("--problems", "4", "--k", "2")
    with serving(api) as url:
        ran(url, "--problems", "1", "--k", "1", "--out", "probe")
        api.model = model
        ran(url, *options, status=1)
        assert "2 of 8 episodes of m, text-only failed" in capsys.readouterr().err
        failed = [episode for episode in read_episodes("found") if episode.failed]
        assert [episode.sample for episode in sorted(failed, key=lambda e: e.sample)] == [0, 1]
        assert all("refuses the request: a filter" in episode.error for episode in failed)
        assert sum(episode.error is None for episode in read_episodes("found")) == 6
        ran(url, *options, "--resume", "--max-failed", "30%")
        # The rest is refused prompts alone, but the API has answered before.
        ran(url, *options, "--resume", "--retry-failed", "--max-failed", "30%")
        api.model = answer
        ran(url, *options, "--resume", "--retry-failed")
    assert len(recorded()) == 8


def test_an_api_that_refuses_every_prompt_ends_the_evaluation(capsys):
    api = ModelAPI(lambda conversation: Reply(refused="no such temperature"))
    with serving(api) as url:
        ran(url, "--problems", "40", "--k", "1", "--batch", "2", status=1)
    err = capsys.readouterr().err
    assert "refuses the request: no such temperature" in err and "Traceback" not in err
    assert 8 <= len(api.requests) <= 10 and not Path("found").exists()


def test_too_many_failed_episodes_give_status_1_and_are_run_again(capsys):
    broken = True

    def model(conversation) -> Reply:
        return Reply("", finish="content_filter") if broken else answer(conversation)

    with serving(ModelAPI(model)) as url:
        options = ("--problems", "3", "--k", "1")
        ran(url, *options, status=1)
        err = capsys.readouterr().err
        assert "3 of 3 episodes of m, text-only failed, which is more than --max-failed 5.0%" in err
        ran(url, *options, "--resume", status=1)  # a failed episode is not run again unasked
        ran(url, *options, "--resume", "--max-failed", "100%")
        broken = False
        ran(url, *options, "--resume", "--retry-failed")
    assert all(transcript.scored for transcript in recorded().values())
    assert len(Path("found/episodes.jsonl").read_text().splitlines()) == 6


def test_a_dry_run_asks_nobody_and_says_what_it_would_cost(capsys):
    api = ModelAPI(answer)
    with serving(api) as url:
        size = ("--problems", "5", "--k", "2", "--max-tokens", "100")
        ran(url, *size, "--price", "0,1000", "--dry-run")
    out = capsys.readouterr().out
    assert "10 episodes, at most 10 turns, " in out
    assert out.endswith("1,000 tokens out: $1.00 at most\n")
    assert not api.requests and not Path("found").exists()


def test_no_further_episode_begins_once_the_money_is_spent(capsys):
    api = ModelAPI(answer)
    with serving(api) as url:
        price = ("--price", "0,1000000")  # a dollar a token; an answer has 9, its tag is cut
        options = ("--problems", "20", "--k", "1", "--batch", "1", *price)
        ran(url, *options, "--limit-cost", "50", status=1)
        kept = len(recorded())
        assert kept == 6 and len(api.requests) == kept
        assert f"and {kept} of 20 episodes are done" in capsys.readouterr().err
        assert record()["status"] == "stopped"
        assert record()["cost"] == record()["usage"]["completion_tokens"] >= 50
        ran(url, *options, "--limit-cost", "5000", "--resume")
    assert len(recorded()) == len(api.requests) == 20
    assert record()["status"] == "finished" and "$" in capsys.readouterr().out


def test_several_models_and_environments_are_one_table(capsys):
    command = ["eval", "--model", "org/m", "--model", "m", "--text-only", "--name", "both"]
    environments = ["--env", "ReTool-Arithmetic-v0", "--env", "ReTool-JSONL-v0"]
    Path("own.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    with serving(ModelAPI(answer)) as url:
        api = ["--api", url, "--problems", "1", "--k", "1"]
        assert main([*command, *environments[:2], *api]) == 1  # the API has no model org/m
        assert "org/m" in capsys.readouterr().err
        assert main(["eval", "--model", "m", "--text-only", *environments, *api]) == 1
        assert "path" in capsys.readouterr().err  # one of the two needs a setting of its own
        names = ["--env", "ReTool-Arithmetic-v0", "--env", "ReTool-Arithmetic-v0"]
        assert main(["eval", "--model", "m", "--text-only", *names, *api, "--name", "two"]) == 0
    out = capsys.readouterr().out
    assert out.count("| m, text-only, ReTool-Arithmetic-v0 ") == 2  # the second one has a number
    folders = sorted(path.name for path in Path("runs/eval/two").iterdir())
    assert folders == ["ReTool-Arithmetic-v0-m", "ReTool-Arithmetic-v0-m-2"]
    assert all(len(recorded(Path("runs/eval/two", name))) == 1 for name in folders)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--limit-cost", "1"), "--limit-cost must be above 0, and needs --price"),
        (("--limit-cost", "0", "--price", "1,1"), "--limit-cost must be above 0"),
        (("--price", "1"), "--price must be in,out"),
        (("--retry-failed",), "--retry-failed goes with --resume"),
        (("--force",), "--force goes with --resume"),
        (("--api-arg", "temperature=1"), "temperature can't be an extra field of a request"),
        (("--api-arg", "api_key=sk-1"), "--api-arg.api_key would be shown and stored"),
        (("--api-arg", "x"), "--api-arg must be NAME=VALUE, not 'x'"),
        (
            ("--api-arg", "max_completion_tokens=5", "--max-tokens", "6"),
            "--max-tokens 6 and max_completion_tokens=5 differ",
        ),
        (("--name", "../evil"), "--name must be a name below runs/eval"),
        (("--name", "/evil"), "--name must be a name below runs/eval"),
    ],
)
def test_wrong_options_are_named_before_anything_begins(options, words, capsys):
    ran("http://h/v1", *options, status=1)
    assert words in capsys.readouterr().err and not Path("found").exists()
    without = [part for part in COMMAND if part not in ("--out", "found")]
    ran("http://h/v1", "--resume", status=1, command=without)
    assert "--resume needs the --name of its record" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--no-top-p", "--no-temperature", "--api-arg=a=1"])
def test_fields_of_requests_are_for_apis(option, capsys):
    assert main([*COMMAND, option]) == 1
    name = option.partition("=")[0]
    assert f"{name} is for models behind an API: give --api" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["-1", "2", "x", "101%"])
def test_a_share_that_is_none_is_refused(share, capsys):
    with pytest.raises(SystemExit):
        ran("http://h/v1", "--max-failed", share)
    assert "is not a share" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_evaluation_loses_no_finished_episode():
    """SIGKILL at random moments. Each request is answered once or, if it was in flight, anew."""
    answered = []

    def model(conversation) -> Reply:
        answered.append(str(conversation))
        return answer(conversation)

    api = ModelAPI(model, delay=0.1)
    size = ("--problems", "40", "--k", "2", "--batch", "4", "--price", "1,1")
    ended = {}
    with serving(api) as url:
        for kill in range(20):
            options = ["--api", url, *size, *(["--resume"] if Path("found").exists() else [])]
            process = subprocess.Popen(
                [sys.executable, "-m", "retool_env.cli", *COMMAND, *options],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
            asked = len(api.requests)
            waiting = threading.Event()
            limit = time.monotonic() + 60
            while len(api.requests) <= asked + kill % 4 and time.monotonic() < limit:
                waiting.wait(0.005)
            waiting.wait(0.037 * (kill % 7))
            process.send_signal(signal.SIGKILL)
            process.wait()
            now = recorded()
            assert {key: now[key] for key in ended} == ended  # none is lost
            ended = now
        api.delay = 0.0
        ran(url, *size, "--resume")
        ran(url, *size, "--out", "whole")
    assert recorded() == recorded("whole") and len(recorded()) == 80
    lines = Path("found/episodes.jsonl").read_text().splitlines()
    keys = [(line["problem"], line["sample"]) for line in map(json.loads, lines)]
    assert len(keys) == len(set(keys)) == 80  # none ran twice
    same = {key: value for key, value in figures("whole").items() if not key.startswith("cost")}
    assert same == {key: figures()[key] for key in same}
    # Requests of lost episodes are paid as well.
    usage = record()["usage"]
    assert 80 <= usage["requests"] <= len(answered) - 80
    assert record()["cost"] == pytest.approx(
        (usage["prompt_tokens"] + usage["completion_tokens"]) / 1e6
    )


def test_an_api_that_fails_now_and_then_costs_no_episode():
    api = ModelAPI(answer, failures=[refusal(503, "busy", {"retry-after": "0"})] * 5)
    with serving(api) as url:
        ran(url, "--problems", "6", "--k", "1")
    assert all(transcript.scored for transcript in recorded().values())


def test_a_dry_run_of_a_resumed_evaluation_counts_what_is_left(capsys):
    api = ModelAPI(answer)
    with serving(api) as url:
        ran(url, "--problems", "3", "--k", "1")
        before = {path: path.read_bytes() for path in Path("found").iterdir()}
        ran(url, "--problems", "3", "--k", "3", "--resume", "--dry-run")
        assert capsys.readouterr().out.rpartition("m, text-only: ")[2].startswith("6 episodes, ")
        ran(url, "--problems", "3", "--k", "3", "--resume", "--dry-run", "--seed", "1", status=1)
    assert len(api.requests) == 3
    assert {path: path.read_bytes() for path in Path("found").iterdir()} == before


def test_fewer_samples_or_problems_are_judged_by_themselves(capsys):
    fine = True

    def model(conversation) -> Reply:
        return answer(conversation) if fine else Reply("", finish="content_filter")

    with serving(ModelAPI(model)) as url:
        ran(url, "--problems", "2", "--k", "1")
        fine = False
        ran(url, "--problems", "2", "--k", "2", "--resume", status=1)
        assert "2 of 4 episodes of m, text-only failed" in capsys.readouterr().err
        ran(url, "--problems", "2", "--k", "1", "--resume")
    assert figures()["accuracy/avg"]["count"] == 2


def test_a_limit_on_costs_needs_an_api_that_counts(capsys):
    api = ModelAPI(answer, usage=False)
    with serving(api) as url:
        options = ("--problems", "9", "--k", "1", "--batch", "1", "--price", "1,1")
        ran(url, *options, "--limit-cost", "5", status=1)
        assert len(recorded()) == len(api.requests) == 1
        assert "no answer of the API says how many tokens it took" in capsys.readouterr().err
        ran(url, *options, "--resume")
    assert len(recorded()) == 9
    assert figures()["cost/prompt_tokens"]["mean"] is None  # unknown, not 0


def test_models_whose_names_differ_by_a_number_have_folders_and_rows_of_their_own():
    plans = [
        SimpleNamespace(
            arguments=SimpleNamespace(env="E"), model=ModelIdentity(name, "api", url="u")
        )
        for name in ("m-2", "m", "m", "m-3", "x" * 300, "x" * 301)
    ]
    folders = [path.name for path in eval_plan.folders_below(Path("f"), plans)]
    assert folders[:4] == ["E-m-2", "E-m", "E-m-3", "E-m-3-2"]
    assert len(set(folders)) == 6 and all(len(name) < 200 for name in folders)


def test_copies_of_one_checkpoint_have_rows_of_their_own(capsys, monkeypatch):
    copies = ModelIdentity("copy", "checkpoint", weights="abcdef0123")
    monkeypatch.setattr(ModelIdentity, "of", lambda name, url: copies)
    models = ["--model", "m", "--model", "m", "--problems", "1", "--k", "1"]
    with serving(ModelAPI(answer)) as url:
        ran(url, *models)
    lines = [line.split("|") for line in capsys.readouterr().out.splitlines()]
    rows = [line[1].strip() for line in lines if len(line) > 2 and "copy" in line[1]]
    assert rows == [
        "copy, text-only",
        "copy, text-only (abcdef01)",
        "copy, text-only (abcdef01) (3)",
    ]


def test_a_model_with_a_long_name_has_a_folder(capsys):
    without = [part for part in COMMAND if part not in ("--out", "found")]
    with serving(ModelAPI(answer)) as url:
        ran(url, "--model", "é" * 300, "--problems", "1", status=1, command=without)
    assert "File name" not in (err := capsys.readouterr().err) and "é" * 300 in err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_terminated_evaluation_says_how_to_go_on(name):
    api = ModelAPI(answer, delay=0.1)
    with serving(api) as url:
        options = ["--api", url, "--problems", "60", "--k", "1", "--batch", "2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "retool_env.cli", *COMMAND, *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # `nohup` makes processes ignore a signal, and their children inherit that.
            preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
        )
        limit = time.monotonic() + 60
        while len(api.requests) < 5 and time.monotonic() < limit:
            threading.Event().wait(0.01)
        process.send_signal(getattr(signal, name))
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume --out found" in err and record()["status"] == "stopped"


def test_records_are_valid_json_whatever_the_limits(capsys):
    def refuse(constant):
        raise AssertionError(constant)

    with serving(ModelAPI(answer)) as url:
        ran(url, "--problems", "1", "--price", "1,1", "--limit-cost", "inf", status=1)
        ran(url, "--problems", "1", "--k", "1", "--price", "0,0", "--limit-cost", "1")
    for path in Path("found").glob("*.json*"):
        for text in [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines():
            json.loads(text, parse_constant=refuse)
