"""What reaches TRL's loss: the transcript's mask, the environment's reward, the engine's log-probs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from trl import GRPOConfig

from agents.tiny import make_checkpoint, make_tokenizer
from retool_env.episode import Episode, Generation, Rules
from retool_env.integrations.trl import (
    EngineGRPOTrainer,
    EngineRollouts,
    episode_reward,
    problem_dataset,
    training_rows,
)
from retool_env.problems import Problem, ProblemList, arithmetic
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.transformers import TransformersPolicy
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, Transcript

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
    """Calls the interpreter, then answers right in half of the rollouts; log-probs as the model would give."""

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


def make_trainer(checkpoint, tmp_path, policy=None, box=None, seed=0, **settings):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    rollouts = []
    engine = RolloutEngine(policy or Varied(tokenizer), RULES, box or Box())
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
        train_dataset=problem_dataset(PROBLEMS, 4, seed=0),
        processing_class=tokenizer,
        rollout_func=EngineRollouts(engine, PROBLEMS, seed, lambda step, ts: rollouts.extend(ts)),
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
    plain = _with_plain_head(trainer)
    loss_of(trainer, batch).backward()
    handle.remove()
    [logits] = captured
    prompt = batch["prompt_ids"].shape[1]
    gradient = (
        logits.grad[:, prompt - 1 : -1].abs().sum(-1)
    )  # at the position that predicts each token
    assert plain and gradient.shape == batch["completion_ids"].shape
    kept = (batch["completion_mask"] * batch["tool_mask"]).bool()
    moved = kept & (batch["advantages"][:, None] != 0)
    assert torch.all(gradient[~kept] == 0.0)
    assert torch.all(gradient[moved] > 0.0)


def _with_plain_head(trainer):
    """TRL projects hidden states in chunks without making logits; make them, as its own reference path does."""

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


def finish(reason: StopReason, sampled_eos: bool = False) -> Transcript:
    tokenizer = make_tokenizer()
    episode = Episode(Problem(id="p", question="q", answer="1"), RULES, tokenizer)
    ids = tuple(tokenizer.encode("hm")) + ((tokenizer.eos_token_id,) if sampled_eos else ())
    reason_sampled = "eos" if sampled_eos else "length"
    episode.act_ids(Generation(ids, (-1.0,) * len(ids), reason_sampled))
    return dataclasses.replace(episode.transcript, stop_reason=reason)


def test_an_end_of_sequence_is_appended_unless_sampled_and_never_trained():
    eos = make_tokenizer().eos_token_id
    for reason in StopReason:
        rows = training_rows([finish(reason)], [eos])
        [ids], [mask], [logprobs] = rows["completion_ids"], rows["env_mask"], rows["logprobs"]
        assert len(ids) == len(mask) == len(logprobs)
        if reason is StopReason.INFRASTRUCTURE:
            assert (ids, mask) == ([eos], [0])
        elif reason.terminated:
            assert ids[-1] == eos and mask == [1, 1, 0]
        else:
            assert ids[-1] != eos and mask == [1, 1]  # what TRL then counts as truncated
    rows = training_rows([finish(StopReason.STOPPED, sampled_eos=True)], [eos])
    assert rows["completion_ids"][0].count(eos) == 1 and rows["env_mask"] == [[1, 1, 1]]


def test_text_transcripts_are_refused():
    episode = Episode(Problem(id="p", question="q", answer="1"), Rules())
    episode.act("hm")
    with pytest.raises(ValueError, match="no token ids"):
        training_rows([episode.transcript], [0])


def test_a_policy_with_top_p_is_refused():
    class Nucleus(Varied):
        top_p = 0.7

    with pytest.raises(ValueError, match="top_p"):
        EngineRollouts(RolloutEngine(Nucleus(make_tokenizer()), RULES, Box()), PROBLEMS)


def test_every_step_samples_with_seeds_of_its_own(checkpoint, tmp_path):
    seeds = []

    class Watching(Varied):
        async def act(self, token_ids, stop, budget, seed):
            seeds.append(seed)
            return await super().act(token_ids, stop, budget, seed)

    trainer, _ = make_trainer(checkpoint, tmp_path, policy=Watching(make_tokenizer()))
    for step in (0, 1):
        trainer.state.global_step = step
        trainer.rollout_func(["0", "1"], trainer)
    assert len(set(seeds)) == len(seeds) == 8


def test_a_policy_at_another_temperature_is_refused(checkpoint, tmp_path):
    policy = Varied(make_tokenizer())
    policy.temperature = 0.7
    trainer, _ = make_trainer(checkpoint, tmp_path, policy=policy)
    with pytest.raises(ValueError, match=r"temperature 0\.7"):
        batch_of(trainer)


def test_a_sandbox_that_always_fails_ends_the_run(checkpoint, tmp_path):
    policy = Varied(make_tokenizer(), program="fail")
    trainer, rollouts = make_trainer(checkpoint, tmp_path, policy=policy)
    with pytest.raises(RuntimeError, match="all 16 episodes"):
        batch_of(trainer)
    assert len(rollouts) == 16  # the record of what happened is kept


def test_old_logprobs_stay_with_their_tokens_through_accumulation(checkpoint, tmp_path):
    """Batches are shuffled and split on the way to the loss: the ratio is 1 only if all move together."""
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


def test_the_data_set_repeats_no_problem_before_all_were_drawn():
    source = arithmetic(size=10)
    ids = problem_dataset(source, 25, seed=1)["prompt"]
    for start in (0, 10):
        assert sorted(ids[start : start + 10]) == sorted(source[i].id for i in range(10))
    assert list(ids) == list(problem_dataset(source, 25, seed=1)["prompt"])
    assert list(ids) != list(problem_dataset(source, 25, seed=2)["prompt"])


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
