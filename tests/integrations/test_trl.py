"""The inputs of TRL's loss: the transcript's mask, the reward, the engine's log-probs."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig

from agents.models.tiny import make_checkpoint, make_tokenizer
from retool_env.checkpoint_task import CheckpointTask, read_task, task_rules
from retool_env.episode import Generation
from retool_env.errors import SettingsError
from retool_env.integrations.trl import (
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
)
from retool_env.problems import Problem, ProblemList
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.training.rows import teaches
from retool_env.transcript import Span, StopReason, Transcript

RULES = Rules(max_tokens=120, prompt_template="{query}\n", max_calls=2)
PROBLEMS = ProblemList(
    Problem(id=str(i), question=f"{i} * 7?", answer=str(i * 7)) for i in range(4)
)
GROUP = 4


class Box:
    """A sandbox that prints 7 to every program, and fails where the program says so."""

    def __init__(self, output: str = "7\n") -> None:
        self.output = output

    async def run_async(self, code, limits=None, **_):
        if "fail" in code:
            return Execution(Outcome.INFRASTRUCTURE, "", "gone")
        return Execution(Outcome.OK, self.output)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(make_checkpoint(tmp_path_factory.mktemp("tiny"), seed=0))


class Varied(ScriptedPolicy):
    """Calls the interpreter, then answers right in half of the rollouts, with likely log-probs."""

    def __init__(self, tokenizer, logprob=-0.7, program="print(7)"):
        super().__init__(lambda text: "", tokenizer)
        self.logprob, self.program = logprob, program

    async def act(self, token_ids, stop, budget, seed):
        text = self.tokenizer.decode(token_ids)
        if "<interpreter>" not in text:
            turn = f"<code>\n```python\n{self.program}\n```\n</code>"
        else:
            number = int(text.split(" * ")[0]) * 7 + seed % 2
            turn = f"so <answer>\n\\boxed{{{number}}}\n</answer>"
        ids = tuple(self.tokenizer.encode(turn))
        return Generation(ids, (self.logprob,) * len(ids), "tag")


def make_trainer(
    checkpoint, tmp_path, policy=None, box=None, seed=0, size=4, rules=RULES, ahead=None, **settings
):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    rollouts = []
    if policy == "copy":
        policy = TransformersPolicy(copy.deepcopy(model), tokenizer)
    first = Varied(tokenizer) if policy in (None, "model") else policy
    engine = RolloutEngine(first, rules, box or Box())
    trainer = EngineGRPOTrainer(
        model=model,
        reward_funcs=episode_reward,
        args=GRPOConfig(
            output_dir=str(tmp_path),
            **{
                "max_steps": 1,
                "per_device_train_batch_size": 4 * GROUP,
                "num_generations": GROUP,
                "max_completion_length": 120,
                "learning_rate": 1e-3,
                "report_to": "none",
                "bf16": False,
                "shuffle_dataset": False,
                "disable_tqdm": True,
                "gradient_checkpointing": False,
                "dataloader_pin_memory": False,
                **settings,
            },
        ),
        train_dataset=problem_dataset(PROBLEMS, size, seed=0),
        processing_class=tokenizer,
        rollout_func=EngineRollouts(
            engine, PROBLEMS, seed, lambda step, ts: rollouts.extend(ts), **(ahead or {})
        ),
    )
    if policy == "model":
        trainer.rollout_func.engine.policy = TransformersPolicy(trainer.model, tokenizer)
    return trainer, rollouts


def batch_of(trainer):
    rows = [{"prompt": row["prompt"]} for row in trainer.train_dataset for _ in range(GROUP)]
    trainer.model.train()
    return trainer._generate_and_score_completions(rows)


def loss_of(trainer, batch):
    trainer.current_gradient_accumulation_steps = 1
    return trainer.compute_loss(trainer.model, batch)


def test_rows_carry_the_transcripts_ids_mask_and_logprobs(checkpoint, tmp_path):
    trainer, rollouts = make_trainer(checkpoint, tmp_path)
    batch = batch_of(trainer)
    eos = trainer.processing_class.eos_token_id
    for i, transcript in enumerate(rollouts):
        length = len(transcript.completion_ids)
        ids = batch["completion_ids"][i]
        assert ids[:length].tolist() == transcript.completion_ids and ids[length] == eos
        mask = (batch["completion_mask"] * batch["tool_mask"])[i]
        assert mask[:length].tolist() == transcript.loss_mask and mask[length:].sum() == 0
        own = torch.tensor(transcript.loss_mask, dtype=torch.bool)
        assert torch.all(batch["old_per_token_logps"][i, :length][own] == torch.tensor(-0.7))
        assert 0 < own.sum() < length


def test_groups_are_normalised_over_the_environments_rewards(checkpoint, tmp_path):
    trainer, rollouts = make_trainer(checkpoint, tmp_path, scale_rewards="none")
    advantages = batch_of(trainer)["advantages"].view(-1, GROUP)
    rewards = torch.tensor([t.reward for t in rollouts]).view(-1, GROUP)
    assert set(rewards.flatten().tolist()) == {1.0, -1.0}
    torch.testing.assert_close(advantages, rewards - rewards.mean(1, keepdim=True))


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_the_gradient_at_interpreter_tokens_logits_is_exactly_zero(checkpoint, tmp_path, loss_type):
    trainer, _ = make_trainer(checkpoint, tmp_path, loss_type=loss_type)
    batch = batch_of(trainer)
    del batch["old_per_token_logps"]  # a ratio of 1, so that nothing is clipped away
    captured = []

    def keep(module, inputs, output):
        output.logits.retain_grad()
        captured.append(output.logits)

    handle = trainer.model.register_forward_hook(keep)
    _with_plain_head(trainer)
    loss_of(trainer, batch).backward()
    handle.remove()
    [logits] = captured
    prompt = batch["prompt_ids"].shape[1]
    gradient = (
        logits.grad[:, prompt - 1 : -1].abs().sum(-1)
    )  # at the position that predicts each token
    assert gradient.shape == batch["completion_ids"].shape
    kept = (batch["completion_mask"] * batch["tool_mask"]).bool()
    moved = kept & (batch["advantages"][:, None] != 0)
    assert torch.all(gradient[~kept] == 0.0)
    assert torch.all(gradient[moved] > 0.0)


def _with_plain_head(trainer):
    """TRL projects hidden states in chunks; this makes the logits, as TRL's reference path does."""

    def logps(model, input_ids, attention_mask, logits_to_keep, *args, compute_entropy=False, **_):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        logps = torch.log_softmax(logits[:, -logits_to_keep:] / trainer.temperature, -1)
        ids = input_ids[:, -logits_to_keep:, None]
        entropy = -(logps.exp() * logps).sum(-1).detach() if compute_entropy else None
        return logps.gather(-1, ids)[..., 0], entropy, None

    trainer._get_per_token_logps_and_entropies = logps
    return True


