"""Figures are reported to trackers as they are logged; unknown and missing trackers are refused."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from helpers.small_runs import make_small, records, settings

from agents import grpo, ppo, rft, sft
from agents.base import reporting
from agents.base.reporting import check_report_to
from agents.base.settings import SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.problem import Problem
from retool_env.transcript import Span, StopReason, Transcript, read_transcripts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


WRITER = """
import json, pathlib

class SummaryWriter:
    def __init__(self, log_dir=None, **_):
        pathlib.Path(log_dir).mkdir(parents=True, exist_ok=True)
        self.file = open(pathlib.Path(log_dir) / "events.jsonl", "a")
    def add_scalar(self, name, value, global_step=None, **_):
        self.file.write(json.dumps([name, value, global_step]) + "\\n")
    def add_text(self, name, text, global_step=None, **_):
        self.file.write(json.dumps([name, text, global_step]) + "\\n")
    def flush(self): self.file.flush()
    def close(self): self.file.close()
"""


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """A stand-in for the package: it writes JSON. TRL and accelerate call it."""
    package = tmp_path / "packages" / "tensorboardX"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(package.parent)
    yield
    sys.modules.pop("tensorboardX", None)


@pytest.mark.parametrize("module", [grpo, ppo, sft], ids=["grpo", "ppo", "sft"])
def test_figures_are_reported_as_they_are_logged(module, model, tmp_path, tensorboard):
    name = module.__name__.removeprefix("agents.")
    more = {"env.max_tokens": 60, "traces": 8, "epochs": 2} if name == "sft" else {"steps": 2}
    more |= {"trl": {"logging_steps": 1}} if name == "sft" else {}
    module.train(settings(name, model=model, report_to="tensorboard", **more), tmp_path / "run")
    [events] = (tmp_path / "run").rglob("events.jsonl")
    reported = [json.loads(line) for line in events.open()]
    figure = "loss" if name == "sft" else "reward"
    logged = [(r["step"], r[figure]) for r in records(tmp_path / "run")]
    found = [(step, value) for n, value, step in reported if n in (figure, f"train/{figure}")]
    assert found == logged and len(logged) >= 2


@pytest.mark.parametrize("module", [grpo, ppo], ids=["grpo", "ppo"])
def test_evaluations_are_reported_with_some_transcripts(module, model, tmp_path, tensorboard):
    name = module.__name__.removeprefix("agents.")
    more = {"steps": 2, "eval_every": 1, "eval_problems": 5}
    module.train(settings(name, model=model, report_to="tensorboard", **more), tmp_path / "run")
    [events] = (tmp_path / "run").rglob("events.jsonl")
    reported = [json.loads(line) for line in events.open()]
    logged = [r for r in records(tmp_path / "run") if "eval/failed" in r]
    assert [r["step"] for r in logged] == [0, 1, 2]
    for figure in ("eval/accuracy", "eval/void_turns", "eval/seconds"):
        found = [(step, value) for n, value, step in reported if n == figure]
        assert found == [(r["step"], r[figure]) for r in logged]
    texts = {step: text for n, text, step in reported if n == reporting.SAMPLES}
    assert texts.keys() == {0, 1, 2}
    for step, text in texts.items():
        transcripts = list(read_transcripts(tmp_path / "run" / f"eval-{step}.jsonl"))
        assert text == reporting.samples_text(transcripts)
        shown = [t.problem.id in text for t in transcripts]
        assert shown == [True] * reporting.SAMPLE_COUNT + [False]


def table_package(monkeypatch, name):
    """A stand-in for trackio or W&B; returns what is logged to it."""
    logged = []
    package = SimpleNamespace(
        Table=lambda dataframe: dataframe.to_dict("records"),
        log=lambda figures: logged.append(figures),
    )
    monkeypatch.setitem(sys.modules, name, package)
    return logged


EPISODE = Transcript(
    Problem("p", "?", "7"),
    (
        Span("prompt", "?"),
        Span("model", "<code>\nprint(7)\n</code>"),
        Span("env", "\n<interpreter>\n7\n</interpreter>\n", execution=Execution(Outcome.OK, "7")),
        Span("model", "<answer>7</answer>"),
    ),
    stop_reason=StopReason.ANSWERED,
    correct=True,
    reward=1.0,
)
ROW = {
    "problem": "p",
    "reward": 1.0,
    "right": True,
    "calls": 1,
    "calls ok": 1,
    "end": "answered",
    "response": EPISODE.response_text,
}


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_trackers_of_tables_get_a_table_of_transcripts(kind, tmp_path, monkeypatch):
    of_package, of_tracker = table_package(monkeypatch, kind), []

    class Tracker:
        def __init__(self, project, name): ...

        def start(self): ...

        def store_init_configuration(self, settings): ...

        def log(self, figures, step):
            of_tracker.append((figures, step))

    class Callback:
        def on_log(self, args, state, control, model=None, logs=None):
            of_package.append(logs)

    monkeypatch.setattr(reporting, "PACKAGES", {kind: ("json",)})
    monkeypatch.setattr(reporting, "LOGGER_TYPE_TO_CLASS", {kind: Tracker})
    monkeypatch.setattr(reporting, "INTEGRATION_TO_CALLBACK", {kind: Callback})
    figures, table = {"eval/outcome/timeout": 0.5}, [ROW]
    reporting.Reporter(kind, "r", tmp_path, {}).evaluation(3, figures, [EPISODE])
    assert of_tracker == [(figures, 3), ({reporting.SAMPLES: table}, 3)]
    handler = SimpleNamespace(callbacks=[object(), Callback()])
    trainer = SimpleNamespace(
        args=None, state=None, control=None, model=None, callback_handler=handler
    )
    reporting.TrainerReporter(trainer, kind).evaluation(3, figures, [EPISODE])
    last = {reporting.SAMPLES: table, "train/global_step": 3}
    assert of_package == [{"eval_outcome/timeout": 0.5}, last]


def test_of_several_processes_the_first_one_reports(tmp_path, monkeypatch):
    made = []

    class Tracker:
        def __init__(self, project, name):
            made.append((project, name))

        def start(self): ...

        def store_init_configuration(self, settings):
            made.append(settings)

        def log(self, figures, step):
            made.append((figures, step))

        def finish(self):
            made.append("finished")

    monkeypatch.setattr(reporting, "PACKAGES", {"wandb": ("json",)})
    monkeypatch.setattr(reporting, "LOGGER_TYPE_TO_CLASS", {"wandb": Tracker})
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for main in (False, True):
        monkeypatch.setattr(
            reporting, "processes", lambda main=main: SimpleNamespace(is_main_process=main)
        )
        reporter = reporting.Reporter("wandb", "r", tmp_path, {"steps": 3})
        reporter.log(2, {"reward": 1.0})
        reporter.close()
    assert made == [("mine", "r"), {"steps": 3}, ({"reward": 1.0}, 2), "finished"]


def test_rft_reports_its_rounds_and_what_it_tunes(model, tmp_path, tensorboard, monkeypatch):
    monkeypatch.setattr(rft, "choose", lambda groups, keep: [t for g in groups for t in g][:4])
    monkeypatch.setattr(sft, "read_traces", lambda path, _: list(read_transcripts(path)))
    made = settings(
        "rft",
        model=model,
        problems=2,
        k=2,
        rounds=1,
        report_to=["tensorboard"],
        sft={"epochs": 1, "batch_size": 2, "trl": {"logging_steps": 1}},
    )
    rft.train(made, tmp_path / "run")
    events = [
        json.loads(line)
        for path in (tmp_path / "run").rglob("events.jsonl")
        for line in path.open()
    ]
    assert ["rft/traces", 4, 1] in events and any("loss" in name for name, _, _ in events)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        (["tensorboard", 3], "3 is unknown"),
        ("mlflow", "choose from none, tensorboard, trackio, wandb"),
    ],
)
def test_an_unknown_tracker_is_refused(setting, message, tensorboard):
    with pytest.raises(SettingsError, match=message):
        check_report_to(setting)


def test_a_package_that_is_missing_is_named(monkeypatch, model, tmp_path):
    monkeypatch.setattr("agents.base.reporting.PACKAGES", {"wandb": ("no_such_package",)})
    for name, module in {"grpo": grpo, "ppo": ppo, "sft": sft, "rft": rft}.items():
        with pytest.raises(SettingsError, match=r"report_to=wandb .* pip install no_such_package"):
            module.train(settings(name, model=model, report_to="wandb"), tmp_path / name)
        assert not (tmp_path / name).exists()
    assert check_report_to("none") == check_report_to(["none"]) == check_report_to([]) == []
