"""ReToolEnv: mathematics with a code interpreter, as a strict `gymnasium.Env`.

The observation is the text of the transcript so far. An action is one model turn: a text that ends
with a code or an answer tag (`retool_env.protocol` defines the parser). A step runs the program in
the sandbox or grades the answer. The episode's only reward comes at its end.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, ClassVar

import gymnasium as gym

from retool_env.episode import Episode, GradeAnswer, Need
from retool_env.errors import SettingsError
from retool_env.execution import Execution, Outcome, check_whole_number
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter, SandboxSetting, check_hosts, shared_sandboxes
from retool_env.problem import ProblemSource
from retool_env.provenance import REVISION
from retool_env.spaces import AnyText, TurnText
from retool_env.task import make_task as make_task
from retool_env.task import registered_settings as registered_settings
from retool_env.task import split_settings as split_settings
from retool_env.transcript import Transcript

_log = logging.getLogger(__name__)
INTERRUPTED_STEP_ERROR = (
    "the last step was stopped before its end, by Ctrl-C or an error, so the episode can't go on: "
    "call reset()"
)
"""The error text of a step after an interrupted step."""
STOPPED = INTERRUPTED_STEP_ERROR
"""The former name of `INTERRUPTED_STEP_ERROR`."""

_COLOURS = {"prompt": "\033[2m", "model": "", "env": "\033[36m"}


class ReToolEnv(gym.Env[str, str]):
    r"""One episode at a time.

    Spaces: observations and actions are any Unicode string (`AnyText`); samples of the action space
    are real turns (`TurnText`).

    `info` is a new dictionary after each call, and comparable by value:
        - `problem_id`: str.
        - `calls`: int, the number of programs that the model called so far.
        - `outcome`: the `Outcome` of the last program; `None` before the first program.
        - `stop_reason`: a `StopReason`; `None` while the episode goes on.
        - `correct`: bool at the end; `None` before the end.
        - `transcript`: the `Transcript` so far; its spans hold the wall-clock times. It has no
          records of faults, which the property `transcript` of the environment has.

    `reset(options={"problem_id": ...})` chooses the problem; otherwise the environment's random
    generator draws it. With faults, the option `rollout` is the number of the rollout among the
    rollouts of its problem (by default 0), on which the faults depend.

    Args:
        problems: A problem source, or a source's name (see `retool_env.problems.load_problems`).
        sandbox: A `Sandbox`, a sandbox's name, the URLs of sandbox servers
            (`"http://node1:8080,http://node2:8080"`), or a mapping of the arguments of
            `make_sandbox` (`{"packages": ["numpy", "scipy"]}`). The environments of a process with
            equal settings share a sandbox, and the last environment closes it; the caller closes a
            `Sandbox` object. No sandbox is made if the interpreter is off.
        render_mode: `"human"` prints the new text after each call; with `"ansi"`, `render` returns
            the transcript as text. `None`: no rendering.
        **settings: Settings of the episode (see `Rules`). All other settings go to the problem
            source (`path=`, `split=`, `difficulty=`, ...).

    Raises:
        SandboxUnavailable: If the sandbox can't work here, or `session` is set and the sandbox has
            no sessions. The message names the missing part; there is no fallback.
        ProblemsUnavailable: If the problems are neither on disk nor on the Hub.

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
                "max_tokens needs token ids, but this environment's observations are text: set "
                "max_characters instead"
            )
        self.render_mode = render_mode
        self.observation_space = AnyText()
        self.action_space = TurnText()
        self.sandbox = shared_sandboxes.borrow(sandbox, self.rules, user=self)
        """The sandbox of the programs; `None` if the interpreter is off."""
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
            seed: The seed of the random generator that draws the problem. `None`: the generator
                continues.
            options: `{"problem_id": ...}` chooses the problem. `{"rollout": ...}` is the number of
                the rollout, on which the faults depend. `None`: the problem is drawn, and the
                rollout is 0.

        Returns:
            The observation and `info`.

        Raises:
            KeyError: If no problem has this id.
            SettingsError: If an option is unknown, or the value of an option has the wrong type.
            SandboxUnavailable: If no sandbox server of the environment can run a program.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
        """
        self._check_open()
        super().reset(seed=seed)
        options = dict(options or {})
        problem_id = options.pop("problem_id", None)
        rollout = check_whole_number("rollout", options.pop("rollout", 0), least=0)
        if problem_id is not None and not isinstance(problem_id, str):
            raise SettingsError(f"the option problem_id must be a text, not {problem_id!r:.60}")
        if options:
            raise SettingsError(
                f"unknown reset option {sorted(options)}; the options are 'problem_id' and "
                "'rollout'"
            )
        if problem_id is None:
            problem = self.problems[int(self.np_random.integers(len(self.problems)))]
        else:
            problem = self.problems.get(problem_id)
        self._episode = None  # an interrupted reset must leave no episode without its interpreter
        self._interpreter.close()
        check_hosts(self.sandbox)
        self._interpreter = Interpreter(self.sandbox)
        self._in_step = False
        schedule = self.rules.schedule(problem, rollout)
        self._episode = Episode(problem, self.rules, schedule=schedule)
        self._rendered = 0
        self._render_human()
        return self._episode.transcript.text, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Run the program, or grade the answer, of a model turn.

        Args:
            action: The text of the turn.

        Returns:
            Observation, reward, `terminated`, `truncated` and `info`.

        Raises:
            TypeError: If the action is not a string.
            gymnasium.error.ResetNeeded: If the episode has ended or not begun, or the last step was
                interrupted.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
            SandboxUnavailable: If the sandbox fails for good, for example because a server refuses
                the token. The episode can't go on.
        """
        need = self.begin_step(action)
        return self.end_step(None if need is None else self.resolve(need))

    def begin_step(self, action: str) -> Need | None:
        """The first half of `step`: take the action, and return the need of the episode."""
        self.check_action(action)
        assert self._episode is not None
        self._in_step = True
        return self._episode.act(action)

    def check_action(self, action: object) -> None:
        """Check that `step` can take an action now, without a change of state.

        Raises:
            TypeError: If the action is not a string.
            gymnasium.error.ResetNeeded: If the episode has ended or not begun, or the last step was
                interrupted.
            gymnasium.error.ClosedEnvironmentError: If the environment is closed.
        """
        self._check_open()
        if not isinstance(action, str):
            raise TypeError(f"an action must be a string, not {type(action).__name__}")
        if self._episode is None or self._episode.done:
            raise gym.error.ResetNeeded("no episode is going on: call reset() first")
        if self._in_step:
            raise gym.error.ResetNeeded(INTERRUPTED_STEP_ERROR)

    def resolve(self, need: Need) -> Execution | bool:
        """Between the halves of `step`: serve the need, and return its result."""
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
        """The second half of `step`: take the result of the need.

        Args:
            result: An `Execution` or a verdict; `None` if the episode had no need.
        """
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
        """The text of the transcript in mode `"ansi"`, otherwise `None`.

        In mode `"human"`, `reset` and `step` print the text themselves.
        """
        if self.render_mode == "ansi":
            return "" if self._episode is None else self._episode.transcript.text
        return None

    @property
    def transcript(self) -> Transcript | None:
        """The whole record of the episode, faults included; `None` before the first `reset`."""
        return None if self._episode is None else self._episode.transcript

    def close(self) -> None:
        """End the episode's session, and close the sandbox.

        The sandbox stays open if the caller made it, or if other environments use it.
        """
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
            "transcript": transcript.as_shown(),
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
