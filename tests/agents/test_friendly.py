"""The user's view: the board, trackers, refusals that say what to change, and the help."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from helpers.small_runs import given, make_small, records, settings
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config

from agents import __main__ as cli
from agents import grpo, ppo, rft, sft
from agents.base import board as progress
from agents.base import reporting, run
from agents.base.board import Bar, sparkline
from agents.base.model import check_learning_rate, load_model
from agents.base.registry import algorithms, load_algorithm
from agents.base.reporting import check_report_to
from agents.base.settings import SettingsError, help_of
from retool_env.problems import jsonl
from retool_env.transcript import read_transcripts


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_small(tmp_path_factory.mktemp("model"))


# The board


def figures(step):
    return {
        "reward": 0.25 * step,
        "env/accuracy": 0.1 * step,
        "env/code_ratio": 1.0,
        "completions/mean_length": 31.26,
        "offpolicy/kl": 1.5e-4,
        "rollout/seconds": 2.5,
        "clip_fraction": 0.5,
    }


@pytest.fixture
def screen(monkeypatch):
    """A terminal, 80 wide, and what was written to it."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    return text


class Writing:
    tokens = 0

    def __str__(self):
        return "3 generating"


def last_frame(text):
    """The last state of the screen."""
    return text.getvalue().rpartition("ppo")[2]


def test_a_terminal_shows_figures_and_curves(screen, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    live = Writing()
    past = [{"step": step, **figures(step)} for step in (1, 2)]
    with Bar("ppo", 9, live=live, past=past) as bar:
        bar.set_total(9, 2)
        for step in (3, 4, 5):
            now[0] += 20
            live.tokens += 5000
            bar.show(step, figures(step))
    shown = last_frame(screen)
    for said in (
        "5/9",
        "0:01:00, about 0:01:20 to go",  # 3 steps a minute, and the two before took none of it
        "accuracy 50.0 %",
        "with code 100.0 %",
        "tokens 31.3",
        "off-policy KL 0.00015",
        "rollout s 2.5",
        "tokens/s 250",
        "▁▂▃▄▅",  # the two steps before this start too
        "█████",
        "3 generating",
    ):
        assert said in " ".join(shown.split()), shown
    assert "clip" not in shown and max(map(len, shown.splitlines())) <= 80


def test_elsewhere_there_are_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO()))
    with Bar("rl", 2, every=0.0) as bar:
        bar.show(1, figures(1))
        bar.advance()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rl: 1/2, 0 s  reward 0.25  accuracy 0.1  with code 1")
    assert lines[1].startswith("rl: 2/2") and lines[-1].startswith("rl: 2/2")


def test_a_curve_of_more_steps_than_columns_shows_means():
    values = [i / 999 for i in range(1000)]
    line = sparkline(values, 16)
    assert line == "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"
    assert sparkline([0.0, 1.0] * 4, 4) == "▅▅▅▅"
    assert sparkline([-1.0, 2.0], 9) == "▁█"


def test_curves_are_drawn_while_it_goes_on(model, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "PICTURE_SECONDS", 0.0)
    drawn = []
    monkeypatch.setattr(run, "draw_curves", lambda arms, path: drawn.append((arms, path)))
    made = run.Run(tmp_path / "named", settings("grpo", model=model), False)
    made.start()
    made.log({"step": 1, "env/accuracy": 0.5})
    assert drawn == [
        ({"named": [{"step": 1, "env/accuracy": 0.5}]}, tmp_path / "named" / "curves.png")
    ]
    monkeypatch.setattr(run, "PICTURE_SECONDS", 1e9)
    made.log({"step": 2, "env/accuracy": 0.5})
    assert len(drawn) == 1
    monkeypatch.setattr(run, "draw_curves", _without_matplotlib)
    made.draw()


def _without_matplotlib(arms, path):
    raise ImportError("matplotlib")


# Reports elsewhere

WRITER = """
import json, pathlib

class SummaryWriter:
    def __init__(self, log_dir=None, **_):
        pathlib.Path(log_dir).mkdir(parents=True, exist_ok=True)
        self.file = open(pathlib.Path(log_dir) / "events.jsonl", "a")
    def add_scalar(self, name, value, global_step=None, **_):
        self.file.write(json.dumps([name, value, global_step]) + "\\n")
    def add_text(self, *_, **__): pass
    def flush(self): self.file.flush()
    def close(self): self.file.close()
"""


