"""The answers of the API: runs, changed rows, and a program that is run again."""

import json
import sys
import threading
import types

import pytest
from helpers.viewed_runs import a_recover, a_training, an_eval, append, evaluated

from retool_env.errors import SandboxUnavailable, SettingsError
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.api import Api, Busy, describe
from retool_env.evaluation.view.index import Index
from retool_env.execution import Execution, Outcome


def opened(path):
    index = Index(open_run(path), cache=False)
    index.refresh()
    return index


def details(path):
    return dict(describe([opened(path)])[0]["details"])


@pytest.fixture
def replay(monkeypatch):
    """A stand-in of the module that runs programs again; `calls` are its calls."""
    module = types.ModuleType("retool_env.evaluation.replay")
    module.calls = []

    def run_call(run, address, call, seconds, sandbox=None):
        module.calls.append((run.title, address, call, seconds, sandbox))
        return Execution(Outcome.OK, "42\n", duration=0.5)

    module.run_call = run_call
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


BODY = {"run": 0, "address": "p/1/0", "call": 1, "seconds": 30}


def test_each_kind_of_run_is_described(tmp_path):
    values = details(an_eval(tmp_path / "eval"))
    assert (values["model"], values["environment"]) == (
        *("models/a/checkpoint", "ReTool-Arithmetic-v0"),
    )
    assert details(a_recover(tmp_path / "recover"))["suite"] == "v0"
    assert details(a_training(tmp_path / "training"))["revision"] == "4"
    assert "path" in details(tmp_path / "eval/episodes.jsonl")


def test_damaged_lines_are_among_the_details(tmp_path):
    path = an_eval(tmp_path / "run")
    with open(path / "episodes.jsonl", "a") as file:
        file.write("nonsense\n")
    assert "line 3 is not an episode" in details(path)["damaged lines"]


def test_a_run_is_finished_as_its_record_says(tmp_path):
    path = an_eval(tmp_path / "run", status="running")
    index = opened(path)
    api = Api([index])
    assert api.requests["runs"]({})["runs"][0]["finished"] is False
    record = json.loads((path / "eval.json").read_text())
    (path / "eval.json").write_text(json.dumps({**record, "status": "finished"}))
    assert api.requests["runs"]({})["runs"][0]["finished"] is True
    training = a_training(tmp_path / "training")
    assert [describe([opened(each)])[0]["finished"] for each in (training, f"{training}@2")] == [
        *(False, True),
    ]
    (training / "done").touch()
    assert describe([opened(training)])[0]["finished"] is True


def test_rows_of_a_run_that_goes_on_are_given_as_they_come(tmp_path):
    path = an_eval(tmp_path / "run", 1)
    rows = Api([opened(path)]).requests["rows"]
    first = rows({"run": "0", "since": "0"})
    append(path / "episodes.jsonl", evaluated(1))
    more = rows({"run": "0", "since": str(first["next"])})
    assert [[row["address"] for row in each["rows"]] for each in (first, more)] == [
        *(["p/1/0"], ["p/1/1"]),
    ]
    assert rows({"run": "0", "since": str(more["next"])})["rows"] == []


@pytest.mark.parametrize(
    ("request_", "query", "message"),
    [
        ("rows", {"since": "0"}, "run is missing"),
        ("rows", {"run": "1", "since": "0"}, "not one of the 1 open runs"),
        ("rows", {"run": "-1", "since": "0"}, "not a whole number"),
        ("rows", {"run": "0", "since": "9" * 5000}, "not a whole number"),
        ("rows", {"run": "٣", "since": "0"}, "not a whole number"),
        ("episode", {"run": "0"}, "address is missing"),
        ("episode", {"run": "0", "address": "../../etc/passwd"}, "has no episode"),
        ("tokens", {"run": "0", "address": ""}, "has no episode"),
        ("search", {"run": "0"}, "text is missing"),
        ("span", {"run": "0", "address": "p/1/0", "span": "9", "from": "0"}, "has 4 spans"),
        ("span", {"run": "0", "address": "p/1/0", "span": "0"}, "from is missing"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path, request_, query, message):
    api = Api([opened(an_eval(tmp_path / "run"))])
    with pytest.raises(SettingsError, match=message):
        api.requests[request_](query)


def test_a_program_is_run_again_with_more_time(tmp_path, replay):
    api = Api([opened(an_eval(tmp_path / "run"))])
    assert api.run(BODY) == {
        **{"outcome": "ok", "stdout": "42\n", "error": "", "traceback": "", "seconds": 0.5},
    }
    assert replay.calls == [("a/checkpoint", "p/1/0", 1, 30, None)]


@pytest.mark.parametrize(
    "change",
    [
        *({"run": "0"}, {"run": True}, {"run": 7}, {"address": None}, {"address": "nothing"}),
        *({"call": 1.5}, {"call": "1"}, {"seconds": "30"}, {"seconds": None}, {"seconds": [1]}),
    ],
)
def test_a_wrong_request_runs_nothing(tmp_path, replay, change):
    api = Api([opened(an_eval(tmp_path / "run"))])
    with pytest.raises(SettingsError):
        api.run({**BODY, **change})
    assert replay.calls == []


def test_one_program_runs_at_a_time_and_a_failure_frees_the_place(tmp_path, replay):
    api = Api([opened(an_eval(tmp_path / "run"))])
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_):
        begun.set()
        go_on.wait(60)
        raise SandboxUnavailable("no sandbox")

    replay.run_call, quick = slow, replay.run_call
    failures = []

    def ask():
        try:
            api.run(BODY)
        except SandboxUnavailable as error:
            failures.append(str(error))

    first = threading.Thread(target=ask)
    first.start()
    begun.wait(60)
    with pytest.raises(Busy, match="already running"):
        api.run(BODY)
    go_on.set()
    first.join()
    replay.run_call = quick
    assert failures == ["no sandbox"]
    assert api.run(BODY)["outcome"] == "ok"


def test_a_recorded_program_runs_in_the_sandbox(tmp_path):
    api = Api([opened(a_recover(tmp_path / "run"))])
    done = api.run({"run": 0, "address": "fork/timeout/p/0.1/0", "call": 1, "seconds": 30})
    assert (done["outcome"], done["stdout"], done["error"]) == ("ok", "42\n", "")
    with pytest.raises(SettingsError, match="no program of call 7"):
        api.run({"run": 0, "address": "fork/timeout/p/0.1/0", "call": 7, "seconds": 30})
