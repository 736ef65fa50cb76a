"""An episode that goes on from the spans of another one is that other episode, whatever it was."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.models.tiny import make_tokenizer
from retool_env.episode import Episode, Generation, GradeAnswer, RunProgram
from retool_env.errors import SettingsError
from retool_env.faults.schedule import At
from retool_env.problems import Problem
from retool_env.protocol.result import EMPTY_PROGRAM
from retool_env.protocol.turn import TurnKind
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Outcome
from retool_env.transcript import Parent, Span, StopReason, Transcript, check_transcript

PROBLEM = Problem(id="p", question="6 * 7?", answer="42")
TOKENIZER = make_tokenizer()
TURNS = (
    "So: <code>print(6 * 7)</code>",
    "<code>a</code> and more",
    "<code># nothing</code>",
    '<tool_call>{"name": "code_interpreter", "arguments": {"code": "1"}}</tool_call>',
    '<tool_call>{"name": "browser"}</tool_call>',
    "Hm.",
    "<answer>42</answer>",
    r"It is \boxed{42}.",
)
RESULTS = (
    Execution(Outcome.OK, "42\n"),
    Execution(Outcome.OK, "4" * 90),
    Execution(Outcome.RUNTIME_ERROR, "x" * 90, "NameError: a", "Traceback:\n  a\nNameError: a"),
)


@dataclass
class Clock:
    """Seconds that only turns and programs use up."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Play:
    """The actions of an episode: turns of the model, and the results of their programs."""

    rules: Rules
    turns: list[tuple[str, Execution]]
    ids: bool
    clock: Clock = field(default_factory=Clock)

    def new(self) -> Episode:
        return Episode(PROBLEM, self.rules, TOKENIZER if self.ids else None, self.clock)

    def serve(self, episode: Episode, execution: Execution) -> None:
        if isinstance(episode.need, GradeAnswer):
            episode.graded(episode.need.answer == "42")
        elif isinstance(episode.need, RunProgram):
            self.clock.now += 3.0
            episode.executed(execution, 3.0)

    def go_on(self, episode: Episode) -> Transcript:
        """Play the turns that the episode has not had yet."""
        begun = sum(span.author == "model" for span in episode.transcript.spans)
        for text, execution in self.turns[begun:]:
            if episode.done:
                break
            self.clock.now += 2.0
            if self.ids:
                ids = (*TOKENIZER.encode(text), TOKENIZER.eos_token_id)
                episode.act_ids(Generation(ids, (-0.5,) * len(ids), "eos", 2.0, 3))
            else:
                episode.act(text, seconds=2.0)
            self.serve(episode, execution)
        return episode.transcript


@st.composite
def plays(draw):
    ids = draw(st.booleans())
    number = st.none() | st.integers(1, 5)
    rules = Rules(
        protocol=draw(st.sampled_from(["tags", "hermes"])) if not ids else "tags",
        prompt_template="{query}\n",
        max_calls=draw(number),
        announce_calls=draw(st.booleans()),
        void_turn=draw(st.sampled_from(["end", "continue"])),
        max_void=draw(number),
        max_tokens=draw(st.integers(20, 200)) if ids else None,
        max_characters=draw(st.integers(40, 600)),
        max_seconds=draw(st.none() | st.integers(4, 30)),
        output_characters=draw(st.sampled_from([40, 400])),
    )
    turns = st.tuples(st.sampled_from(TURNS), st.sampled_from(RESULTS))
    return Play(rules, draw(st.lists(turns, min_size=1, max_size=6)), ids)


