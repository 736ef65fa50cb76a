"""ReToolEnv: mathematics with a code interpreter, as a strict `gymnasium.Env`.

The observation is the transcript so far, as text. An action is what the model writes until it stops: a chunk of text
that ends in a code or an answer tag (`retool_env.protocol` says how it is read). A step runs the program in the
sandbox or grades the answer. The reward comes once, at the end.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, ClassVar

import gymnasium as gym

from retool_env.episode import Episode, GradeAnswer, Need
from retool_env.errors import SettingsError
from retool_env.execution import Execution, Outcome
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter, SandboxSetting, shared_sandboxes
from retool_env.problem import ProblemSource
from retool_env.provenance import REVISION
from retool_env.spaces import AnyText, TurnText
from retool_env.task import make_task as make_task
from retool_env.task import registered_settings as registered_settings
from retool_env.task import split_settings as split_settings

_log = logging.getLogger(__name__)
STOPPED = "the last step was stopped before its end, by Ctrl-C or an error, so that its episode can't go on: call reset()"
"""What is said at the next step."""

_COLOURS = {"prompt": "\033[2m", "model": "", "env": "\033[36m"}


class ReToolEnv(gym.Env[str, str]):
    r"""One episode at a time.

    Spaces: observation and action are `AnyText` (any Unicode string); samples of the action space are real turns.

    `info`, new at each call and comparable by value:
        - `problem_id`: str.
        - `calls`: int, programs asked for so far.
        - `outcome`: how the last program ended (`Outcome`), or `None` before the first.
        - `stop_reason`: a `StopReason`, or `None` while the episode goes on.
        - `correct`: bool at the end, `None` before.
        - `transcript`: the `Transcript` so far; wall-clock times are in its spans.

    `reset(options={"problem_id": ...})` chooses the problem; otherwise it is drawn with the environment's generator.

    Args:
        problems: A source, or the name of one (see `retool_env.problems.load_problems`).
        sandbox: A `Sandbox`, the name of one, the URLs of sandbox servers (`"http://node1:8080,http://node2:8080"`), or a
            mapping of `make_sandbox`'s arguments (`{"packages": ["numpy", "scipy"]}`). The environments of a process share one
            a name or equal mapping, which the last of them closes; a `Sandbox` is its maker's to close. Not made where the
            interpreter is off.
        render_mode: `"human"` prints what is new after each call; `"ansi"` gives the transcript as text.
        **settings: Settings of the episode (see `Rules`); all others go to the source of that name
            (`path=`, `split=`, `difficulty=`, ...).

    Raises:
        SandboxUnavailable: If the sandbox can't work here, or has no sessions and `session` is set. It says what is missing;
            there is no fallback.
        ProblemsUnavailable: If the problems can be found neither on disk nor on the Hub.

    Example:
        >>> import gymnasium as gym, retool_env
        >>> env = gym.make("ReTool-Arithmetic-v0", difficulty=1)
        >>> observation, info = env.reset(seed=7)
        >>> observation, reward, terminated, truncated, info = env.step("<code>print(6 * 7)</code>")
        >>> observation.endswith("</code>\n<interpreter>\n42\n</interpreter>\n\n")
        True
        >>> env.close()
    """

    metadata: ClassVar[dict[str, Any]] = {  # type: ignore[misc]  # Gymnasium's is an instance's
        "render_modes": ["human", "ansi"],
        "render_fps": 4,
        "revision": REVISION,
    }

    def __init__(
        self,
        problems: str | ProblemSource,
        *,
        sandbox: SandboxSetting = "nsjail",
        render_mode: str | None = None,
        **settings: Any,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise SettingsError(f"render_mode must be 'human', 'ansi' or None, not {render_mode!r}")
        self.rules, self.problems = split_settings(problems, settings)
        if self.rules.max_tokens is not None:
            raise SettingsError(
                "observations here are text: set max_characters rather than max_tokens"
            )
        self.render_mode = render_mode
        self.observation_space = AnyText()
        self.action_space = TurnText()
        self.sandbox = shared_sandboxes.borrow(sandbox, self.rules, user=self)
        """Where programs run; `None` where the interpreter is off."""
        self._borrows_sandbox = self.sandbox is not sandbox
        self._closed = self._in_step = False
        self._episode: Episode | None = None
        self._interpreter = Interpreter(self.sandbox)
        self._rendered = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Of the draw among problems.
            options: `{"problem_id": ...}` takes that problem instead.

        Raises:
            KeyError: If there is no such problem.
            ValueError: If there is another option.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
        """
        self._check_open()
        super().reset(seed=seed)
        options = dict(options or {})
        problem_id = options.pop("problem_id", None)
        if options:
            raise ValueError(f"unknown reset option {sorted(options)}; there is 'problem_id'")
        if problem_id is None:
            problem = self.problems[int(self.np_random.integers(len(self.problems)))]
        else:
            problem = self.problems.get(problem_id)
        self._episode = None  # so that what stops this leaves none that its interpreter has left
        self._interpreter.close()
        self._interpreter = Interpreter(self.sandbox)
        self._in_step = False
        self._episode = Episode(problem, self.rules)
        self._rendered = 0
        self._render_human()
        return self._episode.transcript.text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the program or grade the answer that `action` ends in.

        Raises:
            TypeError: If the action is not a string.
            gymnasium.error.ResetNeeded: If no episode is going on, or the last step did not come to its end.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
            SandboxUnavailable: If the sandbox cannot go on, since a server refuses the token, say. The episode can't either.
        """
        need = self.begin_step(action)
        return self.end_step(None if need is None else self.resolve(need))

    def begin_step(self, action: str) -> Need | None:
        """The first half of `step`: take the action, and say what must be done."""
        self.check_action(action)
        assert self._episode is not None
        self._in_step = True
        return self._episode.act(action)

    def check_action(self, action: object) -> None:
        """Check that `step` could take `action` now; it changes nothing.

        Raises:
            TypeError: If the action is not a string.
            gymnasium.error.ResetNeeded: If no episode is going on, or the last step did not come to its end.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
        """
        self._check_open()
        if not isinstance(action, str):
            raise TypeError(f"an action is a string, not {type(action).__name__}")
        if self._episode is None or self._episode.done:
            raise gym.error.ResetNeeded("no episode is going on: call reset() first")
        if self._in_step:
            raise gym.error.ResetNeeded(STOPPED)

    def resolve(self, need: Need) -> Execution | bool:
        """Between the halves of `step`: do what the episode needs, and wait for it."""
        if isinstance(need, GradeAnswer):
            return is_equivalent(need.answer, need.gold)
        execution = self._interpreter.run(need)
        if execution.outcome is Outcome.INFRASTRUCTURE:
            assert self._episode is not None
            problem = self._episode.transcript.problem
            _log.warning("%s: the sandbox failed: %s", problem.id, execution.error)
        return execution

    def end_step(
        self, result: Execution | bool | None
    ) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """The second half of `step`: take what came of the need."""
        episode = self._episode
        assert episode is not None
        if isinstance(result, Execution):
            episode.executed(result)
        elif result is not None:
            episode.graded(result)
        if episode.done:
            self._interpreter.close()
        self._in_step = False
        self._render_human()
        transcript = episode.transcript
        reason = transcript.stop_reason
        terminated = reason is not None and reason.terminated
        truncated = reason is not None and not reason.terminated
        return transcript.text, transcript.reward or 0.0, terminated, truncated, self._info()

    def render(self) -> str | None:
        """The transcript as text, in mode `"ansi"`; in mode `"human"` each call has printed it already."""
        if self.render_mode == "ansi":
            return "" if self._episode is None else self._episode.transcript.text
        return None

    def close(self) -> None:
        """End the episode's session, and close the sandbox, unless it is the caller's or other environments use it."""
        self._closed = True
        self._interpreter.close()
        if self._borrows_sandbox and self.sandbox is not None:
            shared_sandboxes.give_back(self.sandbox, user=self)

    def _check_open(self) -> None:
        if self._closed:
            raise gym.error.ClosedEnvironmentError("the environment is closed: make a new one")

    def _info(self) -> dict[str, Any]:
        assert self._episode is not None
        transcript = self._episode.transcript
        calls = transcript.calls
        return {
            "problem_id": transcript.problem.id,
            "calls": len(calls),
            "outcome": calls[-1].execution.outcome if calls else None,
            "stop_reason": transcript.stop_reason,
            "correct": transcript.correct,
            "transcript": transcript,
        }

    def _render_human(self) -> None:
        if self.render_mode != "human" or self._episode is None:
            return
        transcript = self._episode.transcript
        colour = sys.stdout.isatty()
        for span in transcript.spans[self._rendered :]:
            print(f"{_COLOURS[span.author]}{span.text}\033[0m" if colour else span.text, end="")
        self._rendered = len(transcript.spans)
        if self._episode.done:
            print(f"\n[{transcript.stop_reason}, reward {transcript.reward}]")
        sys.stdout.flush()
