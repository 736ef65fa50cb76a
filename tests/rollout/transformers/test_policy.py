"""The policy on transformers, with a small model and a tokenizer whose tags end inside tokens."""

from __future__ import annotations

import asyncio
import copy
import gc
import time
import weakref

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    MambaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from agents.base.model import load_model
from retool_env.episode import Episode, Generation, decode
from retool_env.errors import NotFinite
from retool_env.problems import Problem
from retool_env.rollout import RolloutEngine, ScriptedPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy, load_policy
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import StopReason, check_transcript

STOP = ("</code>", "</answer>")
PROBLEM = Problem(id="p", question="6 * 7?", answer="42")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained so that `>` merges with its next characters: tags end in tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    text = "<code>\nprint(1)\n</code>\n\n<answer>42</answer>\n\nso </code>. </answer>. " * 40
    bpe.train_from_iterator(
        [text],
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|end|>", "<|pad|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=6,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|pad|>")


@pytest.fixture(scope="module")
def model(tokenizer) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    # Tiny random weights give a flat distribution; larger weights make it depend on the context.
    built = Qwen2ForCausalLM(config)
    for parameter in built.parameters():
        parameter.data.mul_(4.0)
    return built


def act(policy, prompts, budget=24, seeds=None):
    async def all_turns():
        turns = [
            policy.act(ids, STOP, budget, seed)
            for ids, seed in zip(prompts, seeds or range(len(prompts)), strict=True)
        ]
        return await asyncio.gather(*turns)

    return asyncio.run(all_turns())


def prompts_of(tokenizer, count=9):
    return [tokenizer.encode("problem " * (i % 4 + 1) + str(i)) for i in range(count)]


def test_the_training_tokenizer_does_end_tags_inside_tokens(tokenizer):
    ids = tokenizer.encode("<code>\nprint(1)\n</code>\n\n")
    texts = [decode(tokenizer, [i]) for i in ids]
    assert any(">" in text and not text.endswith(">") for text in texts), texts


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_distribution_sampled_from(model, tokenizer, temperature):
    policy = TransformersPolicy(model, tokenizer, temperature=temperature)
    prompts = prompts_of(tokenizer)
    for ids, turn in zip(prompts, act(policy, prompts), strict=True):
        sequence = torch.tensor([ids + list(turn.token_ids)])
        with torch.no_grad():
            logits = model(sequence).logits[0, len(ids) - 1 : -1].float() / temperature
        expected = torch.log_softmax(logits, -1).gather(-1, sequence[0, len(ids) :, None])[:, 0]
        torch.testing.assert_close(torch.tensor(turn.logprobs), expected, atol=2e-4, rtol=0)


def test_top_p_never_draws_outside_the_nucleus_and_renormalises(model, tokenizer):
    policy = TransformersPolicy(model, tokenizer, top_p=0.5)
    prompts = prompts_of(tokenizer, 6)
    for ids, turn in zip(prompts, act(policy, prompts), strict=True):
        sequence = torch.tensor([ids + list(turn.token_ids)])
        with torch.no_grad():
            probs = model(sequence).logits[0, len(ids) - 1 : -1].float().softmax(-1)
        for row, token, logprob in zip(probs, turn.token_ids, turn.logprobs, strict=True):
            ordered, order = row.sort(descending=True)
            size = int((ordered.cumsum(-1) - ordered < 0.5).sum())
            nucleus = order[:size].tolist()
            assert token in nucleus
            assert logprob == pytest.approx(
                (row[token] / ordered[:size].sum()).log().item(), abs=1e-3
            )


def test_sampling_follows_the_distribution(model, tokenizer):
    policy = TransformersPolicy(model, tokenizer, max_batch=512)
    ids = tokenizer.encode("problem")
    draws = [turn.token_ids[0] for turn in act(policy, [ids] * 2000, budget=1)]
    with torch.no_grad():
        probs = model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor(draws), minlength=len(probs)) / len(draws)
    assert (counts - probs).abs().sum() / 2 < 0.15  # total variation; 330 outcomes, 2,000 draws
    top = probs.argmax()
    assert abs(counts[top] - probs[top]) < 0.05


def test_a_seed_gives_the_same_turn_whatever_shares_its_batch(model, tokenizer):
    policy = TransformersPolicy(model, tokenizer)
    prompts = prompts_of(tokenizer)
    together = act(policy, prompts)
    alone = [act(policy, [ids], seeds=[seed])[0] for seed, ids in enumerate(prompts)]
    assert [t.token_ids for t in together] == [t.token_ids for t in alone]
    other = act(policy, prompts, seeds=range(100, 100 + len(prompts)))
    assert [t.token_ids for t in other] != [t.token_ids for t in together]


