"""The running batch and its cache, with real small models: sharing changes nothing but time."""

from __future__ import annotations

import asyncio
import copy
import inspect
import random
import threading
from contextlib import contextmanager

import pytest
import torch
from helpers.vllm_models import assert_own_logprobs
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config

from agents.models.tiny import make_model
from retool_env.rollout.transformers import batching
from retool_env.rollout.transformers.batching import BLOCK
from retool_env.rollout.transformers.policy import TransformersPolicy

NEVER = ("\0\0",)


@pytest.fixture
def tiny():
    """A new model for each test, and its tokenizer."""
    model, tokenizer = make_model(seed=0)
    return model.eval(), tokenizer


def act(policy, prompts, budget=24, seeds=None, stop=NEVER):
    async def turns():
        return await asyncio.gather(
            *(
                policy.act(ids, stop, budget, seed)
                for ids, seed in zip(prompts, seeds or range(len(prompts)), strict=True)
            )
        )

    return asyncio.run(turns())


def prompt(length, seed=0):
    chance = random.Random(seed)
    return [chance.randrange(5, 250) for _ in range(length)]


def plain_logprobs(model, ids, sampled):
    with torch.no_grad():
        sequence = torch.tensor([[*ids, *sampled]])
        logits = model(sequence).logits[0, len(ids) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(-1, torch.tensor(sampled)[:, None])[:, 0]


def assert_exact(model, ids, turn):
    """Check log-probs against one forward pass over the whole sequence, without a cache."""
    expected = plain_logprobs(model, ids, list(turn.token_ids))
    torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=2e-4, rtol=0)


@contextmanager
def watched(model, before=lambda call: None):
    """Record the shape of the query of each forward pass.

    `before` is called in the sampling thread with the number of the pass.
    """
    shapes, forward = [], model.forward

    def watching(*args, **kwargs):
        before(len(shapes))
        shapes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    model.forward = watching
    try:
        yield shapes
    finally:
        del model.forward


def everything_is_free(policy):
    pool = policy.batcher.pool
    return pool.available == pool.count