@pytest.fixture
def tensorboard(tmp_path, monkeypatch):
    """Replaces the package by a writer of JSON. TRL and accelerate themselves call it."""
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
    ("setting", "said"),
    [
        ("tensorbord", "did you mean 'tensorboard'"),
        (["tensorboard", 3], "no 3"),
        ("mlflow", "there are none, tensorboard, trackio, wandb"),
    ],
)
def test_where_nothing_can_be_reported_is_refused(setting, said, tensorboard):
    with pytest.raises(SettingsError, match=said):
        check_report_to(setting)


def test_a_package_that_is_missing_is_named(monkeypatch, model, tmp_path):
    monkeypatch.setattr("agents.base.reporting.PACKAGES", {"wandb": ("no_such_package",)})
    for name, module in {"grpo": grpo, "ppo": ppo, "sft": sft, "rft": rft}.items():
        with pytest.raises(SettingsError, match=r"report_to=wandb .* pip install no_such_package"):
            module.train(settings(name, model=model, report_to="wandb"), tmp_path / name)
        assert not (tmp_path / name).exists()
    assert check_report_to("none") == check_report_to(["none"]) == check_report_to([]) == []


# Refusals


def test_without_a_pad_token_the_eos_token_pads_and_nothing_changes(model, tmp_path):
    """Responses end in it, and are padded with it: what is padding is told by its place alone."""

    def without(tokenizer):
        tokenizer.pad_token = None

    other = make_small(tmp_path / "other", without)
    assert AutoTokenizer.from_pretrained(other).pad_token is None
    for name, module in {"grpo": grpo, "ppo": ppo}.items():
        more = {"steps": 2, "env.max_tokens": 90}  # in which some end by themselves
        plain = module.train(settings(name, model=model, **more), tmp_path / f"{name}-plain")
        episodes = list(read_transcripts(tmp_path / f"{name}-plain" / "transcripts.jsonl"))
        assert len({len(t.completion_ids) for t in episodes}) > 2
        with pytest.warns(UserWarning, match=r"no pad_token, so its eos_token '<\|end\|>' pads"):
            bare = module.train(settings(name, model=other, **more), tmp_path / f"{name}-bare")
        for a, b in zip(
            *(AutoModelForCausalLM.from_pretrained(f).parameters() for f in (plain, bare)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: setattr(t, "eos_token", None), "no eos_token.*save_pretrained"),
        (lambda t: t.add_special_tokens({"pad_token": "<new>"}), "embeds .* tokens: take another"),
        (lambda t: t.add_special_tokens({"eos_token": "<new>"}), "the eos_token '<new>'"),
    ],
)
def test_a_tokenizer_that_does_not_suit_is_refused(change, said, tmp_path):
    folder = make_small(tmp_path / "model", change)
    with pytest.raises(SettingsError, match=said):
        load_model(folder, "float32")