def test_greedy_equals_transformers_own_generate(model, tokenizer):
    policy = TransformersPolicy(model, tokenizer, temperature=0)
    ids = tokenizer.encode("problem 7")
    [turn] = act(policy, [ids], budget=20)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[
        0, len(ids) :
    ]
    assert list(turn.token_ids) == expected.tolist()[: len(turn.token_ids)]
    assert turn.logprobs == (0.0,) * len(turn.token_ids)


class Biased(Qwen2ForCausalLM):
    """A model that writes a given sequence of ids after any context."""

    script: list[int]
    start: int

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        at = kwargs["attention_mask"].sum(-1) - self.start
        output.logits.fill_(-1e4)
        for row, position in enumerate(at.tolist()):
            output.logits[row, -1, self.script[position]] = 1e4
        return output


def test_sampling_stops_at_the_token_that_completes_a_tag_and_keeps_it_whole(model, tokenizer):
    text = "<code>\nprint(1)\n</code>\n\n<answer>42</answer>"
    biased = Biased(model.config)
    ids = tokenizer.encode("x")
    biased.script, biased.start = tokenizer.encode(text), len(ids)
    [turn] = act(TransformersPolicy(biased, tokenizer), [ids], budget=60)
    assert turn.stop_reason == "tag"
    written = decode(tokenizer, turn.token_ids)
    assert "</code>" in written and "<answer>" not in written
    assert "</code>" not in decode(tokenizer, turn.token_ids[:-1])
    assert written != "<code>\nprint(1)\n</code>"  # the tag's token brought a newline along

    episode = Episode(PROBLEM, Rules(max_tokens=100), tokenizer)
    need = episode.act_ids(turn)
    assert need is not None and need.program == "print(1)"
    span = episode.transcript.spans[-1]
    assert (
        span.token_ids == turn.token_ids
        and span.surplus == len(written) - written.index("</code>") - 7
    )


def test_another_end_of_sequence_than_the_tokenizers_ends_a_turn_too(model, tokenizer):
    biased = Biased(model.config)
    other = tokenizer.pad_token_id
    biased.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    biased.script, biased.start = [other], len(tokenizer.encode("x"))
    policy = TransformersPolicy(biased, tokenizer)
    [turn] = act(policy, [tokenizer.encode("x")], budget=9)
    assert turn.stop_reason == "eos"
    episode = Episode(PROBLEM, Rules(max_tokens=100), tokenizer)
    episode.act_ids(turn)
    assert episode.transcript.stop_reason is StopReason.STOPPED
    assert episode.transcript.response_text == "" and episode.transcript.completion_ids == [other]


def test_a_printed_special_token_is_spelled_out(tokenizer):
    episode = Episode(PROBLEM, Rules(max_tokens=200), tokenizer)
    ids = tuple(tokenizer.encode("<code>print(1)</code>"))
    episode.act_ids(Generation(ids, (0.0,) * len(ids), "tag"))
    episode.executed(Execution(Outcome.OK, "<|end|> <|pad|>\n"))
    span = episode.transcript.spans[-1]
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(span.token_ids)
    assert decode(tokenizer, span.token_ids) == span.text


def test_length_and_end_of_sequence(model, tokenizer):
    biased = Biased(model.config)
    ids = tokenizer.encode("x")
    biased.script, biased.start = [*tokenizer.encode("hello"), tokenizer.eos_token_id], len(ids)
    policy = TransformersPolicy(biased, tokenizer)
    [turn] = act(policy, [ids], budget=60)
    assert turn.stop_reason == "eos" and turn.token_ids[-1] == tokenizer.eos_token_id
    [turn] = act(policy, [ids], budget=2)
    assert turn.stop_reason == "length" and len(turn.token_ids) == 2


def test_more_requests_than_a_batch_are_all_served(model, tokenizer):
    policy = TransformersPolicy(model, tokenizer, max_batch=4)
    prompts = prompts_of(tokenizer, 11)
    wide = act(TransformersPolicy(model, tokenizer), prompts)
    assert [t.token_ids for t in act(policy, prompts)] == [t.token_ids for t in wide]