def test_perturbing_interpreter_tokens_logprobs_moves_neither_loss_nor_gradient(
    checkpoint, tmp_path
):
    """The same through TRL's own head: what is predicted at masked positions does not count."""
    trainer, _ = make_trainer(checkpoint, tmp_path)
    batch = batch_of(trainer)
    masked = ((batch["completion_mask"] * batch["tool_mask"]) == 0).float()
    original = trainer._get_per_token_logps_and_entropies

    def loss_and_gradient(noise):
        def perturbed(*args, **kwargs):
            logps, entropy, aux = original(*args, **kwargs)
            return logps + noise * masked * torch.randn_like(logps).abs(), entropy, aux

        trainer._get_per_token_logps_and_entropies = perturbed
        trainer.model.zero_grad()
        loss = loss_of(trainer, batch)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        return loss.detach(), gradient

    loss, gradient = loss_and_gradient(0.0)
    other_loss, other_gradient = loss_and_gradient(5.0)
    assert gradient.abs().sum() > 0
    assert torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient)


def test_the_engines_logprobs_reach_the_loss(checkpoint, tmp_path):
    losses = []
    for logprob in (-0.7, -0.7, -2.0):
        policy = Varied(make_tokenizer(), logprob)
        trainer, _ = make_trainer(checkpoint, tmp_path, policy=policy)
        losses.append(loss_of(trainer, batch_of(trainer)).item())
    assert losses[0] == losses[1] != losses[2]


def test_with_the_trained_model_as_engine_the_ratio_is_one(checkpoint, tmp_path):
    trainer, rollouts = make_trainer(checkpoint, tmp_path, policy="model")
    batch = batch_of(trainer)
    logps, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
        batch["completion_ids"].shape[1],
    )
    kept = (batch["completion_mask"] * batch["tool_mask"]).bool()
    difference = (logps - batch["old_per_token_logps"])[kept].abs()
    assert rollouts and difference.max() < 1e-3


