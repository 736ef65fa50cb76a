"""Study C: its parts, their commands and their sizes."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.base.presets import load_settings
from agents.base.registry import load_algorithm
from benchmarks.parts.study_larger import (
    AFTER,
    BEFORE,
    COLD,
    LARGER,
    LARGER_PRESET,
    LARGER_SMALL,
    TRAINED,
    commands,
)

RUNS = Path("runs")


def made(part, sizes=LARGER):
    return list(commands(part, RUNS, sizes, 0.9))


@pytest.mark.parametrize("sizes", [LARGER, LARGER_SMALL], ids=["whole", "small"])
@pytest.mark.parametrize("part", [COLD, TRAINED])
def test_the_settings_of_a_training_are_valid(part, sizes):
    command = made(part, sizes)[-1]
    assert command[:3] == ["python", "-m", "agents"] and "--resume" in command
    settings = command[command.index("--runs") + 2 :]
    algorithm = load_algorithm(command[3])
    loaded = load_settings(algorithm.Settings, command[3], str(LARGER_PRESET), settings)
    assert (loaded.name, loaded.seed, loaded.lora_rank) == (part, 0, 16)
    assert not loaded.env.get("faults")  # the traces met faults, RL meets none
    if part == TRAINED:
        assert loaded.model == "runs/smollm2-cold/checkpoint" and loaded.steps == sizes.steps


def test_the_traces_are_of_the_model_and_the_cold_start_learns_them():
    model, language, training = made(COLD)
    assert model == ["python", "-m", "agents", "smollm2", "runs/smollm2"]
    assert language[language.index("--words") + 1] == "runs/smollm2"
    assert language[language.index("--traces") + 1] == str(LARGER.traces)
    assert {"model=runs/smollm2", "data=runs/language-smollm2/traces.jsonl"} < set(training)


@pytest.mark.parametrize(("part", "model"), [(BEFORE, COLD), (AFTER, TRAINED)])
def test_both_models_are_evaluated_alike_on_held_out_problems(part, model):
    [command] = made(part)
    assert command[command.index("--model") + 1] == f"runs/{model}/checkpoint"
    assert command[-1] == "path=runs/language-smollm2/held_out.jsonl" and "--resume" in command
    other = made(BEFORE if part == AFTER else AFTER)[0]
    own = {str(RUNS / name) for name in (part, model)}
    assert [one for one in command if not any(map(one.startswith, own))][5:] == [
        one for one in other if not one.startswith("runs/smollm2")
    ][5:]