def test_a_policys_memory_goes_with_it(model, tokenizer):
    """The memory is freed at once, without the garbage collector."""
    gc.disable()
    try:
        policy = TransformersPolicy(copy.deepcopy(model), tokenizer)
        act(policy, prompts_of(tokenizer, 3))
        held = [weakref.ref(each) for each in (policy.model, policy.batcher.cache)]
        del policy
        until = time.monotonic() + 10  # its thread may be about to end
        while any(ref() is not None for ref in held) and time.monotonic() < until:
            time.sleep(0.01)
        assert [ref() for ref in held] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_batch": 0}, {"cache_tokens": 15}],
)
def test_bad_settings_are_refused(model, tokenizer, settings):
    with pytest.raises(ValueError, match="must"):
        TransformersPolicy(model, tokenizer, **settings)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_weights_that_are_not_finite_or_overflow_end_the_episodes(
    model, tokenizer, value, temperature
):
    broken = copy.deepcopy(model)
    broken.model.norm.weight.data[:] = value
    engine = RolloutEngine(
        TransformersPolicy(broken, tokenizer, temperature),
        Rules(max_tokens=60, prompt_template="{query}\n"),
        OneLineSandbox(),
    )
    with pytest.raises(NotFinite, match="log-probs are NaN or infinite"):
        list(engine.run([PROBLEM]))


def test_a_checkpoint_whose_weights_are_not_finite_is_not_loaded(model, tokenizer, tmp_path):
    broken = copy.deepcopy(model)
    broken.model.norm.weight.data[3] = torch.nan
    broken.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(NotFinite, match=r"weight model\.norm\.weight holds NaN"):
        load_policy(str(tmp_path))
    with pytest.raises(NotFinite, match=r"weight model\.norm\.weight holds NaN"):
        load_model(str(tmp_path), "float32")


def test_what_does_not_fit_is_refused(model, tokenizer):
    with pytest.raises(ValueError, match="context"):
        act(TransformersPolicy(model, tokenizer), [[5] * 250], budget=10)
    with pytest.raises(ValueError, match="cache_tokens"):
        act(TransformersPolicy(model, tokenizer, cache_tokens=64), [[5] * 60], budget=5)
    with pytest.raises(ValueError, match="0 tokens"):
        act(TransformersPolicy(model, tokenizer), [[]], budget=5)


@pytest.mark.parametrize(
    ("config", "state"),
    [
        (MambaConfig(vocab_size=300, hidden_size=8, num_hidden_layers=1), "mamba"),
        (
            Lfm2Config(
                vocab_size=300,
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                layer_types=["conv", "full_attention"],
            ),
            "conv",
        ),
    ],
)
def test_a_model_with_another_state_than_keys_and_values_is_refused(tokenizer, config, state):
    with pytest.raises(ValueError, match=state):
        TransformersPolicy(AutoModelForCausalLM.from_config(config), tokenizer)


class OneLineSandbox:
    """Gives the same result for every program."""

    async def run_async(self, code, limits=None, **_):
        return Execution(Outcome.OK, "42\n")


def test_whole_episodes_keep_every_id_the_model_saw(model, tokenizer):
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    class Watched(TransformersPolicy):
        async def act(self, token_ids, stop, budget, seed):
            turn = await super().act(token_ids, stop, budget, seed)
            seen.append((tuple(token_ids), turn.token_ids))
            return turn

    rules = Rules(max_tokens=60, prompt_template="{query}\n")
    problems = [Problem(id=str(i), question=f"problem {i}", answer="42") for i in range(20)]
    engine = RolloutEngine(Watched(model, tokenizer), rules, OneLineSandbox())
    transcripts = [group[0] for group in engine.run(problems, 1, seed=3)]
    for transcript in transcripts:
        check_transcript(transcript)
        whole = tuple(transcript.prompt_ids + transcript.completion_ids)
        at = 0
        for span in transcript.spans:
            if (
                span.author == "model"
            ):  # the ids it was shown are those before it, and it wrote its own
                assert (whole[:at], span.token_ids) in seen
            at += len(span.token_ids)
        assert at == len(whole)


def test_a_tag_inside_a_token_through_a_whole_episode(tokenizer):
    turns = iter(["<code>\nprint(1)\n</code>\n\nmore", "<answer>42</answer>\n\n"])
    policy = ScriptedPolicy(lambda text: next(turns), tokenizer)
    engine = RolloutEngine(policy, Rules(max_tokens=300), OneLineSandbox())
    [[transcript]] = engine.run([PROBLEM])
    assert transcript.stop_reason is StopReason.ANSWERED and transcript.reward == 1.0
    assert [s.surplus > 0 for s in transcript.spans if s.author == "model"] == [True, True]
    assert "more" not in transcript.text
    for span in transcript.spans:
        assert decode(tokenizer, span.token_ids) == span.text
