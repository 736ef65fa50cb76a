"""Are the records of episodes what the policy was given and gave, id by id; and what does the policy read a second time?

Two kinds of episodes are looked at: those of the overlap's chains, whose turns end where the benchmark says (`Recorder` around
the loop's policy), and naturally sampled ones (`natural`), whose turns end where the model happens to write a tag or its end,
with several rollouts of each prompt.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from agents.models.tiny import make_model
from benchmarks.parts.chains import Asked, add_bias
from retool_env.episode import Generation
from retool_env.execution import Execution, Limits, Outcome
from retool_env.problem import Problem
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rollout.weights import Weights
from retool_env.rules import Rules
from retool_env.transcript import Transcript

Context = tuple[int, ...]
Written = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids and log-probs."""


class Recorder(Policy):
    """A policy that notes what it was given and what it gave."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.tokenizer = policy.tokenizer
        self.context_length = policy.context_length
        self.weight_version = policy.weight_version
        self.turns: dict[Context, Counter[Written]] = {}
        """What was given, and what came back: several times, where rollouts share a prompt."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Passed on, and noted."""
        given = tuple(token_ids)  # before: whoever gave it may change it meanwhile
        generation = await self.policy.act(token_ids, stop, budget, seed)
        written = generation.token_ids, generation.logprobs
        self.turns.setdefault(given, Counter())[written] += 1
        return generation

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Passed on."""
        await self.policy.update_weights(version, weights)
        self.weight_version = version

    def differing(self, transcripts: Sequence[Transcript]) -> int:
        """Number of transcripts that are not, id by id and log-prob by log-prob, what went in and out.

        Each turn that was sampled is one transcript's alone.
        """
        left = {given: Counter(written) for given, written in self.turns.items()}
        return sum(not take_turns(transcript, left) for transcript in transcripts)


def take_turns(transcript: Transcript, left: dict[Context, Counter[Written]]) -> bool:
    """Take a transcript's turns out of those that were sampled; false if one is not among them."""
    before: Context = ()
    for span in transcript.spans:
        if span.author == "model":
            written = span.token_ids or (), span.logprobs or ()
            if not left.get(before, Counter())[written]:
                return False
            left[before][written] -= 1
        before += span.token_ids or ()
    return True


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of token ids that two sequences begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def must_read(asked: Sequence[Asked], block: int) -> dict[str, int]:
    """Tokens that a model has to read for the turns of chains.

    Args:
        asked: Every turn, as a loop asked for it.
        block: Tokens in a block of the cache.

    Returns:
        `once`: if it reads none twice, which are each prompt's but for what it begins with as another does, and then all that
        was put behind its own words (call, result), with the last token of these, since nothing had followed it when it was
        sampled. `incomplete_blocks`: what a cache that keeps complete blocks alone reads again, at most `block - 1` a turn.
        `without_cache`: what is read again if each turn reads its whole context.
    """
    known: dict[int, Context] = {}
    before: Context = ()
    once = incomplete = whole = 0
    # Prompts in order, since of all before it, the neighbour in order shares most with one.
    for turn in sorted(asked, key=lambda each: (each.turn, each.context)):
        found = shared(known[turn.number] if turn.turn else before, turn.context)
        once += len(turn.context) - found
        incomplete += found % block
        whole += len(turn.context)
        known[turn.number] = turn.context + turn.sampled[:-1]
        before = turn.context
    return {"once": once, "incomplete_blocks": incomplete, "without_cache": whole - once}


NATURAL_RULES = Rules(
    prompt_template="{query} Write <code>print(6 * 7)</code>, then <answer>42</answer>.\n",
    max_tokens=240,
    max_calls=3,
    void_turn="continue",
)
NATURAL_PIECES = (" </code>\n\nSo", "</answer>.", "<code>\n", "<answer>1", "</co", "de>", "é</")
"""Tokens with a tag inside, and after it what is surplus; others that hold a part of a tag."""


def make_natural_model(seed: int) -> tuple[Any, Any]:
    """A tiny model with a liking for tags, whole, inside longer tokens and in pieces."""
    model: Any
    tokenizer: Any
    model, tokenizer = make_model(seed)
    tokenizer.add_tokens(list(NATURAL_PIECES))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    liked = {*tokenizer.convert_tokens_to_ids(list(NATURAL_PIECES)), tokenizer.eos_token_id}
    return add_bias(model, [2.5 if i in liked else 0.0 for i in range(len(tokenizer))]), tokenizer


class _Echo:
    """A sandbox in which a program prints itself, and what a tokenizer might take for its own."""

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        return Execution(Outcome.OK, f"{code}<|end|><|im_end|>é </interp\n")


def natural(policy: Policy, problems: int, n: int) -> dict[str, int]:
    """Sample episodes without any help, and look at their records.

    Args:
        policy: The model.
        problems: How many.
        n: Rollouts of each.

    Returns:
        Number of `episodes`; of these, the ones that `differ` from what the policy saw; the ones that `encoding_again`
        would change, as tools do that keep text. How many turns ended in a `tag`, with `surplus` behind it, at the
        model's own `eos`, or `other`wise.
    """
    recorder = Recorder(policy)
    echo: Any = _Echo()
    engine = RolloutEngine(recorder, NATURAL_RULES, echo)
    asked = [Problem(str(i), f"Question {i}.", "1") for i in range(problems)]
    transcripts = [each for group in engine.run(asked, n=n) for each in group]
    tokenizer = policy.tokenizer
    found = dict.fromkeys(("differ", "encoding_again", "tag", "surplus", "eos", "other"), 0)
    found["differ"] = recorder.differing(transcripts)
    for transcript in transcripts:
        ids = [*transcript.prompt_ids, *transcript.completion_ids]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        found["encoding_again"] += tokenizer.encode(text, add_special_tokens=False) != ids
        for span in transcript.spans:
            if span.author != "model":
                continue
            last = (span.token_ids or (None,))[-1]
            tag = any(close in span.text for close in ("</code>", "</answer>"))
            end = "tag" if tag else "eos" if last == tokenizer.eos_token_id else "other"
            found[end] += 1
            found["surplus"] += span.surplus > 0
    return {"episodes": len(transcripts), **found}
