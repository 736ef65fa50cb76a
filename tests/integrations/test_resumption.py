"""A trainer that is resumed inside a generation batch finds the same rows, and the used ones."""

from __future__ import annotations

import json
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from retool_env.integrations.passes import PackedGRPOTrainer
from retool_env.integrations.resumption import ResumableGRPOTrainer
from retool_env.problem import Problem
from retool_env.training.rollouts import Rollouts
from retool_env.transcript import Span, StopReason, Transcript

ROWS = 8
SPANS = Span("prompt", "?", (1,)), Span("model", "42", (5, 6), (-0.5, -0.25))
EPISODE = Transcript(
    Problem("p", "?", "42"), SPANS, stop_reason=StopReason.ANSWERED, correct=True, reward=1.0
)


class Recalled(Rollouts):
    """Rollouts whose last batch is one that an earlier start has begun to train on."""

    def __init__(self):
        self.goes_on = True


class Sampling(PackedGRPOTrainer):
    """Numbers the rows of a batch, and logs as a sampled batch is logged."""

    def _generate_and_score_completions(self, inputs):
        self._metrics["train"]["reward"].append(1.0)
        self.state.num_input_tokens_seen += 100
        return {"completion_mask": torch.ones(ROWS, 3), "tool_mask": torch.ones(ROWS, 3)}


class Trainer(ResumableGRPOTrainer, Sampling):
    """Four passes of two rows for each batch."""

    def __init__(self, step=0, recalled=False, iterations=1):
        self.args = SimpleNamespace(
            seed=3, steps_per_generation=4, gradient_accumulation_steps=2, report_to=[]
        )
        self.num_iterations = iterations
        self.model = torch.nn.Linear(1, 1)
        self.accelerator = Accelerator(cpu=True)
        self.rollout_func = Recalled() if recalled else None
        self.state = SimpleNamespace(global_step=step, num_input_tokens_seen=40)
        self._metrics = {"train": defaultdict(list)}
        self.given = []
        self.on_trained = lambda step, transcripts: self.given.append((step, transcripts))
        self._untrained, self._logps_of, self._resumed_from = [], {}, None
        self.go_on()

    def _get_output_dir(self, trial):
        return self.folder

    def rows(self, passes):
        """The rows of the next passes, which the model then sees."""
        made = [{"transcript": EPISODE} for _ in range(ROWS)]
        found = []
        for _ in range(passes):
            part = self._prepare_inputs(made)
            found.append(part["row"].tolist())
            self.after_passes(part, torch.full((2, 3), -0.5 - self._step))
            self._step += 1
        return found


@pytest.fixture(autouse=True)
def saved(monkeypatch):
    monkeypatch.setattr(PackedGRPOTrainer, "_save_checkpoint", lambda *_: None)


def test_a_batch_has_the_same_order_of_rows_at_every_start():
    whole = Trainer().rows(8)
    assert whole[:4] != whole[4:]
    assert sorted(row for part in whole[:4] for row in part) == list(range(ROWS))
    torch.rand(100)  # what the global generator has given does not count
    assert Trainer(step=1).rows(6) == whole[2:]
    assert Trainer(step=2).rows(4) == whole[4:]


def test_a_batch_that_goes_on_is_not_counted_again():
    for recalled, rewards, tokens in ((True, [], 40), (False, [1.0], 140)):
        trainer = Trainer(step=1, recalled=recalled)
        trainer.rows(1)
        assert trainer._metrics["train"]["reward"] == rewards
        assert trainer.state.num_input_tokens_seen == tokens


@pytest.mark.parametrize("iterations", [1, 2])
def test_transcripts_are_handed_over_after_the_last_pass_with_the_log_probs_of_all(
    iterations, tmp_path
):
    whole, cut = Trainer(iterations=iterations), Trainer(iterations=iterations)
    whole.rows(4 * iterations - 1)
    assert whole.given == []
    whole.rows(1)
    cut.rows(2)
    cut.state.global_step, cut.folder = 1, str(tmp_path)
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    cut._save_checkpoint(None, None)
    [path] = checkpoint.iterdir()
    assert path.name == "trained-rows.0-of-1.safetensors"
    resumed = Trainer(step=1, recalled=True, iterations=iterations)
    resumed._resumed_from = str(checkpoint)
    resumed.rows(4 * iterations - 2)
    [(step, transcripts)] = resumed.given
    assert [json.dumps(t.to_json()) for t in transcripts] == [
        json.dumps(t.to_json()) for t in whole.given[0][1]
    ]
    assert step == 0


def test_without_the_log_probs_of_earlier_passes_the_transcripts_are_still_handed_over(tmp_path):
    resumed = Trainer(step=1, recalled=True)
    resumed._resumed_from = str(tmp_path)
    resumed.rows(2)
    [(_, transcripts)] = resumed.given
    known = [t.spans[1].trained_logprobs is not None for t in transcripts]
    assert len(transcripts) == ROWS and sum(known) == 4


@pytest.mark.parametrize("size", [0, 8, 640])
def test_a_damaged_file_of_log_probs_is_said_and_the_training_goes_on(tmp_path, size, caplog):
    resumed = Trainer(step=1, recalled=True)
    resumed._resumed_from = str(tmp_path)
    path = tmp_path / "trained-rows.0-of-1.safetensors"
    path.write_bytes(b"\0" * size)
    resumed.rows(2)
    assert len(resumed.given[0][1]) == ROWS and f"{path} is damaged" in caplog.text


@pytest.mark.parametrize(("iterations", "step"), [(1, 1), (2, 1), (2, 3)])
def test_transcripts_of_a_batch_that_was_sampled_anew_inside_its_passes_are_handed_over(
    iterations, step
):
    trainer = Trainer(step=step, iterations=iterations)
    trainer.rows(4 * iterations - 2 * step)
    [(sampled_at, transcripts)] = trainer.given
    known = [t.spans[1].trained_logprobs is not None for t in transcripts]
    assert (sampled_at, len(transcripts)) == (step, ROWS)
    assert sum(known) == (ROWS if step == 1 and iterations == 2 else ROWS // 2)
    trainer.rows(4 * iterations)
    assert len(trainer.given) == 2


def test_a_checkpoint_at_the_end_of_a_batch_has_no_rows(tmp_path):
    trainer = Trainer()
    trainer.rows(4)
    trainer.state.global_step, trainer.folder = 2, str(tmp_path)
    trainer._save_checkpoint(None, None)
    assert list(tmp_path.iterdir()) == []
