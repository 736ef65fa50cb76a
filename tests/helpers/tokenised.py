"""Finished episodes with token ids, made without a model."""

from __future__ import annotations

from agents.models.tiny import make_tokenizer
from retool_env.problems import Problem
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Span, StopReason, Transcript


def episode(index, reward, turns=1, words=0, failed=False):
    """A transcript with `turns` calls and then an answer; its log-probs are to be set."""
    tokenizer = make_tokenizer()
    spans = [("prompt", f"Compute {index} + 7.\n")]
    for turn in range(turns):
        spans.append(("model", f"<code>\n```python\nprint({index % 9}{turn})\n```\n</code>"))
        spans.append(("env", f"\n<interpreter>\n{index % 9}{turn}\n</interpreter>\n\n"))
    spans.append(("model", "o" * words + f"<answer>\n\\boxed{{{index % 10}}}\n</answer>"))
    made = []
    for author, text in spans:
        ids = tuple(tokenizer.encode(text))
        logprobs = (-1.0,) * len(ids) if author == "model" else None
        shown = Execution(Outcome.OK, text) if author == "env" else None
        made.append(Span(author, text, ids, logprobs, execution=shown))
    return Transcript(
        Problem(str(index), "?", "1"),
        tuple(made),
        stop_reason=StopReason.INFRASTRUCTURE if failed else StopReason.ANSWERED,
        correct=None if failed else reward > 0,
        reward=None if failed else reward,
    )
