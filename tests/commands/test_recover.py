"""`retool recover` as a harness: arms, forks, resume, outputs, and the checker."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.model_api import ModelAPI, Reply, refusal, serving

from retool_env.cli import main
from retool_env.evaluation.recover.records import read_arms
from retool_env.problems import arithmetic

pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")

COMMAND = ["recover", "--env", "ReTool-Arithmetic-v0", "--model", "m", "--out", "found"]
KINDS = ("try_again", "stale")  # a first call is not eligible for `stale`
SIZE = ("--k", "2", "--m", "2", "--samples", "4", "--batch", "8")


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def suite(monkeypatch):
    """A suite of three problems, two kinds of faults and two rates, with forks at call 1."""
    source = arithmetic(split="test", difficulty=1)
    small = SimpleNamespace(
        problems=[source[i] for i in range(3)],
        hash="0123",
        kinds=KINDS,
        rates=(0.0, 0.5),
        seed=0,
        fork_call=lambda problem, sample: 1,
    )
    monkeypatch.setattr(
        "retool_env.evaluation.recover.suite.load_suite", lambda name, part, quick: small
    )
    return small


def model(conversation) -> Reply:
    """Computes once, answers the result, and gives up after an error."""
    words = conversation if isinstance(conversation, str) else str(conversation)
    if "Traceback" in words or "try again" in words:
        return Reply("I give up")
    if shown := re.search(r"<interpreter>\\n(-?\d+)", words):
        return Reply(f"<answer>{shown[1]}</answer>")
    terms = re.findall(r"-?\d+ ?[-+*] ?\(?-?\d+", words)
    if "<code>" not in words:
        return Reply("<answer>0</answer>")
    return Reply(f"<code>print({terms[-1]})</code>")


def ran(url, *options, status=0, command=COMMAND):
    assert main([*command, "--api", url, *SIZE, *options]) == status


def recorded(folder="found"):
    return {record.key: record.transcript for record in read_arms(folder)}


def results(folder="found"):
    return json.loads(Path(folder, "results.json").read_text())


def figures(folder="found"):
    return {figure["key"]: figure for figure in results(folder)["figures"]}


def test_all_protocols_run_and_give_the_figures_of_a_known_agent(capsys):
    with serving(ModelAPI(model)) as url:
        ran(url)
    keys = recorded()
    arms = {(key[0], key[1]) for key in keys}
    assert arms >= {("dose", "0"), ("dose", "0.5"), ("fork", "control"), ("fork", "try_again")}
    assert arms >= {("frequency", arm) for arm in ("text", "tool", "gone")}
    found, counts = figures(), results()["counts"]
    assert found["dose/0/accuracy"]["mean"] == 1.0
    assert found["effect/try_again"]["mean"] == -1.0
    assert found["frequency/gain"]["mean"] == 1.0
    assert counts["prefixes"] == {"fork": 6, "natural": 0}
    assert counts["not_eligible"] == {"stale": 6}
    assert counts["episodes"]["fork/stale"] == 6  # the first of each arm says so
    assert counts["episodes"]["fork/try_again"] == 12
    out = capsys.readouterr().out
    assert "| try_again: effect " in out and "6 pairs of prefix and fault are not eligible" in out
    page = Path("found/page.html").read_text()
    assert "data:image/png;base64," in page and "http" not in page.replace(url, "")
    assert Path("found/heat-map.png").read_bytes().startswith(b"\x89PNG")
    assert {"README.md", "eval.yaml"} <= {path.name for path in Path("found").iterdir()}