def test_a_failed_episode_leaves_no_trace_in_its_group(checkpoint, tmp_path):
    class Sometimes(Varied):
        async def act(self, token_ids, stop, budget, seed):
            self.program = "fail" if seed % 3 == 0 else "print(7)"
            return await super().act(token_ids, stop, budget, seed)

    trainer, rollouts = make_trainer(
        checkpoint, tmp_path, policy=Sometimes(make_tokenizer()), scale_rewards="none"
    )
    batch = batch_of(trainer)
    failed = [t.stop_reason is StopReason.INFRASTRUCTURE for t in rollouts]
    assert 0 < sum(failed) < len(failed)
    mask = batch["completion_mask"] * batch["tool_mask"]
    for start in range(0, len(rollouts), GROUP):
        group = rollouts[start : start + GROUP]
        rewards = [t.reward for t in group if t.reward is not None]
        for i, transcript in enumerate(group, start):
            if failed[i]:
                assert mask[i].sum() == 0 and batch["advantages"][i] == 0
            else:
                expected = transcript.reward - sum(rewards) / len(rewards)
                assert batch["advantages"][i].item() == pytest.approx(expected, abs=1e-6)
    assert torch.isfinite(loss_of(trainer, batch))


def test_a_policy_with_top_p_is_refused():
    class Nucleus(Varied):
        top_p = 0.7

    with pytest.raises(SettingsError, match="top_p"):
        EngineRollouts(RolloutEngine(Nucleus(make_tokenizer()), RULES, Box()), PROBLEMS)


def test_every_step_samples_with_seeds_of_its_own(checkpoint, tmp_path):
    seeds = []

    class Watching(Varied):
        async def act(self, token_ids, stop, budget, seed):
            seeds.append(seed)
            return await super().act(token_ids, stop, budget, seed)

    trainer, _ = make_trainer(checkpoint, tmp_path, policy=Watching(make_tokenizer()))
    trainer.model.train()
    for step in (0, 1):
        trainer._step = step
        trainer.rollout_func(["0"] * GROUP + ["1"] * GROUP, trainer)
    assert len(set(seeds)) == len(seeds) == 2 * 2 * GROUP * 2  # steps, groups, rollouts, turns


def test_a_policy_at_another_temperature_is_refused(checkpoint, tmp_path):
    policy = Varied(make_tokenizer())
    policy.temperature = 0.7
    trainer, _ = make_trainer(checkpoint, tmp_path, policy=policy)
    with pytest.raises(SettingsError, match=r"temperature 0\.7"):
        batch_of(trainer)


def test_a_sandbox_that_always_fails_ends_the_run(checkpoint, tmp_path):
    policy = Varied(make_tokenizer(), program="fail")
    trainer, rollouts = make_trainer(checkpoint, tmp_path, policy=policy)
    with pytest.raises(RuntimeError, match="all 16 episodes"):
        batch_of(trainer)
    assert len(rollouts) == 16  # the record of what happened is kept


