"""Packed rows: the same log-probs, losses and gradients; unpackable models; spared passes."""

from __future__ import annotations

import functools
import logging
import sys

import pytest
import torch
from helpers.packed_trainers import (
    LOSSES,
    OTHERS,
    ROWS,
    SIZE,
    TOKENIZER,
    batch_of,
    episodes,
    logps_of,
    make_model,
    make_trainer,
    moved,
    outcome,
)
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PromptTuningConfig, TaskType
from transformers import (
    BloomConfig,
    FalconH1Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    Qwen2Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from trl import GRPOTrainer

from agents.base.critic import Critic
from retool_env.integrations.passes import PackedGRPOTrainer
from retool_env.integrations.trl import EngineGRPOTrainer
from retool_env.training.packing import fit, pack, score

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    make_model(LlamaConfig(**SIZE)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def trainer_of(checkpoint, tmp_path):
    return functools.partial(make_trainer, checkpoint, tmp_path)


def assert_same(packed, padded):
    """Both trainers have the same outcome on their batches, with old log-probs near the model's."""
    ours, theirs = batch_of(packed), batch_of(padded)
    with torch.no_grad():
        logps, _ = logps_of(padded, theirs)
    noise = torch.randn(logps.shape, generator=torch.Generator().manual_seed(3))
    old = logps + 0.3 * noise
    loss, gradient, entropy = outcome(packed, ours, old)
    other_loss, other, other_entropy = outcome(padded, theirs, old)
    assert (packed.packs, packed.shares_prompts, padded.packs) == (True, True, False)
    assert loss == pytest.approx(other_loss, rel=1e-4, abs=1e-6)
    assert entropy == pytest.approx(other_entropy, rel=1e-5)
    assert other.norm() > 1e-4 and (gradient - other).norm() / other.norm() < 1e-4


@pytest.mark.some(10)
@pytest.mark.parametrize("settings", [*LOSSES, *OTHERS], ids=str)
def test_loss_gradient_and_entropy_are_those_of_padded_rows(settings, trainer_of):
    epsilon = {"epsilon_high": 5.0} if settings.get("loss_type") == "cispo" else {}
    packed, padded = (moved(trainer_of(each, **settings, **epsilon)) for each in (True, False))
    if "mask_truncated_completions" in settings:
        for trainer in (packed, padded):  # the ends of half of the rows
            trainer.eos_token_ids = [ids[-1] for ids in episodes()["completion_ids"][::2]]
    assert_same(packed, padded)


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_adapters_get_the_same_gradient(beta, trainer_of):
    adapters = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.0)
    assert_same(*(moved(trainer_of(each, peft=adapters, beta=beta)) for each in (True, False)))


MODELS = {
    "llama": LlamaConfig(**SIZE),
    "qwen2": Qwen2Config(**SIZE),
    "sliding window": MistralConfig(**SIZE, sliding_window=6),
    "wide sliding window": MistralConfig(**SIZE, sliding_window=100),
    "some layers sliding": Gemma3TextConfig(
        **SIZE,
        head_dim=8,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "learned positions": GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=4, n_positions=128
    ),
}
"""The last has dropout by default, which the trial of the model must not see."""


def alone(model, ids):
    """Log-probs and entropies of a row's tokens but the first, in a batch of one row."""
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    entropies = -(logits.exp() * logits).sum(-1)
    return logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0], entropies


