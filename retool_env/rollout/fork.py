"""Forks: episodes that go on from a call of another episode, their parent.

A fork takes over the parent's spans up to the turn with the call, unchanged: the same token ids, or
the same text. Then it shows a result, and the model goes on. The arms of a comparison show
different results after the same prefix:

| fork                      | the result that the model sees                                       |
|---------------------------|----------------------------------------------------------------------|
| neither of the two        | the recorded result: the parent's own span                           |
| `result`                  | this result                                                          |
| `schedule`, no `result`   | the program runs anew, with the fault that the schedule orders       |
| `dropped`                 | none: the turn with the call is left out as well                     |

In sessions the earlier blocks run anew first, so that their names exist. Where a program that runs
anew does not give the recorded result, the fork is not reproducible.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from retool_env.episode import Episode, RunProgram
from retool_env.errors import NotReproducible, SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.faults.schedule import Schedule
from retool_env.interpreter import Interpreter
from retool_env.problems.staged import asked_stage
from retool_env.protocol.result import cut_text, is_empty_program
from retool_env.protocol.turn import TurnKind
from retool_env.provenance import REVISION
from retool_env.rules import Rules
from retool_env.transcript import Parent, Span, StopReason, Transcript

_log = logging.getLogger(__name__)

BARE = Execution(Outcome.RUNTIME_ERROR, "", "Error")
"""The result of the arm `bare`: an error without its reason."""


def shown_calls(transcript: Transcript) -> list[int]:
    """The numbers of the calls whose result the model saw: the calls from which a fork can go on.

    Calls count from 1. A void turn that did not end the episode counts as well, since it uses up a
    call, but no fork goes on from it.
    """
    # After the prompt, turns and results alternate. A result without room is recorded as "".
    results = transcript.spans[2::2]
    return [n for n, span in enumerate(results, 1) if span.execution is not None and span.text]


def has_program(transcript: Transcript, call: int) -> bool:
    """Whether a call held a program that ran. An empty or unreadable call fails without one.

    Args:
        transcript: The episode.
        call: The number of the call, from 1.
    """
    return _program(transcript, call) is not None


def _program(transcript: Transcript, call: int) -> str | None:
    turn = transcript.turns[call - 1]
    runs = turn.kind is TurnKind.CODE and not turn.error and not is_empty_program(turn.content)
    return turn.content if runs else None


@dataclass(frozen=True)
class Fork:
    """The state from which episodes go on; see the table of this module.

    Raises:
        SettingsError: If no fork can go on from this call, or the settings contradict one another.
    """

    transcript: Transcript
    """The parent: a finished episode without faults."""
    call: int
    """The number of the call, from 1; see `shown_calls`."""
    arm: str = "control"
    """The name of the arm, for `Transcript.parent`. Forks of one call need different names: the
    seeds derive from the problem's id, `sample`, `call` and `arm`."""
    result: Execution | None = None
    """The result to show; `None`: the recorded result, or the result under `schedule`."""
    schedule: Schedule | None = None
    """The faults of this call and of later calls; `None`: no faults."""
    sample: int = 0
    """The number of the parent among the episodes of its problem."""
    dropped: bool = False
    """Whether the turn with the call and its result are left out, with the text before the call."""
    equal_budget: bool = False
    """Whether the episode has the budget that the parent had left after its own result, however
    long the shown result is. A result that is longer than the whole budget ends the episode."""

    def __post_init__(self) -> None:
        transcript, call = self.transcript, self.call
        where = f"call {call} of an episode of {transcript.problem.id}"
        if transcript.stop_reason is None or transcript.parent is not None:
            raise SettingsError("a parent must be a finished episode, and not itself a fork")
        if transcript.revision != REVISION:
            raise SettingsError(
                f"the episode is of revision {transcript.revision}, but forks run at revision "
                f"{REVISION}: sample it anew"
            )
        if any(span.execution and span.execution.fault for span in transcript.spans):
            raise SettingsError("a parent must be an episode without faults: set faults to None")
        if call not in shown_calls(transcript):
            raise SettingsError(f"{where} has no result that the model saw: see shown_calls")
        if self._runs and not has_program(transcript, call):
            raise SettingsError(f"{where} holds no program, so no fault can strike it")
        if self.dropped and (self.result or self.schedule):
            raise SettingsError("a dropped call has neither a result nor a schedule")

    @property
    def _runs(self) -> bool:
        """Whether the program of the call runs anew."""
        return self.schedule is not None and self.result is None

    @property
    def _recorded(self) -> Span:
        return self.transcript.spans[2 * self.call]

    @property
    def prefix(self) -> tuple[Span, ...]:
        """The spans that are the parent's own, unchanged."""
        turn = 2 * self.call - 1
        if self.dropped:
            return self.transcript.spans[:turn]
        own = not self._runs and self.result in (None, self._recorded.execution)
        return self.transcript.spans[: turn + 1 + own]

    @property
    def seeds(self) -> tuple[int, int, int, int]:
        """Numbers that tell this fork from all other episodes of a run, for its seeds."""
        problem, arm = (
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            for text in (self.transcript.problem.id, self.arm)
        )
        return problem, self.sample, self.call, arm

    def begin(self, episode: Episode) -> Episode:
        """Bring a new episode to the state of the fork.

        Args:
            episode: The episode, before its first turn. If the call runs anew, its program becomes
                the need.

        Returns:
            The same episode.

        Raises:
            SettingsError: If the prompt of the episode is not the prompt of the parent.
        """
        spans, prefix = self.transcript.spans, self.prefix
        apart = any(span.apart for span in prefix)
        parent = Parent(self.sample, self.call, self.arm, visible=apart)
        episode.resume(prefix, self._recorded.form, parent)
        if episode.need is not None and self.result is not None:
            # A result that stands in the record of the parent was cut when it was recorded.
            recorded = any(self.result == span.execution for span in spans)
            episode.executed(self.result, recorded=recorded)
        if episode.need is None:
            self._charge(episode)
        return episode

    def _charge(self, episode: Episode) -> None:
        if (self.dropped or self.equal_budget) and not episode.done:
            episode.charge(self.transcript.spans[: 2 * self.call + 1])

    def check_request(self, digests: Sequence[str]) -> None:
        """Check that a request to an API repeats the parent's own next request up to the result.

        Args:
            digests: The digests of the fork's first request; see `TextPolicy.digests`.

        Raises:
            SettingsError: If a part differs. The message names the first such part.
        """
        spans = self.transcript.spans
        after, before = (spans[i : i + 1] for i in (2 * self.call + 1, 2 * self.call - 1))
        sent = next((span.sent for span in (*after, *before) if span.sent), ())
        common = 1 + len(self.prefix)  # the settings, and a message for each span
        for number, (own, of_parent) in enumerate(zip(digests, sent, strict=False)):
            if number < common and own != of_parent:
                part = f"message {number}" if number else "the model, the sampling or the tools"
                raise SettingsError(
                    f"the request of a fork differs from its parent's request: {part}; use the "
                    "options and the version of retool-env with which the parent was sampled"
                )

    async def prepare(self, episode: Episode, interpreter: Interpreter) -> None:
        """Run the programs that must run anew, and bring an episode to the state of the fork.

        An infrastructure failure ends the episode.

        Args:
            episode: The episode, before its first turn.
            interpreter: The interpreter of the episode.

        Raises:
            NotReproducible: If a program gives a different result than the recorded one.
            SettingsError: See `begin`.
        """
        rules, where = episode.rules, self.transcript.problem.id
        blocks = self.call - (self.dropped or self._runs) if rules.session else 0
        for call in range(1, blocks + 1):
            program = _program(self.transcript, call)
            if program is None:
                continue
            need = RunProgram(program, rules.limits, rules.session, rules.display)
            execution = await interpreter.run_async(need)
            if execution.outcome is Outcome.INFRASTRUCTURE:
                _log.warning("%s: the sandbox failed: %s", where, execution.error)
                self.begin(episode).cut(StopReason.INFRASTRUCTURE)
                return
            self._compare(call, execution, rules)
        self.begin(episode)
        if isinstance(episode.need, RunProgram):
            execution = await interpreter.run_async(episode.need)
            fault = execution.fault
            real = fault.real if fault is not None and fault.injected else execution
            if execution.outcome is Outcome.INFRASTRUCTURE:
                _log.warning("%s: the sandbox failed: %s", where, execution.error)
            elif real is not None:
                self._compare(self.call, real, rules)
            episode.executed(execution)
            self._charge(episode)

    def _compare(self, call: int, execution: Execution, rules: Rules) -> None:
        recorded = self.transcript.spans[2 * call].execution
        assert recorded is not None  # a call with a program has a result
        stdout = cut_text(execution.stdout, rules.output_characters, rules.output_cut)
        found = (execution.outcome, stdout, execution.error)
        if found != (recorded.outcome, recorded.stdout, recorded.error):
            raise NotReproducible(
                f"{self.transcript.problem.id}, call {call}: the program gave "
                f"{_words(recorded)} in the record, and gives {_words(execution)} now"
            )