@pytest.mark.parametrize(("name", "module"), [("grpo", grpo), ("ppo", ppo)])
def test_a_protocol_of_chats_needs_a_chat_template(name, module, model, tmp_path):
    hermes = settings(name, model=model, **{"env.protocol": "hermes", "env.interpreter": True})
    with pytest.raises(SettingsError, match=r"protocol=hermes: .*chat template"):
        module.train(hermes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def parameters(**size):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(Qwen2Config(**size)).num_parameters()


def test_a_learning_rate_is_measured_by_the_size_of_the_model():
    def check(rate, size, **more):
        check_learning_rate(sft.Settings(learning_rate=rate, **more), size)

    seven = parameters(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    )
    assert 7e9 < seven < 8e9
    with pytest.raises(
        SettingsError, match=r"learning_rate=0.001 is far too high .* 7,616 million"
    ):
        check(1e-3, seven)
    check(1e-3, seven, allow_high_learning_rate=True)
    check(1e-3, seven, lora_rank=16)  # adapters
    check(1e-3, seven, trl={"optim": "sgd"})
    with pytest.raises(SettingsError, match="set allow_high_learning_rate=true"):
        check(2e-3, seven, lora_rank=16, trl={"optim": "adamw_torch"})
    for rate, size in ((1e-6, seven), (1e-5, 32e9), (1e-4, seven), (6e-4, 125e6), (2e-3, 1e6)):
        check(rate, int(size))  # what is in use
    with pytest.raises(SettingsError, match=r"^sft\.learning_rate must be above 0"):
        made = sft.Settings(learning_rate=0.0, allow_high_learning_rate=True)
        check_learning_rate(made, 1, section="sft.")


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("sft", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("grpo", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("grpo", {"learning_rate": -1.0}, "learning_rate must be above 0"),
        ("ppo", {"learning_rate": 0.5}, "learning_rate=0.5"),
        ("ppo", {"critic_learning_rate": 0.5}, "critic_learning_rate=0.5"),
        ("rft", {"sft": {"learning_rate": 0.5}}, "sft.learning_rate=0.5"),
        ("grpo", {"micro_batch": 6}, "take micro_batch=4"),
        ("ppo", {"micro_batch": 6}, "take micro_batch=4"),
        ("ppo", {"mini_batch": 5}, "take mini_batch=4"),
        ("grpo", {"trl": {"generation_batch_size": 6}}, "trl: .*6"),
        ("grpo", {"trl": {"report_to": "wandb"}}, "setting of our own"),
        ("sft", {"traces": 0}, "traces must be at least 1"),
        ("sft", {"epochs": -1.0}, "epochs must be above 0"),
        ("sft", {"batch_size": 0}, "batch_size must be at least 1"),
        ("sft", {"save_steps": 0}, "save_steps must be at least 1"),
    ],
)
def test_numbers_that_will_not_do_are_refused(name, overrides, said, model, tmp_path):
    module = load_algorithm(name)
    with pytest.raises(SettingsError, match=said):
        module.train(settings(name, model=model, **overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_several_processes_can_not_share_says_what_they_could(model):
    with pytest.raises(SettingsError, match="take a multiple of 2"):
        grpo.check_batch(settings("grpo", prompts=3), 2)
    with pytest.raises(SettingsError, match=r"4 episodes for each process.*take micro_batch=2"):
        grpo.check_batch(settings("grpo", micro_batch=3), 2)
    with pytest.raises(SettingsError, match="take mini_batch=4"):
        ppo.check(settings("ppo", mini_batch=7), 2)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "1 + 1?"}, "line 2: no column for the answer: .*answer_key="),
        ({"question": "1 + 1?", "answer": " "}, "line 2: the answer .* is empty"),
        ({"question": "1 + 1?", "answer": None}, "line 2: the answer .* neither text nor a number"),
        ({"question": "1 + 1?", "answer": "\\frac{1}{"}, "line 2: .*close all braces"),
        ({"question": "1 + 1?", "answer": "$$"}, "line 2: .*can't be graded"),
        ({"question": "1 + 1?", "answer": ["1", "2"]}, "line 2: .*one value"),
    ],
)
def test_a_data_set_without_answers_is_refused_by_line(row, said, model, tmp_path, capsys):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "2 + 2?", "answer": "4"}) + "\n" + json.dumps(row))
    own = {"env.id": "ReTool-JSONL-v0", "env.path": str(path)}
    preset = tmp_path / "preset.yaml"
    preset.write_text("env: {id: ReTool-JSONL-v0}\n")
    for name in ("grpo", "ppo", "rft"):
        values = given(name, model=model, **own)
        command = [name, "--preset", str(preset), "--runs", str(tmp_path / "runs"), *values]
        assert cli.main(command) == 2
        message = capsys.readouterr().err
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(message)
    assert not (tmp_path / "runs").exists()


def test_answers_in_words_and_formulas_are_taken(tmp_path):
    answers = [
        "Paris",
        "\\frac{1}{2}",
        3,
        0.5,
        "x^2 + 1",
        "\\boxed{7}",
        "$12$",
        "1,000",
        "\\{1, 2\\}",
    ]
    rows = [{"question": f"{i}?", "answer": answer} for i, answer in enumerate(answers)]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(jsonl(path)) == len(answers)


# The help


@pytest.mark.parametrize("name", algorithms())
def test_the_help_documents_every_setting(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    assert cli.main([name, "--help"]) == 0
    listed = capsys.readouterr().out.partition(f"settings of {name}:\n")[2]
    assert max(map(len, listed.splitlines())) <= 90
    unwrapped = " ".join(listed.split())
    cls = load_algorithm(name).Settings
    for field in dataclasses.fields(cls):
        help = help_of(cls, field.name)
        assert len(help) > 2, field.name
        assert f"{field.name} (" in unwrapped and " ".join(help.split()) in unwrapped
