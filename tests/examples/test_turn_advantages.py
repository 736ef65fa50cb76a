"""The example `turn_advantages.py`: its numbers, and a run."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from agents import __main__ as cli
from agents.base.registry import load_algorithm
from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.problems import Problem
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript

EXAMPLE = Path(__file__).parents[2] / "examples" / "turn_advantages.py"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def places(monkeypatch):
    """Restore the module path: loading an algorithm adds its folder."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def episode(*shown):
    """An episode with a turn before each of these results, and an answer at the end."""
    tokenizer = make_tokenizer()
    texts = [("prompt", "?")]
    for result in shown:
        texts += [
            ("model", "<code>1</code>"),
            ("env", f"\n<interpreter>\n{result}\n</interpreter>\n"),
        ]
    texts.append(("model", "<answer>1</answer>"))
    spans = []
    for author, text in texts:
        ids = tuple(tokenizer.encode(text))
        logprobs = (-1.0,) * len(ids) if author == "model" else None
        execution = Execution(Outcome.OK, text) if author == "env" else None
        spans.append(Span(author, text, ids, logprobs, execution=execution))
    return Transcript(Problem("0", "?", "1"), tuple(spans), stop_reason=StopReason.ANSWERED)


def test_a_turn_is_compared_with_those_of_its_group_that_began_in_its_state():
    module = load_algorithm(str(EXAMPLE))
    # Two groups of three. The last episode failed.
    episodes = [episode("7"), episode("7"), episode(), episode("7"), episode("8"), episode("7")]
    rewards = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, math.nan])
    found = module.turn_advantages(rewards, 3, episodes, discount=0.5)
    first = (0.5 - 0.5 + 1.0) / 3  # the mean return of the first group's first turns
    assert found[0] == pytest.approx([0.5 - first, 1.0])  # after "7" there are 1 and -1
    assert found[1] == pytest.approx([-0.5 - first, -1.0])
    assert found[2] == pytest.approx([1.0 - first])
    # In the second group no other turn began in the states of these last turns.
    assert found[3] == pytest.approx([0.5, 0.0]) and found[4] == pytest.approx([-0.5, 0.0])
    assert all(math.isnan(each) for each in found[5])


def test_its_tokens_have_their_turns_advantage_beside_their_episodes(monkeypatch):
    module, given = load_algorithm(str(EXAMPLE)), {}
    monkeypatch.setattr(module.grpo, "train", lambda *_, **more: given.update(more))
    module.train(module.Settings(turn_weight=2.0, turn_discount=0.5), Path("run"))
    episodes = [episode("7"), episode()]
    found = given["advantages"](torch.tensor([1.0, -1.0]), 2, transcripts=episodes)
    normal = 1 / (2**0.5 + 1e-4)  # distance over deviation
    call, result, answer = (len(span.token_ids) for span in episodes[0].response)
    assert found.shape == (2, call + result + answer)
    # The first turns return 0.5 and -1, and their mean is -0.25.
    assert found[0, :call].tolist() == pytest.approx([normal + 2 * 0.75] * call)
    assert found[0, call + result :].tolist() == pytest.approx([normal] * answer)
    assert found[1, :answer].tolist() == pytest.approx([-normal - 2 * 0.75] * answer)


def test_it_trains(tmp_path):
    model = make_checkpoint(tmp_path / "model", seed=0)
    values = {"model": model, "steps": 1, "prompts": 2, "rollouts": 4, "micro_batch": 8}
    env = ["env.interpreter=false", "env.max_tokens=24"]
    given = [*env, *(f"{key}={value}" for key, value in values.items())]
    assert cli.main([str(EXAMPLE), "--runs", str(tmp_path), *given]) == 0
    folder = tmp_path / "turn_advantages"
    assert (folder / "checkpoint" / "config.json").is_file()
    [record] = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    assert math.isfinite(record["loss"])
