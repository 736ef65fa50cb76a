"""Examples of a report: a few episodes, chosen by rule and shown as text."""

from __future__ import annotations

from collections.abc import Callable

from retool_env.evaluation.report.subject import Episode, Subject
from retool_env.transcript import Transcript

MOST = 6000
"""The most characters of an example; the middle of a longer one is left out."""


def _right(transcript: Transcript) -> bool:
    """Whether it is right by calls that all ran."""
    calls = transcript.calls
    return bool(transcript.correct) and bool(calls) and all(call.ok for call in calls)


def _wrong(transcript: Transcript) -> bool:
    return transcript.scored and not transcript.correct


def _mended(transcript: Transcript) -> bool:
    """Whether a later call ran after a failed one."""
    ran = [call.ok for call in transcript.calls]
    return transcript.scored and False in ran and True in ran[ran.index(False) :]


_KINDS: dict[str, tuple[Callable[[Transcript], bool], Callable[[Transcript], bool]]] = {
    "Right, with the interpreter": (_right, lambda t: True),
    "Not right": (_wrong, lambda t: bool(t.calls)),
    "An error that a later call mended": (_mended, lambda t: bool(t.correct)),
}
"""The kinds of examples: a condition, and a preference among the episodes that meet it."""


def examples(subject: Subject) -> dict[str, Episode]:
    """The first episode of each kind, in the order of the run; a kind without one is left out.

    Args:
        subject: The run.
    """
    chosen = {}
    for name, (holds, preferred) in _KINDS.items():
        some = [episode for episode in subject.episodes if holds(episode[1])]
        if some:
            chosen[name] = next((e for e in some if preferred(e[1])), some[0])
    return chosen


def facts(transcript: Transcript) -> str:
    """The end of an episode in one sentence.

    Args:
        transcript: The episode.
    """
    calls = transcript.calls
    ran = sum(call.ok for call in calls)
    answer = "no answer" if transcript.answer is None else f"answer {transcript.answer!r:.200}"
    return (
        f"{answer}, reference answer {transcript.problem.answer!r:.200}; reward "
        f"{transcript.reward}; {len(calls)} calls, of which {ran} ran; end: "
        f"{transcript.stop_reason}."
    )


def text_of(transcript: Transcript) -> str:
    """An episode as text: each part under the name of its author.

    Args:
        transcript: The episode.
    """
    parts = [f"── {_author(span.author)} ──\n{span.text.strip()}" for span in transcript.spans]
    text = "\n\n".join(parts)
    if len(text) <= MOST:
        return text
    half, left_out = MOST // 2, len(text) - MOST
    return f"{text[:half]}\n\n[… {left_out:,} characters are left out …]\n\n{text[-half:]}"


def _author(author: str) -> str:
    return {"env": "environment"}.get(author, author)
