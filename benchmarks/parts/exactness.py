"""Compares records of episodes with the policy's inputs and outputs, id by id; counts tokens read.

There are two kinds of episodes. The chains of the overlap end their turns where the benchmark says;
a `Recorder` wraps the policy of the loop. Naturally sampled episodes (`natural`) end a turn where
the model happens to write a tag or its end token, with several rollouts per prompt.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

from agents.models.tiny import make_model
from benchmarks.parts.chains import TurnRequest, WrappedPolicy, add_bias
from retool_env.episode import Generation
from retool_env.execution import Execution, Limits, Outcome
from retool_env.problem import Problem
from retool_env.rollout import Policy, RolloutEngine
from retool_env.rules import Rules
from retool_env.transcript import Transcript

Context = tuple[int, ...]
Written = tuple[tuple[int, ...], tuple[float, ...]]
"""Token ids and log-probs."""


class Recorder(WrappedPolicy):
    """A policy that records its inputs and outputs.

    Args:
        policy: The policy that samples.
    """

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.turns: dict[Context, Counter[Written]] = {}
        """The outputs by input. Rollouts of one prompt share an input, hence the counter."""

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample a turn, and record it.

        Args:
            token_ids: The context.
            stop: The texts that end a turn.
            budget: The maximum number of tokens.
            seed: The sampling seed.
        """
        given = tuple(token_ids)  # a copy now: the caller may change its list later
        generation = await self.policy.act(token_ids, stop, budget, seed)
        written = generation.token_ids, generation.logprobs
        self.turns.setdefault(given, Counter())[written] += 1
        return generation

    def differing(self, transcripts: Sequence[Transcript]) -> int:
        """The number of transcripts that differ from the record in an id or a log-prob.

        Each sampled turn belongs to exactly one transcript.
        """
        left = {given: Counter(written) for given, written in self.turns.items()}
        return sum(not take_turns(transcript, left) for transcript in transcripts)


def take_turns(transcript: Transcript, left: dict[Context, Counter[Written]]) -> bool:
    """Remove the turns of a transcript from the recorded turns.

    Args:
        transcript: The transcript.
        left: The recorded outputs by input; this function reduces the counts.

    Returns:
        Whether all turns of the transcript were recorded.
    """
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
    """The length of the common prefix of two sequences of token ids."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def must_read(requests: Sequence[TurnRequest], block: int) -> dict[str, int]:
    """The number of tokens that a model has to read (prefill) for the turns of chains.

    Args:
        requests: All requests of a loop.
        block: The number of tokens of a block of the cache.

    Returns:
        `once`: tokens if each token is read once. They are each prompt without its common prefix
        with another prompt, then the calls and results after the sampled tokens. The last sampled
        token also counts, because sampling did not read it. `incomplete_blocks`: tokens read again
        by a cache that keeps only complete blocks, at most `block - 1` per turn. `without_cache`:
        tokens read again if each turn reads its whole context.
    """
    known: dict[int, Context] = {}
    before: Context = ()
    once = incomplete = whole = 0
    # Sorted, because the neighbour in sorted order has the longest common prefix.
    for turn in sorted(requests, key=lambda request: (request.turn, request.context)):
        prefix = shared(known[turn.number] if turn.turn else before, turn.context)
        once += len(turn.context) - prefix
        incomplete += prefix % block
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
"""Tokens that contain a tag and surplus text after it, and tokens with a part of a tag."""


def make_natural_model(seed: int) -> tuple[Any, Any]:
    """A tiny model that often samples tags: whole, inside longer tokens, and in pieces."""
    model: Any
    tokenizer: Any
    model, tokenizer = make_model(seed)
    tokenizer.add_tokens(list(NATURAL_PIECES))
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    liked = {*tokenizer.convert_tokens_to_ids(list(NATURAL_PIECES)), tokenizer.eos_token_id}
    return add_bias(model, [2.5 if i in liked else 0.0 for i in range(len(tokenizer))]), tokenizer


class _Echo:
    """A sandbox whose programs print their code, and texts that look like special tokens."""

    async def run_async(self, code: str, limits: Limits | None = None, **_: Any) -> Execution:
        return Execution(Outcome.OK, f"{code}<|end|><|im_end|>é </interp\n")


def natural(policy: Policy, problems: int, n: int) -> dict[str, int]:
    """Sample episodes naturally, and compare their records with the policy's inputs and outputs.

    Args:
        policy: The model.
        problems: The number of problems.
        n: The number of rollouts per problem.

    Returns:
        `episodes`: their number. `differ`: episodes whose record differs. `encoding_again`:
        episodes whose ids change if their text is encoded again. `tag`, `eos`, `other`: turns by
        the way they ended. `surplus`: turns with surplus characters after their tag.
    """
    recorder = Recorder(policy)
    echo: Any = _Echo()
    engine = RolloutEngine(recorder, NATURAL_RULES, echo)
    questions = [Problem(str(i), f"Question {i}.", "1") for i in range(problems)]
    transcripts = list(itertools.chain(*engine.run(questions, n=n)))
    tokenizer = policy.tokenizer
    counts = dict.fromkeys(("differ", "encoding_again", "tag", "surplus", "eos", "other"), 0)
    counts["differ"] = recorder.differing(transcripts)
    for transcript in transcripts:
        ids = [*transcript.prompt_ids, *transcript.completion_ids]
        text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        counts["encoding_again"] += tokenizer.encode(text, add_special_tokens=False) != ids
        for span in transcript.spans:
            if span.author != "model":
                continue
            last = (span.token_ids or (None,))[-1]
            tag = any(close in span.text for close in ("</code>", "</answer>"))
            end = "tag" if tag else "eos" if last == tokenizer.eos_token_id else "other"
            counts[end] += 1
            counts["surplus"] += span.surplus > 0
    return {"episodes": len(transcripts), **counts}