def _words(execution: Execution) -> str:
    return f"{execution.outcome} ({execution.error or execution.stdout!r:.200})"


def error_arms(transcript: Transcript, call: int, sample: int = 0) -> list[Fork]:
    """The arms after an error of the model's own. All have the budget that remained in `keep`.

    | arm      | after the failed call                                                             |
    |----------|-----------------------------------------------------------------------------------|
    | `keep`   | its own result                                                                    |
    | `drop`   | nothing: the turn with the call is left out, with the text before the call        |
    | `bare`   | "Error" alone                                                                     |
    | `mended` | the result of the episode's first later call that ran                             |

    If no later call ran, the result of `mended` on a staged problem is the right number of the
    stage (`retool_env.problems.staged.asked_stage`). On other problems this arm is left out.

    Args:
        transcript: The parent.
        call: The number of the failed call, from 1.
        sample: The number of the parent among the episodes of its problem.

    Raises:
        SettingsError: If the call did not fail, or no fork can go on from it.
    """
    keep = Fork(transcript, call, "keep", sample=sample)
    results = transcript.spans[2 * call :: 2]
    assert results[0].execution is not None  # checked by Fork
    if results[0].execution.outcome is Outcome.OK:
        raise SettingsError(f"call {call} of an episode of {transcript.problem.id} did not fail")
    arms = [
        keep,
        Fork(transcript, call, "drop", sample=sample, dropped=True),
        Fork(transcript, call, "bare", BARE, sample=sample, equal_budget=True),
    ]
    if (result := _mended(transcript, call)) is not None:
        arms.append(Fork(transcript, call, "mended", result, sample=sample, equal_budget=True))
    return arms


def _mended(transcript: Transcript, call: int) -> Execution | None:
    """The result of the arm `mended`; `None` without one."""
    results = [span.execution for span in transcript.spans[2::2]]
    ran = [one if one and one.outcome is Outcome.OK else None for one in results]
    if (later := next(filter(None, ran[call:]), None)) is not None:
        return later
    outputs = [one.stdout for one in ran[: call - 1] if one]
    stage = asked_stage(transcript.problem, transcript.turns[call - 1].content, outputs)
    return None if stage is None else Execution(Outcome.OK, f"{stage.value}\n")