def test_requests_join_and_leave_at_any_token(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    ended = []

    async def turn(name, ids, budget):
        result = await policy.act(ids, NEVER, budget, seed=1)
        ended.append(name)
        return result

    async def both(shapes):
        long = asyncio.create_task(turn("long", prompt(20), 150))
        while len(shapes) < 5:
            await asyncio.sleep(0.001)
        short = await turn("short", prompt(20, seed=1), 8)
        return await long, short

    with watched(model) as shapes:
        long, short = asyncio.run(both(shapes))
    assert ended == ["short", "long"]
    widths = [rows for rows, width in shapes if width == 1]
    assert widths[0] == widths[-1] == 1 and widths.count(2) == 7  # in, together, and out
    assert len(shapes) == 150 + 1  # the second prompt's own pass is the only one that was added
    assert_exact(model, prompt(20), long)
    assert_exact(model, prompt(20, seed=1), short)


@pytest.mark.parametrize("length", [15, 16, 17, 47, 48, 49])
def test_after_a_tool_call_only_the_result_and_an_incomplete_block_are_computed(tiny, length):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    ids = prompt(length)
    [turn] = act(policy, [ids], budget=13)
    assert policy.prefilled_tokens == length and policy.reused_tokens == 0
    known = length + 13 - 1  # the token that was sampled last was never computed
    ids = [*ids, *turn.token_ids, *prompt(11, seed=1)]
    [turn] = act(policy, [ids], budget=13)
    kept = known // BLOCK * BLOCK
    assert policy.reused_tokens == kept
    assert policy.prefilled_tokens == length + len(ids) - kept
    assert_exact(model, ids, turn)


def test_a_groups_prompt_is_computed_once(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    ids = prompt(40)
    with watched(model) as shapes:
        turns = act(policy, [ids] * 8)
    assert policy.prefilled_tokens == 40 + 7 * (40 - 32) and policy.reused_tokens == 7 * 32
    assert max(width for _, width in shapes) == 40 and len({t.token_ids for t in turns}) == 8
    for turn in turns:
        assert_exact(model, ids, turn)


def test_a_group_that_outnumbers_the_batch_shares_as_well(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, max_batch=3)
    with watched(model) as shapes:
        act(policy, [prompt(40)] * 8, budget=9)
    assert policy.reused_tokens == 7 * 32 and max(rows for rows, _ in shapes) == 3


def test_long_prompts_are_computed_in_parts_and_hold_nobody_up(tiny, monkeypatch):
    monkeypatch.setattr(batching, "PREFILL", 32)
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    prompts = [prompt(length, seed=length) for length in (20, 300, 3, 90, 31, 12)]
    with watched(model) as shapes:
        turns = act(policy, prompts)
    assert max(rows * width for rows, width in shapes if width > 1) <= 32
    assert (1, 1) in shapes[:3]  # the first samples while the second's prompt is far from done
    for ids, turn in zip(prompts, turns, strict=True):
        assert_exact(model, ids, turn)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sliding_windows(tiny, attention):
    """One layer looks back 8 tokens and the other layer without bound, over the same blocks."""
    config = Qwen2Config(
        vocab_size=280,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=1,
        initializer_range=0.3,
    )
    assert set(config.layer_types) == {"full_attention", "sliding_attention"}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    policy = TransformersPolicy(model, tiny[1])
    prompts = [prompt(length, seed=length) for length in (40, 3, 25)]
    turns = act(policy, prompts, stop=NEVER)
    prompts = [[*p, *t.token_ids, 7, 8] for p, t in zip(prompts, turns, strict=True)]
    for ids, turn in zip(prompts, act(policy, prompts), strict=True):
        assert_exact(model, ids, turn)
    assert policy.reused_tokens > 0


def test_a_model_under_lora(tiny):
    model, tokenizer = tiny
    lora = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy = TransformersPolicy(lora, tokenizer)
    ids = prompt(20)
    [first] = act(policy, [ids], budget=20)
    assert_exact(lora, ids, first)
    ids = [*ids, *first.token_ids, 9]
    [second] = act(policy, [ids], budget=20)
    assert_exact(lora, ids, second)
    assert policy.reused_tokens == 32


@pytest.mark.filterwarnings("error::FutureWarning")
def test_the_cache_is_passed_by_the_name_that_the_model_gives_it(tiny):
    model, tokenizer = tiny
    kind, ids = type(model), prompt(20)
    newer = "cache" if "cache" in inspect.signature(kind.forward).parameters else "past_key_values"

    class Older(kind):
        """A model of transformers 5.17."""

        def forward(self, input_ids, *, past_key_values, **more):
            return kind.forward(self, input_ids, **{newer: past_key_values}, **more)

    class Wrapped(Older):
        def forward(self, *args, **more):
            return super().forward(*args, **more)

    [expected] = act(TransformersPolicy(model, tokenizer), [ids])
    for other in (Older, Wrapped):
        model.__class__ = other
        [turn] = act(TransformersPolicy(model, tokenizer), [ids])
        assert turn.token_ids == expected.token_ids


def scramble(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def test_after_new_weights_nothing_of_the_old_cache_is_served(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    prompts = [prompt(60, seed=seed) for seed in range(3)]
    old = act(policy, prompts)
    assert {turn.weight_version for turn in old} == {0}
    scramble(model)
    asyncio.run(policy.update_weights(5))
    new = act(policy, prompts)
    fresh = act(TransformersPolicy(model, tokenizer, temperature=0), prompts)
    assert policy.reused_tokens == 0
    assert [t.token_ids for t in new] == [t.token_ids for t in fresh]
    assert [t.token_ids for t in new] != [t.token_ids for t in old]
    assert {turn.weight_version for turn in new} == {5} and policy.weight_version == 5


def test_new_weights_amid_a_turn_finish_it_as_a_fresh_policy_would(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    ids = prompt(40)

    def change(call):
        if call == 10:  # ten tokens are sampled
            scramble(model)
            policy.batcher.update_weights(
                1
            )  # from within a step, so that nothing waits for its end

    with watched(model, change):
        [turn] = act(policy, [ids], budget=30)
    assert turn.weight_version == 0
    # The pass that was under way had the old keys and values; all after it has the new.
    written = [*ids, *turn.token_ids[:11]]
    [rest] = act(TransformersPolicy(model, tokenizer, temperature=0), [written], budget=19)
    assert turn.token_ids[11:] == rest.token_ids
    assert everything_is_free(policy)


def test_each_token_has_the_version_and_the_logprob_of_its_own_weights(tiny):
    model, tokenizer = tiny
    models = [copy.deepcopy(model) for _ in range(3)]
    for other in models[1:]:
        scramble(other)
    policy = TransformersPolicy(model, tokenizer)
    prompts = [prompt(20 + seed, seed=seed) for seed in range(4)]

    async def main():
        acts = [asyncio.create_task(policy.act(ids, NEVER, 60, i)) for i, ids in enumerate(prompts)]
        for version in (1, 2):
            while len(shapes) < 15 * version:
                await asyncio.sleep(0.001)
            await policy.update_weights(version, models[version].state_dict())
        return await asyncio.gather(*acts)

    with watched(model) as shapes:
        turns = asyncio.run(main())
    assert any([version for version, _ in turn.weight_runs] == [0, 1, 2] for turn in turns)
    assert all(turn.weight_version == 0 for turn in turns)
    assert_own_logprobs(models.__getitem__, prompts, turns)


def test_weights_that_are_given_are_copied_between_two_steps(tiny):
    """A turn begins with the old weights and ends with the new; the source model stays the same."""
    model, tokenizer = tiny
    other = copy.deepcopy(model)
    scramble(other)
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    ids = prompt(40)

    async def turn_with_change(shapes):
        task = asyncio.create_task(policy.act(ids, NEVER, 200, seed=1))
        while len(shapes) < 10:
            await asyncio.sleep(0.001)
        await policy.update_weights(1, other.state_dict())
        during = len(shapes)
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        return during, await task

    with watched(model) as shapes:
        during, turn = asyncio.run(turn_with_change(shapes))
    assert turn.weight_version == 0 and policy.weight_version == 1 and 10 <= during < 200
    written = [*ids, *turn.token_ids[: during + 1]]
    [rest] = act(TransformersPolicy(other, tokenizer, temperature=0), [written], 200)
    assert turn.token_ids[during + 1 :] == rest.token_ids[: len(turn.token_ids) - during - 1] != ()
    assert everything_is_free(policy)


def test_weights_of_another_model_are_refused_and_change_nothing(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    before = copy.deepcopy(model.state_dict())
    right = {name: tensor + 1 for name, tensor in before.items()}
    name = "model.norm.weight"
    for wrong, word in (
        ({n: t for n, t in right.items() if n != name}, "1 of the model's weights are missing"),
        ({**right, "other.weight": right[name]}, "no weight 'other.weight'"),
        ({**right, name: right[name][:1]}, r"the shape \(1,\), but \(128,\) in the model"),
    ):
        with pytest.raises(ValueError, match=word):
            asyncio.run(policy.update_weights(3, wrong))
        assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
        assert policy.weight_version == 0
    with pytest.raises(ValueError, match="1 of the model's weights are missing"):
        asyncio.run(policy.update_weights(3, ((n, t) for n, t in before.items() if n != name)))
    assert policy.weight_version == 0
    asyncio.run(policy.update_weights(3, iter(right.items())))
    assert torch.equal(model.state_dict()[name], right[name]) and policy.weight_version == 3


def test_the_caches_memory_is_given_back_and_taken_anew(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    [first] = act(policy, [prompt(40)])
    assert policy.batcher.cache.allocated
    policy.clear_cache()
    assert not policy.batcher.cache.allocated
    [second] = act(policy, [prompt(40)])
    assert first.token_ids == second.token_ids and policy.reused_tokens == 0
    assert policy.weight_version == 0 and everything_is_free(policy)


def test_a_full_cache_sets_the_youngest_back_and_changes_no_turn(tiny):
    model, tokenizer = tiny
    prompts = [prompt(15, seed=seed) for seed in range(6)]
    wide = act(TransformersPolicy(model, tokenizer), prompts, budget=60)
    policy = TransformersPolicy(model, tokenizer, cache_tokens=8 * BLOCK)
    narrow = act(policy, prompts, budget=60)
    contexts = sum(map(len, prompts))  # who is set back begins again, with more
    assert policy.prefilled_tokens + policy.reused_tokens > contexts
    assert [t.token_ids for t in narrow] == [t.token_ids for t in wide]
    for ids, turn in zip(prompts, narrow, strict=True):
        assert_exact(model, ids, turn)
    assert policy.batcher.cache.allocated == 9 * BLOCK and everything_is_free(policy)


def test_requests_wait_while_the_cache_is_full(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, cache_tokens=6 * BLOCK)
    prompts = [prompt(40, seed=seed) for seed in range(5)]  # three blocks each
    with watched(model) as shapes:
        turns = act(policy, prompts, budget=5)
    assert max(rows for rows, _ in shapes) == 1
    for ids, turn in zip(prompts, turns, strict=True):
        assert_exact(model, ids, turn)


def test_turns_do_not_hang_on_what_else_happens(tiny):
    """Shared prefixes, a small cache, a small batch and cancellations do not change a turn."""
    model, tokenizer = tiny
    chance = random.Random(0)
    stems = [prompt(48, seed=seed) for seed in range(3)]
    prompts = [
        [*chance.choice(stems)[: chance.randrange(10, 48)], *prompt(chance.randrange(1, 20), seed)]
        for seed in range(40)
    ]
    policy = TransformersPolicy(model, tokenizer, max_batch=6, cache_tokens=16 * BLOCK)

    async def turns():
        async def later(i):
            await asyncio.sleep(chance.random() * 0.1)
            return await policy.act(prompts[i], NEVER, 10 + i, seed=i)

        tasks = [asyncio.create_task(later(i)) for i in range(len(prompts))]
        await asyncio.sleep(0.15)
        for task in tasks[::7]:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    results = asyncio.run(turns())
    assert everything_is_free(policy) and policy.reused_tokens > 0
    for i, (ids, turn) in enumerate(zip(prompts, results, strict=True)):
        if isinstance(turn, asyncio.CancelledError):
            assert i % 7 == 0
            continue
        alone = TransformersPolicy(model, tokenizer, cache_tokens=16 * BLOCK)
        [expected] = act(alone, [ids], budget=10 + i, seeds=[i])
        assert turn.token_ids == expected.token_ids
        assert_exact(model, ids, turn)


def test_a_cancelled_request_leaves_at_once_and_frees_what_it_holds(tiny):
    model, tokenizer = tiny
    model.train()
    policy = TransformersPolicy(model, tokenizer)
    after = []

    async def cancel(shapes):
        task = asyncio.create_task(policy.act(prompt(20), NEVER, 400, seed=1))
        while len(shapes) < 5:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        after.append((len(shapes), model.training))
        await asyncio.sleep(0.05)
        after.append((len(shapes), model.training))

    with watched(model) as shapes:
        asyncio.run(cancel(shapes))
    assert after[0] == after[1] and after[0][0] < 100 and after[0][1]
    assert everything_is_free(policy)


def test_a_request_cancelled_while_it_waits_is_never_computed(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, max_batch=1)

    async def cancel():
        first = asyncio.create_task(policy.act(prompt(20), NEVER, 30, seed=1))
        second = asyncio.create_task(policy.act(prompt(77, seed=2), NEVER, 30, seed=1))
        await asyncio.sleep(0)
        second.cancel()
        return await asyncio.gather(first, second, return_exceptions=True)

    with watched(model) as shapes:
        first, second = asyncio.run(cancel())
    assert len(first.token_ids) == 30 and isinstance(second, asyncio.CancelledError)
    assert max(width for _, width in shapes) == 20


def test_an_error_reaches_all_who_wait_and_the_policy_goes_on(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer, max_batch=2)
    model.train()

    def broken(call):
        if call == 4:
            raise MemoryError("no room")

    async def turns():
        return await asyncio.gather(
            *(policy.act(prompt(20, i), NEVER, 9, i) for i in range(5)), return_exceptions=True
        )

    with watched(model, broken):
        errors = asyncio.run(turns())
    assert [type(error) for error in errors] == [MemoryError] * 5
    assert everything_is_free(policy) and model.training
    model.eval()
    for i, turn in enumerate(act(policy, [prompt(20, i) for i in range(5)])):
        assert_exact(model, prompt(20, i), turn)


def test_who_was_done_before_the_error_of_a_step_is_done(tiny):
    """A step ends one turn with its only token, and then fails at the next token of other turns."""
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)

    async def drive(shapes):
        long = asyncio.create_task(policy.act(prompt(20), NEVER, 400, seed=1))
        gone = asyncio.create_task(policy.act(prompt(21), NEVER, 400, seed=2))
        while len(shapes) < 5:
            await asyncio.sleep(0.001)
        gone.cancel()
        short = asyncio.create_task(policy.act(prompt(30, 3), NEVER, 1, seed=3))
        return await asyncio.wait_for(
            asyncio.gather(long, gone, short, return_exceptions=True), timeout=30
        )

    def broken(call):
        if shapes and shapes[-1][1] > 1 and shapes[-1][0] == 1 and call > 5:
            raise MemoryError("no room")  # the pass after the new prompt's

    with watched(model, broken) as shapes:
        long, gone, short = asyncio.run(drive(shapes))
    assert isinstance(long, MemoryError) and isinstance(gone, asyncio.CancelledError)
    assert len(short.token_ids) == 1 and everything_is_free(policy)


def test_an_update_that_is_given_up_or_refused_disturbs_no_turn(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    async def drive(shapes):
        turn = asyncio.create_task(policy.act(prompt(20), NEVER, 60, seed=1))
        while len(shapes) < 5:
            await asyncio.sleep(0.001)
        update = asyncio.create_task(policy.update_weights(7, old))
        await asyncio.sleep(0)
        update.cancel()
        with pytest.raises(asyncio.CancelledError):
            await update
        with pytest.raises(ValueError, match="missing"):
            await policy.update_weights(9, {})
        return await turn

    def broken(call):
        if fails:
            raise MemoryError("no room")

    fails = []
    with watched(model, broken) as shapes:
        assert len(asyncio.run(drive(shapes)).token_ids) > 5
        assert policy.weight_version in (0, 7)
        before = policy.weight_version
        fails.append(1)
        with pytest.raises(MemoryError):
            act(policy, [prompt(20)])
    assert policy.weight_version == before  # what was refused is not taken up by a failure
    [turn] = act(policy, [prompt(20)])
    assert turn.weight_version == before and everything_is_free(policy)


def test_updates_at_any_moment_are_answered(tiny):
    """Also at the moment in which the last turn ends and the thread stops serving."""
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)

    async def drive():
        for version in range(1, 60):
            turn = asyncio.create_task(policy.act(prompt(4), NEVER, 1 + version % 2, version))
            await asyncio.sleep(0.0005 * (version % 9))
            await asyncio.wait_for(policy.update_weights(version), timeout=30)
            assert policy.weight_version == version
            await turn

    asyncio.run(drive())


def test_long_rows_are_not_padded_for_many_short_ones(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(batching, "DECODE", 300)
    prompts = [prompt(10, seed=i) for i in range(6)] + [prompt(140, seed=9)]
    policy = TransformersPolicy(model, tokenizer)
    with watched(model) as shapes:
        turns = act(policy, prompts, budget=12)
    assert (
        max(rows for rows, width in shapes if width == 1) <= 6
    )  # never the long one with all others
    for ids, turn in zip(prompts, turns, strict=True):
        assert_exact(model, ids, turn)
    wide = act(TransformersPolicy(model, tokenizer), prompts, budget=12)
    assert [t.token_ids for t in turns] == [t.token_ids for t in wide]


def test_the_model_is_as_it_was_when_the_last_turn_is_handed_over(tiny):
    model, tokenizer = tiny
    model.train()
    model.model.layers[1].eval()  # as a trainer that freezes a part may leave it
    flags = [module.training for module in model.modules()]
    config = model.config.to_dict(), model.config._attn_implementation
    generation = model.generation_config.to_dict()
    policy = TransformersPolicy(model, tokenizer)
    seen = []

    async def one(i):
        await policy.act(prompt(20, i), NEVER, 5, i)
        seen.append([module.training for module in model.modules()])

    async def all_turns():
        await asyncio.gather(*(one(i) for i in range(3)))

    with watched(model, lambda call: seen.append(torch.is_grad_enabled() or model.training)):
        asyncio.run(all_turns())
    assert seen[-1] == flags and set(seen[:5]) == {False}
    assert torch.is_grad_enabled()
    assert (model.config.to_dict(), model.config._attn_implementation) == config
    assert model.generation_config.to_dict() == generation
    loss = model(torch.tensor([prompt(20)]), labels=torch.tensor([prompt(20)])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_training_between_rollouts(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = prompt(40)
    for step in range(3):
        asyncio.run(policy.update_weights(step))
        turns = act(policy, [ids] * 4)
        model.eval()
        for turn in turns:
            assert_exact(model, ids, turn)
            assert turn.weight_version == step
        model.train()
        model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_one_policy_serves_several_event_loops_at_once(tiny):
    model, tokenizer = tiny
    policy = TransformersPolicy(model, tokenizer)
    results = {}

    def loop(i):
        results[i] = act(policy, [prompt(20, i)], seeds=[i])[0]

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i in range(4):
        assert_exact(model, prompt(20, i), results[i])
