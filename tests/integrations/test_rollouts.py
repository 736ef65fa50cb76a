"""EngineRollouts: the numbers and prompts of TRL's batches, at a start and at a resumption."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from agents.models.tiny import make_tokenizer
from retool_env.integrations.rollouts import EngineRollouts, passes_a_batch
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rules import Rules


class Asked(EngineRollouts):
    """Returns the step that it is asked for, and samples nothing."""

    def collect(self, step):
        return step


@pytest.fixture
def rollouts():
    policy = ScriptedPolicy(lambda text: "", make_tokenizer())
    problems = ProblemList([Problem("a", "?", "1")])
    rollouts = Asked(RolloutEngine(policy, Rules(max_tokens=9, interpreter=False), None), problems)
    yield rollouts
    rollouts.close()


def trainer_at(step=0, rank=0, processes=1, **sizes):
    """A trainer of TRL at a step, with batches of two problems with four rollouts each."""
    sizes = {"gradient_accumulation_steps": 2, "steps_per_generation": 2, **sizes}
    return SimpleNamespace(
        model=torch.nn.Linear(1, 1),
        state=SimpleNamespace(global_step=step, max_steps=6),
        args=SimpleNamespace(generation_batch_size=8, **sizes),
        accelerator=SimpleNamespace(process_index=rank, num_processes=processes),
        train_dataset=Dataset.from_dict({"prompt": ["a", "b", "c", "d"]}),
        num_generations=4,
        num_generations_eval=2,
        num_iterations=1,
        temperature=1.0,
        eos_token_ids=[0],
        _log_metric=print,
        _step=0,
    )


def batches(rollouts, trainer, passes):
    """The numbers of the batches that the trainer asks for after so many passes."""
    numbers = []
    for trainer._step in passes:
        numbers.append(rollouts(["a"] * 4, trainer).batch)
    return numbers


def test_batches_are_counted_from_the_beginning_of_the_run(rollouts):
    assert batches(rollouts, trainer_at(), (0, 2, 4)) == [0, 1, 2]


def test_a_resumed_run_goes_on_with_the_number_of_its_next_batch(rollouts):
    trainer = trainer_at(step=3)
    assert batches(rollouts, trainer, (0, 2)) == [3, 4]  # TRL counts its passes from 0


def test_a_batch_that_serves_several_steps_is_one_batch(rollouts):
    trainer = trainer_at(gradient_accumulation_steps=1, steps_per_generation=3)
    assert passes_a_batch(trainer) == 3
    assert batches(rollouts, trainer, (0, 3, 6)) == [0, 1, 2]


def test_later_batches_are_foreseen_until_the_last_step(rollouts):
    step = rollouts(["a"] * 4, trainer_at())
    assert step.coming(1) == ["c"] * 4 + ["d"] * 4
    assert step.coming(2) == ["a"] * 4 + ["b"] * 4  # the data set begins anew
    assert step.coming(5) is not None and step.coming(6) is None


def test_each_process_foresees_its_part_of_a_batch(rollouts):
    step = rollouts(["a"] * 4, trainer_at(rank=1, processes=2))
    assert step.coming(1) == ["d"] * 4


def test_in_evaluation_groups_have_the_size_of_the_evaluation(rollouts):
    trainer = trainer_at()
    trainer.model.eval()
    step = rollouts(["a"] * 2, trainer)
    assert (step.training, step.group, step.batch) == (False, 2, -1)