def test_old_logprobs_stay_with_their_tokens_through_accumulation(checkpoint, tmp_path):
    """TRL shuffles and splits batches: the ratio is 1 only if all columns move together."""
    trainer, _ = make_trainer(
        checkpoint,
        tmp_path,
        policy="model",
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=4,
    )
    ratios = []
    original = trainer._compute_loss

    def watched(model, inputs):
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
            inputs["completion_ids"].shape[1],
        )
        kept = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        ratios.append((logps - inputs["old_per_token_logps"])[kept].abs().max().item())
        return original(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    assert len(ratios) == 4 and max(ratios) < 1e-3


def test_one_step_changes_the_weights_and_logs_the_environments_figures(checkpoint, tmp_path):
    trainer, _ = make_trainer(checkpoint, tmp_path)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    [logs] = [record for record in trainer.state.log_history if "reward" in record]
    assert logs["env/code_ratio"] == 1.0 and logs["env/calls_per_episode"] == 1.0
    assert logs["env/accuracy"] == pytest.approx((logs["reward"] + 1) / 2)


# --- sampling ahead -----------------------------------------------------------------------------

FIRST = 4 * GROUP * 2
"""Turns of a batch: groups, rollouts, turns."""


def lags(rollouts):
    """Of each batch, the steps between the weights that sampled a turn and the trained weights."""
    found = {}
    for transcript in rollouts:
        for span in transcript.spans:
            if span.author == "model":
                lag = transcript.trained_version - span.weight_version
                found.setdefault(transcript.trained_version, set()).add(lag)
    return [found[step] for step in sorted(found)]


ANY = dataclasses.replace(
    RULES, max_tokens=40, reward=lambda transcript: float(len(transcript.completion_ids) % 2)
)


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_what_is_trained_on_is_no_older_than_was_asked_for(checkpoint, tmp_path, staleness):
    trainer, rollouts = make_trainer(
        checkpoint,
        tmp_path,
        policy="copy",
        rules=ANY,
        size=16,
        ahead={"staleness": staleness},
        max_steps=4,
        logging_steps=1,
        learning_rate=1e-2,
    )
    history, served = [], trainer.rollout_func.engine.policy
    update = served.update_weights

    async def watched(version, weights=None):
        history.append([p.detach().clone() for p in trainer.model.parameters()])
        await update(version, weights)
        # From here on it samples from just these, whatever the trainer does.
        assert all(map(torch.equal, history[-1], served.model.parameters()))

    served.update_weights = watched
    trainer.train()
    assert len(history) == 4 and not all(map(torch.equal, history[0], history[3]))
    found = lags(rollouts)
    assert len(found) == 4 and found[0] == {0}
    assert all(max(each) <= staleness for each in found)
    if staleness < 2:  # with two batches in flight, one may go on under newer weights
        assert found[1:] == [{staleness}] * 3
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert [log["rollout/weight_lag_max"] for log in logs] == [max(each) for each in found]
    assert not trainer.rollout_func.ahead  # nothing is sampled that is never asked for
    near = [log["offpolicy/difference_max"] < 1e-3 for log in logs]
    assert near == [True, *[staleness == 0] * 3]


def test_the_next_batch_is_sampled_while_this_one_trains(checkpoint, tmp_path):
    """The turns wait until this batch's loss is computed: sampling in turn would never end."""
    training = threading.Event()

    class Waiting(Varied):
        turns = 0

        async def act(self, token_ids, stop, budget, seed):
            self.turns += 1
            if self.turns > FIRST:
                assert await asyncio.to_thread(training.wait, 60)
            return await super().act(token_ids, stop, budget, seed)

    policy = Waiting(make_tokenizer())
    trainer, _ = make_trainer(
        checkpoint, tmp_path, policy=policy, size=8, ahead={"staleness": 1}, max_steps=2
    )
    original = trainer._compute_loss

    def computing(*args, **kwargs):
        training.set()
        return original(*args, **kwargs)

    trainer._compute_loss = computing
    trainer.train()
    assert training.is_set() and policy.turns == 2 * FIRST


def test_a_trained_model_is_not_sampled_from_meanwhile(checkpoint, tmp_path):
    trainer, _ = make_trainer(checkpoint, tmp_path, policy="model", ahead={"staleness": 1})
    with pytest.raises(SettingsError, match="its own model"):
        trainer.train()


def test_problems_in_another_order_are_noticed(checkpoint, tmp_path):
    trainer, _ = make_trainer(
        checkpoint,
        tmp_path,
        size=64,
        ahead={"staleness": 1},
        max_steps=3,
        shuffle_dataset=True,
    )
    with pytest.raises(SettingsError, match="shuffle_dataset=False"):
        trainer.train()


def test_closing_cancels_what_is_sampled_ahead(checkpoint, tmp_path):
    begun, ended = threading.Event(), threading.Event()

    class Endless(Varied):
        turns = 0

        async def act(self, token_ids, stop, budget, seed):
            self.turns += 1
            if self.turns > FIRST:
                begun.set()
                try:
                    await asyncio.sleep(3600)
                finally:
                    ended.set()
            return await super().act(token_ids, stop, budget, seed)

    policy = Endless(make_tokenizer())
    trainer, _ = make_trainer(
        checkpoint, tmp_path, policy=policy, size=8, ahead={"staleness": 1}, max_steps=2
    )

    def training(*args, **kwargs):
        assert begun.wait(30)
        raise KeyboardInterrupt

    trainer._compute_loss = training
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not ended.is_set()
    trainer.rollout_func.close()
    trainer.rollout_func.close()
    assert ended.is_set()


def test_several_batches_a_step_and_several_steps_a_batch_are_foreseen(checkpoint, tmp_path):
    """The batches sampled ahead are the batches asked for, however TRL divides them."""
    for number, sizes in enumerate(
        (
            {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
            {"gradient_accumulation_steps": 1, "steps_per_generation": 2},
            {"gradient_accumulation_steps": 1, "num_iterations": 2},
            {"gradient_accumulation_steps": 2, "steps_per_generation": 3},
            {"gradient_accumulation_steps": 4, "steps_per_generation": 3},
        )
    ):
        trainer, _ = make_trainer(
            checkpoint,
            tmp_path / str(number),
            size=24,  # fewer than are asked for, so that the data set begins anew
            ahead={"staleness": 1},
            max_steps=6,
            per_device_train_batch_size=2 * GROUP,
            save_strategy="no",
            **sizes,
        )
        taken = []
        collect = trainer.rollout_func.collect
        trainer.rollout_func.collect = lambda step, collect=collect, taken=taken: (
            taken.append((step.batch, step.batch in collect.__self__.ahead)) or collect(step)
        )
        trainer.train()
        numbers = [number for number, _ in taken]
        passes = 6 * sizes["gradient_accumulation_steps"]
        every = sizes.get("steps_per_generation", sizes["gradient_accumulation_steps"])
        asked = -(-passes // (every * sizes.get("num_iterations", 1)))
        assert numbers == list(range(asked))
        assert [was_ahead for _, was_ahead in taken] == [False] + [True] * (len(numbers) - 1)
        assert not trainer.rollout_func.ahead


# --- groups -------------------------------------------------------------------------------------


def test_groups_that_teach_nothing_are_replaced_as_often_as_may_be(checkpoint, tmp_path):
    asked = []

    class Dull(Varied):
        async def act(self, token_ids, stop, budget, seed):
            text = self.tokenizer.decode(token_ids)
            number = int(text.split(" * ")[0])
            if "<interpreter>" not in text:
                asked.append(number)
            # Problem 0 is always solved, 1 never, 2 and 3 by half of the rollouts.
            right = {0: True, 1: False}.get(number, seed % 2 == 0)
            turn = f"<answer>{number * 7 + (not right)}</answer>"
            ids = tuple(self.tokenizer.encode(turn))
            return Generation(ids, (self.logprob,) * len(ids), "tag")

    trainer, rollouts = make_trainer(
        checkpoint, tmp_path, policy=Dull(make_tokenizer()), ahead={"resample": 20}
    )
    batch_of(trainer)
    groups = [rollouts[i : i + GROUP] for i in range(0, len(rollouts), GROUP)]
    assert len(groups) == 4
    for group in groups:
        assert len({t.problem.id for t in group}) == 1 and len({t.reward for t in group}) == 2
    assert {t.problem.id for t in rollouts} == {"2", "3"} and len(asked) > len(rollouts)
    trainer, rollouts = make_trainer(
        checkpoint, tmp_path, policy=Dull(make_tokenizer()), ahead={"resample": 0}
    )
    batch_of(trainer)
    assert {t.problem.id for t in rollouts} == {"0", "1", "2", "3"}


@pytest.mark.parametrize("by", ["accuracy", "reward"])
def test_an_all_wrong_group_of_unequal_shaped_rewards_teaches_by_its_rewards_alone(by):
    def some(*episodes):
        prompt = Span("prompt", "?"), Span("model", "<answer>1</answer>")
        problem = Problem("0", "?", "1")
        return [
            Transcript(problem, prompt, stop_reason=StopReason.ANSWERED, correct=c, reward=r)
            for c, r in episodes
        ]

    wrong, right = some((False, -1.0), (False, -0.6)), some((True, 1.0), (True, 0.9))
    assert [teaches(group, by) for group in (wrong, right)] == [by == "reward"] * 2
    assert teaches(some((True, 1.0), (False, -1.0)), by)
    assert not teaches(some((None, -1.0), (False, -1.0)), by)
    assert teaches(some((True, 0.5), (False, 0.5)), by) == (by == "accuracy")


def test_stragglers_are_cut_and_counted(checkpoint, tmp_path):
    class Slow(Box):
        """Its first program never ends."""

        calls = 0

        async def run_async(self, code, limits=None, **_):
            self.calls += 1
            if self.calls == 1:
                await asyncio.sleep(3600)
            return Execution(Outcome.OK, self.output)

    for more, name, number in (
        ({"deadline": 5.0}, "cut", 1.0),
        ({"oversample": 1.25}, "dropped", 4.0),
    ):
        trainer, rollouts = make_trainer(
            checkpoint, tmp_path, box=Slow(), ahead=more, logging_steps=1, save_strategy="no"
        )
        trainer.train()
        reasons = [t.stop_reason for t in rollouts]
        assert reasons.count(StopReason.CANCELLED) == (name == "cut") and len(reasons) == 4 * GROUP
        [log] = [log for log in trainer.state.log_history if "reward" in log]
        assert log[f"rollout/{name}"] == number
        assert log["env/deadline_cut"] == (1 / 16 if name == "cut" else 0.0)


class SlowOnce(Varied):
    """Its first rollout never writes a second turn."""

    slow = None

    async def act(self, token_ids, stop, budget, seed):
        if "<interpreter>" in self.tokenizer.decode(token_ids) and self.slow is None:
            self.slow = seed
            await asyncio.sleep(3600)
        return await super().act(token_ids, stop, budget, seed)


class RightFirst(Varied):
    """Right answers come at once, wrong ones late: in the first turn, or after a program."""

    def __init__(self, tokenizer, turns):
        super().__init__(tokenizer)
        self.turns, self.right = turns, {}

    async def act(self, token_ids, stop, budget, seed):
        text = self.tokenizer.decode(token_ids)
        if self.turns > 1 and "<interpreter>" not in text:
            return await super().act(token_ids, stop, budget, seed)
        right = self.right.setdefault(seed, len(self.right) % 2 == 0)
        if not right:
            await asyncio.sleep(0.3 + 0.15 * len(self.right))  # one after the other
        turn = f"<answer>{int(text.split(' * ')[0]) * 7 + (not right)}</answer>"
        ids = tuple(self.tokenizer.encode(turn))
        return Generation(ids, (self.logprob,) * len(ids), "tag")


@pytest.mark.parametrize("turns", [1, 2])
def test_accuracy_is_of_all_rollouts_that_were_begun(checkpoint, tmp_path, caplog, turns):
    policy = RightFirst(make_tokenizer(), turns)
    trainer, rollouts = make_trainer(checkpoint, tmp_path, policy=policy, ahead={"oversample": 1.5})
    batch_of(trainer)
    assert "oversample=1.5 keeps the rollouts that finish first" in caplog.text
    logged = trainer._metrics["train"]["env/accuracy"]
    kept = sum(t.correct for t in rollouts) / len(rollouts)
    assert kept == pytest.approx(0.75) and logged == [pytest.approx(0.5)]
    assert len(policy.right) == 6 * GROUP and len(rollouts) == 4 * GROUP
    assert trainer._metrics["train"]["env/code_ratio"] == [float(turns > 1)]


def test_accuracy_counts_the_groups_that_were_replaced(checkpoint, tmp_path):
    class Half(Varied):
        async def act(self, token_ids, stop, budget, seed):
            number = int(self.tokenizer.decode(token_ids).split(" * ")[0])
            right = seed % 2 == 0 if number else False
            ids = tuple(self.tokenizer.encode(f"<answer>{number * 7 + (not right)}</answer>"))
            return Generation(ids, (self.logprob,) * len(ids), "tag")

    trainer, rollouts = make_trainer(
        checkpoint, tmp_path, policy=Half(make_tokenizer()), ahead={"resample": 20}
    )
    seen = []
    inner = trainer.rollout_func.sample

    async def sample(*args):
        sampled = await inner(*args)
        seen.extend(t for group in sampled.groups for t in group)
        return sampled

    trainer.rollout_func.sample = sample
    batch_of(trainer)
    assert len(seen) > len(rollouts)
    assert trainer._metrics["train"]["env/accuracy"] == [
        pytest.approx(sum(t.correct for t in seen) / len(seen))
    ]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_what_a_deadline_cut_is_scored_but_trained_on_by_nobody(
    checkpoint, tmp_path, caplog, scale
):
    trainer, rollouts = make_trainer(
        checkpoint,
        tmp_path,
        policy=SlowOnce(make_tokenizer()),
        ahead={"deadline": 3.0},
        scale_rewards=scale,
    )
    batch = batch_of(trainer)
    [cut] = [i for i, t in enumerate(rollouts) if t.stop_reason is StopReason.CANCELLED]
    assert rollouts[cut].reward == -1.0 and rollouts[cut].response
    own = (batch["completion_mask"] * batch["tool_mask"]).sum(1)
    assert own[cut] == 0 and batch["advantages"][cut] == 0.0
    first = cut // GROUP * GROUP
    others = [i for i in range(first, first + GROUP) if i != cut]
    rewards = torch.tensor([rollouts[i].reward for i in others])
    expected = rewards - rewards.mean()
    if scale == "group":
        expected /= rewards.std() + 1e-4
    torch.testing.assert_close(batch["advantages"][others], expected)
    assert trainer._metrics["train"]["env/deadline_cut"] == [1 / 16]
    [warned] = [r.message for r in caplog.records if "deadline" in r.message]
    assert "deadline of 3 s cut 6 % of the episodes of step 0" in warned


def test_a_batch_that_a_deadline_cut_as_a_whole_ends_training(checkpoint, tmp_path):
    class Stuck(Varied):
        async def act(self, token_ids, stop, budget, seed):
            if "<interpreter>" in self.tokenizer.decode(token_ids):
                await asyncio.sleep(3600)
            return await super().act(token_ids, stop, budget, seed)

    trainer, _ = make_trainer(
        checkpoint, tmp_path, policy=Stuck(make_tokenizer()), ahead={"deadline": 2.0}
    )
    with pytest.raises(RuntimeError, match="100% were cut by the deadline of 2 s"):
        batch_of(trainer)


def test_what_a_deadline_cut_before_it_began_is_as_if_absent(checkpoint, tmp_path):
    """A cut episode's reward does not count, and leaves the advantages of its group unchanged."""

    class Stuck(Varied):
        async def act(self, token_ids, stop, budget, seed):
            if "0 * 7" in self.tokenizer.decode(token_ids) and self.stuck:
                await asyncio.sleep(3600)
            return await super().act(token_ids, stop, budget, seed)

    policy = Stuck(make_tokenizer())
    policy.stuck = True
    trainer, rollouts = make_trainer(
        checkpoint, tmp_path, policy=policy, ahead={"deadline": 3.0}, scale_rewards="none"
    )
    batch = batch_of(trainer)
    unbegun = [not t.response for t in rollouts]
    assert sum(unbegun) == GROUP and [t.reward is None for t in rollouts] == unbegun
    mask = (batch["completion_mask"] * batch["tool_mask"]).sum(1)
    for row, never in enumerate(unbegun):
        assert (mask[row] == 0) == never and (not never or batch["advantages"][row] == 0)
    rewards = [t.reward for t in rollouts if t.reward is not None]
    assert trainer._metrics["train"]["reward"] == [pytest.approx(sum(rewards) / (3 * GROUP))]


def test_in_evaluation_groups_are_whole_and_nothing_is_recorded(checkpoint, tmp_path):
    trainer, rollouts = make_trainer(checkpoint, tmp_path, num_generations_eval=2)
    trainer.model.eval()
    rows = trainer.rollout_func(["0", "0", "1", "1"], trainer)
    assert [t.problem.id for t in rows["transcript"]] == ["0", "0", "1", "1"] and not rollouts
    assert {t.trained_version for t in rows["transcript"]} == {None}
    with pytest.raises(ValueError, match="groups of 2 equal"):
        trainer.rollout_func(["0", "0", "1"], trainer)
    failing = Varied(make_tokenizer(), program="fail")
    trainer, _ = make_trainer(checkpoint, tmp_path, policy=failing, num_generations_eval=2)
    trainer.model.eval()
    rows = trainer.rollout_func(["0", "0"], trainer)  # no reason to end training
    assert [t.reward for t in rows["transcript"]] == [None, None]
    with pytest.raises(SettingsError, match="per_device_eval_batch_size=3"):
        trainer.args.eval_strategy = (
            "steps"  # which TRL allows where several processes share a group
        )
        trainer.args.per_device_eval_batch_size = 3
        trainer.check_groups()


def test_what_the_trainer_saves_carries_the_task(checkpoint, tmp_path):
    """The task that was given, or else the rules of the sampling, which belong to no id."""
    trainer, _ = make_trainer(checkpoint, tmp_path / "run", save_strategy="steps", save_steps=1)
    trainer.train()
    for folder in (tmp_path / "run" / "checkpoint-1", tmp_path / "own"):
        trainer.save_model(str(folder))
        task = read_task(folder)
        assert task.id is None and task_rules(task) == RULES
    trainer.task = CheckpointTask.of({"id": "ReTool-Arithmetic-v0", "max_tokens": 99})
    trainer.save_model()
    assert read_task(tmp_path / "run") == trainer.task


def test_a_vllm_of_trls_own_is_refused_before_it_starts(checkpoint, tmp_path):
    with pytest.raises(SettingsError, match="a second time"):
        make_trainer(checkpoint, tmp_path, use_vllm=True)


def test_groups_that_are_not_whole_are_refused(checkpoint, tmp_path):
    trainer, _ = make_trainer(checkpoint, tmp_path)
    trainer.args.per_device_train_batch_size = (
        6  # TRL allows it where several processes share a group
    )
    with pytest.raises(SettingsError, match="no group is split"):
        trainer.check_groups()
    trainer, _ = make_trainer(checkpoint, tmp_path)
    trainer.model.train()
    with pytest.raises(ValueError, match="groups of 4 equal"):
        trainer.rollout_func(["0", "0", "1", "1"], trainer)


def test_an_engine_that_sleeps_is_awake_while_it_samples_and_at_no_other_time(checkpoint, tmp_path):
    happened = []

    class Sleeper(Varied):
        sleep_mode = True
        asleep = False

        async def act(self, token_ids, stop, budget, seed):
            assert not self.asleep
            return await super().act(token_ids, stop, budget, seed)

        async def update_weights(self, version, weights=None):
            assert not self.asleep
            happened.append(f"update {version}")

        async def sleep(self):
            self.asleep = True
            happened.append("sleep")

        async def wake_up(self):
            self.asleep = False
            happened.append("wake up")

    policy = Sleeper(make_tokenizer())
    trainer, _ = make_trainer(checkpoint, tmp_path, policy=policy, size=8, max_steps=2)
    original = trainer._compute_loss

    def computing(*args, **kwargs):
        assert policy.asleep
        return original(*args, **kwargs)

    trainer._compute_loss = computing
    trainer.train()
    assert happened == ["update 0", "sleep", "wake up", "update 1", "sleep"]
    with pytest.raises(SettingsError, match="can't sample ahead"):
        EngineRollouts(RolloutEngine(policy, RULES, Box()), PROBLEMS, staleness=1)


@pytest.mark.parametrize(
    "wrong", [{"staleness": -1}, {"resample": -1}, {"oversample": 0.9}, {"deadline": 0}]
)
def test_bad_numbers_are_refused(wrong):
    with pytest.raises(SettingsError, match="must be at least 0"):
        EngineRollouts(RolloutEngine(Varied(make_tokenizer()), RULES, Box()), PROBLEMS, **wrong)


# --- how far the engine is from the trained model -------------------------------------------------


def test_the_distance_from_the_engine_is_logged(checkpoint, tmp_path):
    """Against figures of our own, from plain logits in double precision."""
    trainer, rollouts = make_trainer(
        checkpoint,
        tmp_path,
        logging_steps=1,
        per_device_train_batch_size=GROUP,
        gradient_accumulation_steps=4,
    )
    model = AutoModelForCausalLM.from_pretrained(checkpoint).double()
    trainer.train()
    differences = []
    for transcript in rollouts:
        ids = torch.tensor([transcript.prompt_ids + transcript.completion_ids])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        own = torch.tensor(transcript.loss_mask, dtype=torch.bool)
        differences.append((logps[len(transcript.prompt_ids) - 1 :][own] + 0.7).detach())
    difference = torch.cat(differences)
    ratio = difference.exp()
    [log] = [log for log in trainer.state.log_history if "reward" in log]
    expected = {
        "difference": difference.abs().mean(),
        "difference_max": difference.abs().max(),
        "kl": (ratio - 1 - difference).mean(),
        "weight": ratio.mean(),
        "effective_tokens": ratio.sum() ** 2 / ratio.square().sum() / len(ratio),
    }
    for name, value in expected.items():
        assert log[f"offpolicy/{name}"] == pytest.approx(value.item(), rel=1e-3), name