@pytest.mark.parametrize("attention", ["sdpa", "sdpa, shared prompts", "eager", "flash"])
@pytest.mark.parametrize("name", MODELS)
def test_an_episode_has_the_log_probs_that_it_has_alone(name, attention, trainer_of, monkeypatch):
    attention, _, sharing = attention.partition(", ")
    # Eager attention takes another mask, and so can't share.
    shared = bool(sharing) or attention == "eager"
    trainer = trainer_of(shared=shared, config=MODELS[name], disable_dropout=False)
    if attention == "flash":  # it needs a GPU; what it is given, another takes too
        module = sys.modules[PackedGRPOTrainer.__module__]
        monkeypatch.setattr(module, "is_flash_attention_requested", lambda config: True)
    else:
        trainer.model.set_attn_implementation(attention)
    batch = batch_of(trainer)
    trainer.model.eval()
    shapes = []
    trainer.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    with torch.no_grad():
        logps, entropies = logps_of(trainer, batch)
    assert trainer.packs and trainer.shares_prompts == (bool(sharing) and "sliding" not in name)
    tokens = [
        len(p) + len(c) - 1
        for p, c in zip(*map(episodes().get, ("prompt_ids", "completion_ids")), strict=True)
    ]
    rows, width = shapes[-1]
    assert (rows == 1 and width == sum(tokens)) if attention == "flash" else width == max(tokens)
    for row in range(ROWS):
        prompt, completion = (episodes()[key][row] for key in ("prompt_ids", "completion_ids"))
        with torch.no_grad():
            expected, entropy = alone(trainer.model, [*prompt, *completion])
        size = len(completion)
        torch.testing.assert_close(logps[row, :size], expected[-size:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(entropies[row, :size], entropy[-size:], rtol=1e-4, atol=1e-4)
        assert not logps[row, size:].any()


@pytest.mark.parametrize("attention", ["sdpa", "sdpa, shared prompts", "eager"])
def test_a_changed_episode_moves_no_log_prob_and_no_value_of_its_neighbours(attention, trainer_of):
    attention, _, shared = attention.partition(", ")
    trainer = trainer_of(shared=bool(shared), config=MODELS["qwen2"])
    trainer.model.set_attn_implementation(attention)
    model, critic = trainer.model.eval(), Critic(make_model(MODELS["qwen2"]))
    torch.nn.init.ones_(critic.head.weight)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(TOKENIZER) - 8, (3, 20), generator=generator)
    ids[:, :8] = torch.arange(8) + len(TOKENIZER) - 8  # one prompt, whose tokens are rare
    scored = behind(torch.ones_like(ids), 8)
    changed = ids.clone()
    changed[1, 8:] = changed[1, 8:].flip(0)
    with torch.no_grad():
        results = []
        for batch in (ids, changed):
            packed = pack(batch, torch.ones_like(ids), scored, one_row=True, shared=bool(shared))
            assert len(packed.input_ids) == 1
            assert int((packed.input_ids == ids[0, 1]).sum()) == (1 if shared else 3)
            logps = packed.unpacked(score(model, packed).log_probs)[:, 8:]
            results.append((logps, critic(packed)[:, 8:]))
    for one, other in zip(*results, strict=True):
        assert not torch.equal(one[1], other[1])
        for row in (0, 2):
            torch.testing.assert_close(one[row], other[row], rtol=0, atol=1e-6)


def test_attention_for_which_transformers_makes_no_mask_is_noticed_until_its_mask_is_registered(
    trainer_of,
):
    """transformers gives the attention of an unknown name no mask, and says nothing."""
    ALL_ATTENTION_FUNCTIONS.register("maskless", sdpa_attention_forward)
    for masked in (False, True):
        if masked:
            AttentionMaskInterface.register("maskless", sdpa_mask)
        trainer = trainer_of(config=MODELS["qwen2"])
        trainer.model.set_attn_implementation("maskless")
        assert trainer.can_pack(trainer.model) == masked


UNPACKABLE = {
    "no position ids": BloomConfig(
        vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2
    ),
    "position ids that the mask does not see": OPTConfig(
        vocab_size=len(TOKENIZER),
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.2,
        word_embed_proj_dim=32,
        dropout=0.0,
    ),
    "a state": MambaConfig(vocab_size=len(TOKENIZER), hidden_size=32, num_hidden_layers=2),
    "a state beside attention": FalconH1Config(
        **SIZE, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
}


@pytest.mark.parametrize("name", UNPACKABLE)
def test_a_model_that_lets_episodes_see_each_other_gets_padded_rows_and_that_is_said(
    name, trainer_of, caplog
):
    packing, padded = (trainer_of(each, config=UNPACKABLE[name]) for each in (True, False))
    # Not all of them draw all of their weights.
    padded.model.load_state_dict(packing.model.state_dict())
    with caplog.at_level(logging.WARNING, "retool_env"):
        found = [outcome(trainer, batch_of(trainer)) for trainer in (packing, padded)]
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    [said] = [r.getMessage() for r in caplog.records if "see each other" in r.getMessage()]
    assert type(packing.model).__name__ in said


def test_virtual_tokens_of_an_adapter_can_not_be_packed(trainer_of):
    virtual = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    trainer = trainer_of(peft=virtual)
    assert not trainer.can_pack(trainer.model)


def test_the_trial_leaves_the_model_and_the_random_state_as_they_were(trainer_of):
    trainer = trainer_of(config=MODELS["learned positions"], disable_dropout=False)
    state = torch.get_rng_state()
    assert trainer.can_pack(trainer.model)
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.training and all(p.grad is None for p in trainer.model.parameters())


# Passes.


@pytest.fixture
def passes(trainer_of):
    """How many forward passes a generation batch takes before training, and what comes of it."""

    def count(kind, beta=0.0, **settings):
        trainer = trainer_of(kind=kind, beta=beta, **settings)
        trainer.model.eval()  # without the trial of the model
        if kind is EngineGRPOTrainer:
            trainer.can_pack(trainer.model)
        counted = {"policy": 0, "reference": 0}
        models = {"policy": trainer.model, "reference": trainer.ref_model}
        for name, model in models.items():
            if model is not None:

                def add(*_, name=name):
                    counted[name] += 1

                model.register_forward_hook(add)
        trainer.model.train()
        return counted, batch_of(trainer), trainer

    return count


FOUR = {"per_device_train_batch_size": ROWS // 4, "steps_per_generation": 4}


def test_the_old_log_probs_are_the_engines_and_not_computed(passes):
    assert passes(GRPOTrainer, **FOUR)[0]["policy"] == 4
    counted, batch, _ = passes(EngineGRPOTrainer, **FOUR)
    assert counted["policy"] == 0
    for row, logprobs in zip(batch["old_per_token_logps"], episodes()["logprobs"], strict=True):
        torch.testing.assert_close(row[: len(logprobs)], torch.tensor(logprobs))
    assert passes(EngineGRPOTrainer)[0]["policy"] == 0
    assert passes(EngineGRPOTrainer, num_iterations=2)[0]["policy"] == 0


def test_the_references_log_probs_are_computed_once(passes):
    for kind in (GRPOTrainer, EngineGRPOTrainer):
        assert passes(kind, beta=0.1, **FOUR)[0]["reference"] == 4
    _, batch, trainer = passes(EngineGRPOTrainer, beta=0.1, **FOUR)
    with torch.no_grad():
        expected, _ = logps_of(trainer, batch)  # nothing was trained yet
    torch.testing.assert_close(batch["ref_per_token_logps"], expected)
    assert expected.any()


def test_an_adapters_reference_is_computed_where_the_old_ones_are_not(passes):
    adapters = LoraConfig(r=4, target_modules="all-linear")
    counted, batch, trainer = passes(EngineGRPOTrainer, beta=0.1, peft=adapters, **FOUR)
    assert counted["policy"] == 4
    with torch.no_grad():
        expected, _ = logps_of(trainer, batch)  # an adapter changes nothing at first
    torch.testing.assert_close(batch["ref_per_token_logps"], expected)
    assert expected.any()


def test_a_step_of_four_updates_trains_on_the_same_as_padded(trainer_of):
    def after(packed):
        plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1, "max_steps": 4}
        trainer = trainer_of(packed, **FOUR, **plain, beta=0.1, lr_scheduler_type="constant")
        trainer.train()
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    start = torch.cat([p.detach().flatten() for p in trainer_of().model.parameters()])
    one, other = after(True) - start, after(False) - start
    assert other.norm() > 0 and (one - other).norm() / other.norm() < 1e-3


# Layout.


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40))
def test_rows_hold_every_episode_once_and_no_two_rows_fit_in_one(lengths):
    width, none = max(lengths), [0] * len(lengths)
    placed = fit(none, lengths, range(len(lengths)), width)
    rows = [[number for family in row for number in family] for row in placed]
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    full = sorted(sum(lengths[number] for number in row) for row in rows)
    assert full[-1] <= width
    assert len(full) < 2 or full[0] + full[1] > width