@settings(max_examples=100, deadline=None)
@given(plays())
def test_going_on_after_any_span_with_the_same_turns_gives_the_same_episode(play):
    whole = play.go_on(play.new())
    parent = Parent(0, 1, "keep")
    for end in range(1, len(whole.spans) + 1):
        spans = whole.spans[:end]
        last, following = spans[-1], whole.spans[end : end + 1]
        ended = end == len(whole.spans) and whole.stop_reason is not None
        if ended or (last.author == "model" and whole.turns[end // 2 - 1].kind is TurnKind.VOID):
            continue  # no episode goes on from there
        play.clock = Clock(1000.0)
        again = play.new()
        form = following[0].form if following else None
        again.resume(spans, form, parent)
        assert all(own is other for own, other in zip(again.transcript.spans, spans, strict=True))
        if last.author == "model":
            recorded = following[0].execution
            unrun = recorded == EMPTY_PROGRAM or form == "unread"
            if unrun:
                again.executed(recorded, 0.0)
            else:
                play.serve(again, play.turns[end // 2 - 1][1])
        gone_on = play.go_on(again)
        assert dataclasses.replace(gone_on, parent=None) == whole
        assert gone_on.parent == parent
        check_transcript(gone_on)


def failing(ids: bool = False, **rules) -> tuple[Play, Transcript]:
    """An episode whose first call fails, and whose second call runs."""
    budget = dict(max_tokens=400) if ids else {}
    play = Play(
        Rules(prompt_template="{query}\n", **budget, **rules),
        [
            ("<code>a</code>", RESULTS[2]),
            ("<code>6 * 7</code>", RESULTS[0]),
            ("<answer>42</answer>", RESULTS[0]),
        ],
        ids,
    )
    return play, play.go_on(play.new())


def test_budgets_can_be_those_of_other_spans_than_the_own_ones():
    play, whole = failing(ids=True, max_calls=2)
    kept, dropped = play.new(), play.new()
    kept.resume(whole.spans[:3])
    dropped.resume(whole.spans[:1])
    assert dropped.token_budget == 400
    dropped.charge(whole.spans[:3])
    assert dropped.token_budget == kept.token_budget < 400
    for episode in (kept, dropped):
        ids = tuple(TOKENIZER.encode("<code>1</code>"))
        for _ in range(2):
            episode.act_ids(Generation(ids, (-1.0,) * len(ids), "tag"))
            if episode.need is not None:
                episode.executed(RESULTS[0])
        assert episode.transcript.stop_reason is StopReason.CALL_LIMIT  # one call was used


def test_a_recorded_result_is_not_cut_again():
    play, _ = failing(output_characters=40)
    first, again = play.new(), play.new()
    for episode in (first, again):
        episode.act("<code>1</code>")
    first.executed(RESULTS[1])
    recorded = first.transcript.spans[-1].execution
    assert len(recorded.stdout) > 40
    again.executed(recorded, recorded=True)
    assert again.transcript == first.transcript


def test_a_persistent_fault_strikes_all_later_calls_and_a_transient_one_a_single_call():
    for kind, expected in (("gone", [None, "gone", "gone"]), ("timeout", [None, "timeout", None])):
        episode = Episode(PROBLEM, Rules(), schedule=At(2, kind))
        faults = []
        for _ in range(3):
            faults.append(episode.act("<code>1</code>").fault)
            episode.executed(RESULTS[0])
        assert faults == expected


def test_a_call_without_a_program_counts_as_a_call_but_meets_no_fault():
    episode = Episode(PROBLEM, Rules(), schedule=At(1, "timeout"))
    assert episode.act("<code></code>") is None
    assert episode.act("<code>1</code>").fault is None


def test_an_episode_resumed_at_a_call_asks_for_the_fault_of_this_call():
    play, whole = failing()
    for kind, later in (("gone", "gone"), ("timeout", None)):
        episode = Episode(PROBLEM, play.rules, schedule=At(2, kind))
        episode.resume(whole.spans[:4])
        assert episode.need.fault == kind and episode.need.program == "6 * 7"
        assert episode.need.before == whole.spans[2].execution and episode.need.problem == "p"
        episode.executed(RESULTS[2])
        assert episode.act("<code>1</code>").fault == later


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ((Span("prompt", "another"),), "its own prompt"),
        ((Span("prompt", "6 * 7?\n"), Span("model", "Hm.")), "no call"),
    ],
)
def test_spans_from_which_no_episode_goes_on(spans, words):
    play, _ = failing()
    with pytest.raises(SettingsError, match=words):
        play.new().resume(spans)


def test_an_episode_that_has_begun_goes_on_from_no_other():
    play, whole = failing()
    episode = play.new()
    episode.act("<code>1</code>")
    with pytest.raises(SettingsError, match="its own prompt"):
        episode.resume(whole.spans[:3])


def test_the_seconds_of_the_spans_are_used_up():
    """Each turn takes 2 s and each program 3 s, so the third turn is late."""
    play, whole = failing(max_seconds=11.0)
    assert whole.stop_reason is StopReason.TIME_BUDGET and len(whole.spans) == 6
    for end in (1, 3, 5):
        play.clock = Clock(1000.0)
        again = play.new()
        play.clock.now += 500.0  # what passes before an episode goes on does not count
        again.resume(whole.spans[:end])
        assert play.go_on(again) == whole
