"""Episode: one problem, from prompt to reward.

An `Episode` does no input or output. It takes an action and returns its next need: a program to run
(`RunProgram`), an answer to grade (`GradeAnswer`), or `None`. The caller, blocking or asynchronous,
serves this need and hands the result back. The Gymnasium environments pass text actions and the
rollout engine passes token ids; both run through `_turn`, so both give the same episode.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

from retool_env.errors import SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.faults import kinds
from retool_env.faults.schedule import Schedule
from retool_env.need import Generation as Generation
from retool_env.need import GradeAnswer as GradeAnswer
from retool_env.need import Need as Need
from retool_env.need import RunProgram as RunProgram
from retool_env.need import TurnEnd as TurnEnd
from retool_env.need import next_block
from retool_env.problem import Problem
from retool_env.protocol.program import Form
from retool_env.protocol.result import (
    EMPTY_PROGRAM,
    calls_notice,
    cut_output,
    is_empty_program,
    render_output,
)
from retool_env.protocol.turn import EncodedText, Turn, TurnKind
from retool_env.rewards import earned
from retool_env.rules import Rules
from retool_env.tokens import Tokenizer as Tokenizer
from retool_env.tokens import cut_turn, first_runs
from retool_env.tokens import decode as decode
from retool_env.tokens import encode_prompt as encode_prompt
from retool_env.tokens import encode_result as encode_result
from retool_env.tokens import tokens_of_turn as tokens_of_turn
from retool_env.transcript import Parent, Span, StopReason, Transcript


class Episode:
    """One problem under given rules.

    Args:
        problem: The problem to solve.
        rules: The settings of the episode.
        tokenizer: The tokenizer, for actions of token ids. The prompt then uses its chat template,
            if it has one. `None`: actions are text.
        clock: A function that returns monotonic seconds, for the wall-clock budget.
        weight_version: The version of the policy's weights, for `Transcript.weight_version`. `None`
            for policies without weights.
        schedule: Orders the faults of the calls, as from `Rules.schedule`. `None`: no faults.

    Raises:
        ValueError: If the rules have a token budget but no tokenizer is given, or if the
            tokenizer's chat template can't carry the protocol.

    Example:
        >>> from retool_env.problems import Problem
        >>> episode = Episode(Problem(id="p", question="6 * 7?", answer="42"), Rules())
        >>> need = episode.act("<answer>42</answer>")
        >>> episode.graded(need.answer == need.gold)
        >>> episode.transcript.reward
        1.0
    """

    def __init__(
        self,
        problem: Problem,
        rules: Rules,
        tokenizer: Tokenizer | None = None,
        clock: Callable[[], float] = time.monotonic,
        weight_version: int | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        if tokenizer is None and rules.max_tokens is not None:
            raise SettingsError(
                "max_tokens needs a tokenizer: pass tokenizer=..., or set max_characters instead"
            )
        self.rules = rules
        self.need: Need | None = None
        self._tokenizer = tokenizer
        self._clock = clock
        self._started = clock()
        self._spent = 0
        self._invalid = 0  # invalid turns in a row
        self._tokens, self._characters = 0, 0  # of the response
        self._protocol = rules.turn_protocol()
        span = Span("prompt", *self._protocol.prompt(rules.prompt(problem), tokenizer))
        self._transcript = Transcript(
            problem,
            (span,),
            interpreter=rules.interpreter,
            weight_version=weight_version,
            protocol=rules.protocol,
        )
        self._form: Form | None = None  # of the program that runs now
        self._schedule = schedule
        self._lasting: str | None = None  # the persistent fault that has begun
        self._shown: Execution | None = None  # the last result, with its output cut
        self._last = span
        self._new: list[Span] = []  # added to the transcript when it is read: turns cost less
        self._ids = list(span.token_ids or ())

    @property
    def transcript(self) -> Transcript:
        """The record so far."""
        if self._new:
            spans = (*self._transcript.spans, *self._new)
            self._new = []
            self._transcript = dataclasses.replace(self._transcript, spans=spans)
        return self._transcript

    @property
    def token_ids(self) -> Sequence[int]:
        """The context of the model's next turn: prompt and all later tokens, shape `(P + T,)`.

        The list grows with the episode: copy it to keep its present state.
        """
        return self._ids

    @property
    def done(self) -> bool:
        """Whether the episode has ended."""
        return self._transcript.stop_reason is not None

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end a model turn. If empty, only the end of the sequence ends a turn."""
        return self._protocol.stop

    @property
    def token_budget(self) -> int | None:
        """Number of tokens left in the budget of the response; `None` without a limit."""
        limit = self.rules.max_tokens
        return None if limit is None else limit - self._tokens

    def act(
        self,
        action: str,
        exhausted: bool = False,
        seconds: float = 0.0,
        form: Form | None = None,
        sent: tuple[str, ...] = (),
        apart: bool = False,
    ) -> Need | None:
        """Take a text action: one model turn.

        Args:
            action: Everything that the model generated since the last environment message.
            exhausted: Whether a limit on the length cut the turn.
            seconds: Wall-clock seconds that the generation took.
            form: The rule by which the program was read, if a native call was translated to this
                text; `None`: the text itself shows the form.
            sent: See `Span.sent`.
            apart: See `Span.apart`.

        Returns:
            The need that must be served before the next action, or `None`.

        Raises:
            RuntimeError: If it is not the model's turn.
        """
        if self._tokenizer is not None:
            raise RuntimeError(
                "this episode has a tokenizer, so its actions are token ids: call act_ids instead"
            )
        span = Span("model", action, seconds=seconds, sent=sent, apart=apart)
        return self._turn(span, exhausted, form)

    def act_ids(self, generation: Generation) -> Need | None:
        """Take an id action: one sampled model turn.

        The record ends with the token that completes the first stop string; later tokens are
        dropped.

        Returns:
            The need that must be served before the next action, or `None`.

        Raises:
            RuntimeError: If it is not the model's turn, or the episode has no tokenizer.
            ValueError: If token ids and log-probs differ in number.
        """
        if self._tokenizer is None:
            raise RuntimeError(
                "this episode has no tokenizer, so its actions are text: call act instead"
            )
        ids, logprobs = generation.token_ids, generation.logprobs
        if len(ids) != len(logprobs):
            raise ValueError(
                f"{len(ids)} tokens, but {len(logprobs)} log-probs: each token needs one log-prob"
            )
        budget = self.token_budget
        exhausted = generation.stop_reason == "length"
        if budget is not None and len(ids) > budget:
            ids, exhausted = ids[:budget], True
        kept, text = cut_turn(self._tokenizer, ids, self.stop)
        ids = ids[:kept]
        if generation.stop_reason == "eos" and kept == len(generation.token_ids):
            text = decode(self._tokenizer, ids[:-1])
        span = Span(
            "model",
            text,
            ids,
            logprobs[:kept],
            seconds=generation.seconds,
            weight_version=generation.weight_version,
            weight_runs=generation.weight_runs and first_runs(generation.weight_runs, kept),
        )
        return self._turn(span, exhausted)

    def _turn(self, span: Span, exhausted: bool, form: Form | None = None) -> Need | None:
        if self.done:
            raise RuntimeError("the episode has ended: begin a new Episode")
        if self.need is not None:
            call = "executed" if isinstance(self.need, RunProgram) else "graded"
            raise RuntimeError(f"the episode has an open need: call {call} with its result first")
        rules = self.rules
        remaining = _remaining(rules.max_characters, self._characters)
        turn = self._protocol.parse(span.text, ended=not exhausted)
        self._form = form or turn.form
        if span.token_ids is None:
            span = dataclasses.replace(span, text=span.text[: int(min(turn.end, remaining))])
        elif len(span.text) > turn.end:
            span = dataclasses.replace(span, surplus=len(span.text) - turn.end)
        self._append(span)
        if turn.end > remaining:
            self._finish(StopReason.CHARACTER_BUDGET)
        elif self._late():
            self._finish(StopReason.TIME_BUDGET)
        elif turn.kind is TurnKind.ANSWER:
            self._transcript = dataclasses.replace(self.transcript, answer=turn.content)
            self.need = GradeAnswer(turn.content, self._transcript.problem.answer)
        elif turn.kind is TurnKind.VOID and exhausted:
            self._finish(StopReason.TOKEN_BUDGET)
        elif not span.text:
            self._finish(StopReason.STOPPED)
        elif self._ends_as_invalid(turn):
            self._finish(StopReason.VOID_TURN)
        elif rules.max_calls is not None and self._spent >= rules.max_calls:
            self._finish(StopReason.CALL_LIMIT)
        else:
            self._spent += 1
            if turn.kind is TurnKind.VOID:
                self._observe(self._protocol.void(self._tokenizer, span.token_ids or ()))
            elif turn.error:
                self._observe_execution(Execution(Outcome.SYNTAX_ERROR, "", turn.error), 0.0)
            elif is_empty_program(turn.content):
                self._observe_execution(EMPTY_PROGRAM, 0.0)
            else:
                self.need = self._order(turn.content)
        return self.need

    def _order(self, program: str) -> RunProgram:
        """The need of a call, with the fault that is ordered for the call."""
        rules = self.rules
        view = (rules.output_characters, rules.output_cut, rules.errors)
        need = RunProgram(program, rules.limits, rules.session, rules.display, view=view)
        schedule = self._schedule
        kind = self._lasting or (schedule.ordered(self._spent) if schedule else None)
        if kind is None:
            return need
        problem, block = self._transcript.problem.id, next_block(self.transcript.spans)
        need = dataclasses.replace(need, fault=kind, problem=problem, block=block)
        return dataclasses.replace(need, before=self._shown)

    def resume(
        self, spans: Sequence[Span], form: Form | None = None, parent: Parent | None = None
    ) -> None:
        """Go on from the first spans of another episode of this problem, under the same rules.

        The budgets are the budgets of the other episode at this point. If the last span is a turn
        with a call, this call becomes the need.

        Args:
            spans: The spans, the prompt first. They are kept unchanged.
            form: The form of the program of the last span, if a native call was translated to it;
                `None`: the text itself shows the form.
            parent: The other episode, for the record.

        Raises:
            SettingsError: If this episode has begun, the prompts differ, or the last span is a
                turn without a call.
        """
        if self.transcript.spans != (spans[0],):
            raise SettingsError(
                "an episode goes on only from spans that begin with its own prompt: use the rules, "
                "the tokenizer and the interpreter's settings of the other episode"
            )
        self._transcript = dataclasses.replace(self._transcript, spans=(spans[0],), parent=parent)
        for span in spans[1:]:
            self._append(span)
            self._shown = span.execution or self._shown
        self.charge(spans)
        if self._last.author == "model":
            turn = self._protocol.parse(self._last.text)
            if turn.kind is not TurnKind.CODE:
                raise SettingsError("the last turn holds no call: resume before it or after it")
            self._form = form or turn.form
            self._ends_as_invalid(turn)
            self._spent += 1
            self.need = self._order(turn.content)

    def charge(self, spans: Sequence[Span]) -> None:
        """Set the used budgets to the tokens, characters, calls and seconds of these spans.

        Args:
            spans: The spans, the prompt first.
        """
        results = [span for span in spans if span.author == "env"]
        valid = [bool(span.execution) and span.form != "unread" for span in results]
        self._spent = len(results)
        self._invalid = valid[::-1].index(True) if any(valid) else len(valid)
        self._tokens = sum(len(span.token_ids or ()) for span in spans[1:])
        self._characters = sum(len(span.text) for span in spans[1:])
        self._started = self._clock() - sum(span.seconds for span in spans)

    def _ends_as_invalid(self, turn: Turn) -> bool:
        """Count the invalid turns in a row, and tell whether the rules end the episode here."""
        void = turn.kind is TurnKind.VOID
        self._invalid = self._invalid + 1 if void or self._form == "unread" else 0
        if self.rules.void_turn == "end":
            return void
        return self.rules.max_void is not None and self._invalid >= self.rules.max_void

    def executed(
        self, execution: Execution, seconds: float | None = None, recorded: bool = False
    ) -> None:
        """Hand in the result of the needed program.

        Args:
            execution: The result. An infrastructure failure ends the episode without a score.
            seconds: Wall-clock seconds from the need to the result, waiting included. `None`: the
                run time of the program.
            recorded: Whether the result is from a record, in which a long output is cut already.

        Raises:
            RuntimeError: If the episode needs no program.
        """
        if not isinstance(self.need, RunProgram):
            raise RuntimeError("no program waits for its result: call executed after a RunProgram")
        if kinds.begins(self.need, execution):
            self._lasting = self.need.fault
        self.need = None
        if execution.outcome is Outcome.INFRASTRUCTURE:
            self._finish(StopReason.INFRASTRUCTURE)
        else:
            seconds = execution.duration if seconds is None else seconds
            self._observe_execution(execution, seconds, recorded)

    def graded(self, correct: bool) -> None:
        """Hand in the verdict on the answer, which ends the episode.

        Args:
            correct: Whether the answer is mathematically equal to the reference answer.

        Raises:
            RuntimeError: If the episode needs no verdict.
        """
        if not isinstance(self.need, GradeAnswer):
            raise RuntimeError("no answer waits for its verdict: call graded after a GradeAnswer")
        self.need = None
        self._transcript = dataclasses.replace(self.transcript, correct=correct)
        self._finish(StopReason.ANSWERED)

    def cut(self, reason: StopReason) -> None:
        """End the episode from outside, after a cancellation or a failure of the policy.

        Args:
            reason: The reason, a truncation.

        Raises:
            ValueError: If the reason is a termination: only the rules terminate an episode.
        """
        if reason.terminated:
            raise ValueError(f"{reason} is not a truncation: only the rules terminate an episode")
        if not self.done:
            self.need = None
            self._finish(reason)

    def _observe_execution(
        self, execution: Execution, seconds: float, recorded: bool = False
    ) -> None:
        rules = self.rules
        fault = execution.fault
        # The last result, shown again, is cut already; so is a result of a record.
        cut = recorded or (fault is not None and fault.injected and fault.kind == "stale")
        limit = max(rules.output_characters, len(execution.stdout) if cut else 0)
        output = render_output(execution, limit, rules.output_cut, rules.errors)
        if fault is not None and fault.real is not None:
            real = cut_output(fault.real, rules.output_characters, rules.output_cut)
            execution = dataclasses.replace(execution, fault=dataclasses.replace(fault, real=real))
        execution = self._shown = cut_output(execution, limit, rules.output_cut)
        turn_ids = self._last.token_ids or ()
        if rules.announce_calls and rules.max_calls is not None:
            notice = calls_notice(rules.max_calls - self._spent)
            message = self._protocol.result(output, self._tokenizer, turn_ids, notice=notice)
        else:
            message = self._protocol.result(output, self._tokenizer, turn_ids)
        self._observe(message, execution, seconds)

    def _observe(
        self, message: EncodedText, execution: Execution | None = None, seconds: float = 0.0
    ) -> None:
        text, ids = message
        remaining = _remaining(self.rules.max_characters, self._characters)
        reason = None
        # The model needs room to answer. A result that leaves no room is recorded, but not shown.
        if ids is not None and self.token_budget is not None and len(ids) >= self.token_budget:
            reason = StopReason.TOKEN_BUDGET
        elif len(text) >= remaining:
            reason = StopReason.CHARACTER_BUDGET
        elif self._late():
            reason = StopReason.TIME_BUDGET
        if reason is not None:
            text, ids = "", None if ids is None else ()
        form = None if execution is None else self._form
        self._append(Span("env", text, ids, execution=execution, seconds=seconds, form=form))
        if reason is not None:
            self._finish(reason)

    def _append(self, span: Span) -> None:
        ids = span.token_ids or ()
        self._ids += ids
        self._tokens += len(ids)
        self._characters += len(span.text)
        self._last = span
        self._new.append(span)

    def _late(self) -> bool:
        limit = self.rules.max_seconds
        return limit is not None and self._clock() - self._started > limit

    def _finish(self, reason: StopReason) -> None:
        transcript = dataclasses.replace(self.transcript, stop_reason=reason)
        if transcript.scored:
            transcript = dataclasses.replace(transcript, correct=bool(transcript.correct))
            transcript = dataclasses.replace(
                transcript, reward=earned(self.rules.reward, transcript)
            )
        self._transcript = transcript


def _remaining(limit: int | None, used: int) -> float:
    return float("inf") if limit is None else limit - used