def test_an_episode_goes_where_its_prompt_is_before_it_goes_where_there_is_room():
    assert fit([4, 4, 4], [26, 25, 5], ["a", "b", "b"], 40) == [[[0]], [[1, 2]]]
    assert fit([4, 4, 4], [26, 25, 12], ["a", "b", "b"], 40) == [[[0]], [[1]], [[2]]]


SIZES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=12
)  # which prompt, how long a completion


@given(SIZES, st.sampled_from(["rows", "one row", "apart"]), st.booleans(), st.data())
def test_each_prediction_goes_back_to_the_token_that_it_is_of(sizes, kind, shared, data):
    prompts = [
        list(range(900 * (number + 1), 900 * (number + 1) + 1 + 3 * number)) for number in range(3)
    ]
    wide = 7, max(1, *(size for _, size in sizes), 1)  # TRL's completions are never empty
    ids = torch.zeros(len(sizes), sum(wide), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (number, size) in enumerate(sizes):
        prompt = prompts[number]
        real = slice(wide[0] - len(prompt), wide[0] + size)
        mask[row, real] = 1
        ids[row, real] = torch.tensor([*prompt, *range(30 * row + 100, 30 * row + 100 + size)])
    scored = behind(mask, wide[0])
    for row in scored.unbind():  # not what the environment wrote
        for at in data.draw(st.sets(st.sampled_from(range(wide[0], sum(wide))))):
            row[at] = 0
    packed = pack(ids, mask, scored, kind == "one row", shared, kind == "apart")
    assert torch.equal(packed.unpacked(packed.labels), ids * scored)
    assert (packed.labels != -100).sum() == scored.sum()
    rows, width = packed.input_ids.shape
    assert rows == 1 if kind == "one row" else width <= ids.shape[1]
    assert (rows == len(sizes)) or kind != "apart"
    # A place that predicts sees its episode up to there, and no other episode of the row.
    seen = visible(packed)
    place = torch.full((len(sizes) * sum(wide),), -1).index_put((packed.target,), packed.source)
    for row, (number, _) in enumerate(sizes):
        episode = ids[row][mask[row] == 1].tolist()
        for i in (scored[row, wide[0] :] == 1).nonzero().flatten().tolist():
            at = divmod(place.view(len(sizes), -1)[row, wide[0] + i].item(), width)
            length = len(prompts[number]) + i
            assert packed.input_ids[at[0]][seen[at]].tolist() == episode[:length]
            if packed.position_ids is not None:
                assert packed.position_ids[at[0]][seen[at]].tolist() == list(range(length))
            else:
                assert at[1] == length - 1  # where it is by default


def behind(mask, columns):
    """Real tokens after so many columns."""
    return mask * (torch.arange(mask.shape[1]) >= columns)


def visible(packed):
    """Which places see which, as transformers reads it."""
    if packed.mask is not None:
        return packed.mask[:, 0]
    if packed.position_ids is None:
        rows, width = packed.input_ids.shape
        return torch.ones(rows, width, width, dtype=bool).tril()
    starts = (packed.position_ids.diff(dim=1, prepend=packed.position_ids[:, :1] - 1) != 1).cumsum(
        1
    )
    return (starts[:, None] == starts[:, :, None]).tril()


def test_episodes_of_a_prompt_share_it_where_they_fit_into_one_row():
    prompt, sizes = list(range(20)), [30, 9, 8, 7, 3]
    ids = torch.zeros(5, 50, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, size in enumerate(sizes):
        mask[row, : 20 + size] = 1
        ids[row, : 20 + size] = torch.tensor(
            [*prompt, *range(100 * row + 100, 100 * row + 100 + size)]
        )
    packed = pack(ids, mask, behind(mask, 20), shared=True)
    assert packed.input_ids.shape == (2, 49)  # 19 of the prompt and 30 own; 19 and 9 + 8 + 7 + 3
    assert (packed.input_ids == 5).sum() == 2
    assert pack(ids, mask, behind(mask, 20)).input_ids.shape == (4, 49)


@pytest.mark.parametrize("shared", [False, True])
def test_of_equal_lengths_each_is_a_row_of_its_own_and_needs_no_mask(shared):
    ids = torch.arange(40).view(4, 10)
    ids[:, :4] = ids[0, :4]
    mask = torch.ones_like(ids)
    packed = pack(ids, mask, behind(mask, 4), shared=shared)
    assert packed.mask is None
    assert torch.equal(packed.input_ids, ids[:, :-1])
    assert packed.position_ids is None  # nor has transformers to make one of them
