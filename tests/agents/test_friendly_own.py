"""An algorithm outside `agents/`: the algorithm of the documentation runs and learns."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers.small_runs import make_small, records
from transformers import AutoModelForCausalLM

from agents import __main__ as cli
from agents.base import session
from agents.base.presets import load_settings
from agents.base.registry import load_algorithm
from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.problems import Problem, ProblemList
from retool_env.rules import Rules
from retool_env.transcript import check_transcript, read_transcripts

EXAMPLE = Path(__file__).parents[2] / "docs" / "reinforce.py"


def test_the_readmes_algorithm_runs_as_it_is_written(tmp_path):
    """From the command line, with programs in the real jail."""
    model = make_checkpoint(tmp_path / "model", seed=1)
    values = {"model": model, "steps": 2, "prompts": 2, "rollouts": 2, "env.max_tokens": 40}
    given = [f"{key}={value}" for key, value in values.items()]
    assert cli.main([str(EXAMPLE), "--runs", str(tmp_path / "runs"), *given]) == 0
    folder = tmp_path / "runs" / "reinforce"
    assert [record["step"] for record in records(folder)] == [1, 2]
    transcripts = list(read_transcripts(folder / "transcripts.jsonl"))
    assert len(transcripts) == 2 * 4
    for transcript in transcripts:
        check_transcript(transcript)
    assert AutoModelForCausalLM.from_pretrained(folder / "checkpoint").num_parameters() > 1000
    assert cli.main([str(EXAMPLE), "--runs", str(tmp_path / "runs"), *given]) == 2  # taken


def test_the_readmes_algorithm_learns(tmp_path, monkeypatch):
    """One token a turn: an even one is right. Within 20 steps nearly all are."""
    algorithm = load_algorithm(str(EXAMPLE))
    rules = Rules(
        interpreter=False,
        max_tokens=1,
        prompt_template="{query}",
        reward=lambda transcript: 1.0 if transcript.completion_ids[0] % 2 == 0 else -1.0,
    )
    problems = ProblemList(Problem(str(i), f"Compute {i}", "1") for i in range(4))
    monkeypatch.setattr(session, "find_task", lambda env: (rules, problems))
    model = make_small(tmp_path / "model")
    given = [f"model={model}", "steps=30", "prompts=4", "learning_rate=0.01"]
    settings = load_settings(algorithm.Settings, "reinforce", "tiny", given)

    def share_of_even(folder):
        trained, tokenizer = AutoModelForCausalLM.from_pretrained(folder), make_tokenizer()
        with torch.no_grad():
            rows = [trained(torch.tensor([tokenizer.encode(p.question)])).logits for p in problems]
        return torch.softmax(torch.cat(rows)[:, -1], -1)[:, ::2].sum(-1).min().item()

    assert share_of_even(model) < 0.8
    assert share_of_even(algorithm.train(settings, tmp_path / "run")) > 0.95
