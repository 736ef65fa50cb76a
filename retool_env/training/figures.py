"""Figures to log: of episodes, of their sampling, and of the distance between two policies.

The distance is measured between the trained model and the policy that sampled the episodes.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from retool_env.errors import PolicyUnavailable
from retool_env.execution import Outcome
from retool_env.protocol.turn import TurnKind
from retool_env.rollout.policy import BasePolicy
from retool_env.rollout.progress import Progress
from retool_env.training.correction import LOG_RATIO_BOUND
from retool_env.training.dynamic_sampling import Sampled
from retool_env.training.processes import gathered
from retool_env.training.rows import is_trainable
from retool_env.training.step import Step
from retool_env.transcript import StopReason, Transcript

logger = logging.getLogger(__name__)

FAILURES = tuple(o for o in Outcome if o not in (Outcome.OK, Outcome.INFRASTRUCTURE))
"""The outcomes of failed programs."""

_MANY_CUT = 0.05
"""A warning is logged once the deadline cuts this share of a batch's episodes, or more."""


def episode_figures(transcripts: Iterable[Transcript]) -> dict[str, list[float]]:
    """The numbers whose means are the environment's figures.

    | figure                    | one number for each       | value                                |
    |---------------------------|---------------------------|--------------------------------------|
    | `env/accuracy`            | episode                   | 1 for a right answer                 |
    | `env/code_ratio`          | episode                   | 1 if it called the interpreter       |
    | `env/calls_per_episode`   | episode                   | the number of its calls              |
    | `env/void_turns`          | turn of the model         | 1 if it is neither code nor answer   |
    | `env/call_pass_rate`      | call                      | 1 for a program without an error     |
    | `env/outcome/<outcome>`   | call                      | 1 if its program failed in this way  |
    | `env/faults`              | call                      | 1 if a fault was injected            |
    | `env/recovery`            | failed call before a turn | 1 if the next call ran (`recovered`) |

    Args:
        transcripts: Episodes that did not fail. Their calls count as shown to the model, with
            injected faults.

    Returns:
        Lists by the figures' names. Figures of calls are missing without a case, and `env/faults`
        if no fault was ordered.
    """
    episodes = [(transcript, transcript.calls) for transcript in transcripts]
    turns = [turn for transcript, _ in episodes for turn in transcript.turns]
    figures = {
        "env/accuracy": [float(bool(transcript.correct)) for transcript, _ in episodes],
        "env/code_ratio": [float(bool(calls)) for _, calls in episodes],
        "env/calls_per_episode": [float(len(calls)) for _, calls in episodes],
        "env/void_turns": [float(turn.kind is TurnKind.VOID) for turn in turns],
    }
    if calls := [call for _, some in episodes for call in some]:
        figures["env/call_pass_rate"] = [float(call.ok) for call in calls]
        for outcome in FAILURES:
            hits = [float(call.execution.outcome is outcome) for call in calls]
            figures[f"env/outcome/{outcome}"] = hits
        if any(call.execution.fault for call in calls):
            figures["env/faults"] = [float(call.faulty) for call in calls]
    figures["env/recovery"] = [
        float(ran) for transcript, some in episodes if some for ran in recovered(transcript)
    ]
    return {name: numbers for name, numbers in figures.items() if numbers}


def recovered(transcript: Transcript) -> list[bool]:
    """For each failed call that the model answers with a turn: whether the next call ran.

    This is the case of the figure `recovery/ran@1/had_turn` of an evaluation.
    """
    calls, response = transcript.calls, transcript.response
    results = [at for at, span in enumerate(response) if span.execution is not None]
    last = max((at for at, span in enumerate(response) if span.author == "model"), default=-1)
    return [
        any(after.ok for after in calls[number + 1 : number + 2])
        for number, (call, at) in enumerate(zip(calls, results, strict=True))
        if not call.ok and at < last
    ]


def episode_reward(
    transcript: Sequence[Transcript],
    log_metric: Callable[[str, float], None] | None = None,
    untrained: Sequence[Sequence[Transcript]] = (),
    **_: Any,
) -> list[float | None]:
    """The environment's rewards, as a reward function of TRL.

    Args:
        transcript: The episodes.
        log_metric: Logs one number under a figure's name. It is called with every number of
            `episode_figures`, so that TRL's means are over the episodes of all processes. `None`:
            nothing is logged.
        untrained: Episodes that were sampled with `transcript` but are not trained on. They count
            in the figures, so that the means are over all episodes that were begun.

    Returns:
        One reward an episode. An episode that is not scored, or that a deadline cut, has `None`,
        which TRL leaves out.
    """
    if log_metric is not None:
        scored = (episode for episode in transcript if episode.scored)
        for name, numbers in episode_figures(itertools.chain(scored, *untrained)).items():
            for number in numbers:
                log_metric(name, number)
    return [t.reward if is_trainable(t) else None for t in transcript]


class Distance:
    """The distance between the trained model and the sampling policy, over a step's sampled tokens.

    Each step logs

    - `offpolicy/difference` and `offpolicy/difference_max`, the mean and the maximum of the
      absolute difference of log-probs,
    - `offpolicy/kl`, the KL divergence of the sampling policy from the trained model (the estimator
      k3 of Schulman, 2020),
    - `offpolicy/weight`, the mean importance ratio before it is clipped,
    - `offpolicy/effective_tokens`, the effective sample size of tokens with these ratios as weights
      (Kish), as a share of the tokens.
    """

    def __init__(self) -> None:
        self._most: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None

    @torch.no_grad()
    def add(self, logps: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> None:
        """Add the tokens of one forward pass.

        Args:
            logps: The trained model's log-probs, shape `(B, T)`.
            sampled: The sampling policy's log-probs, shape `(B, T)`.
            mask: Whether the model sampled the token, shape `(B, T)`.
        """
        difference = (logps.float() - sampled.float())[mask]
        bounded = difference.clamp(max=LOG_RATIO_BOUND)
        ratio, far = bounded.exp(), difference.abs()
        terms = far, ratio - 1 - bounded, ratio, ratio.square(), torch.ones_like(ratio)
        sums = torch.stack([numbers.sum() for numbers in terms])
        most = far.max() if far.numel() else far.new_zeros(())
        self._sums = sums if self._sums is None else self._sums + sums
        self._most = most if self._most is None else most.maximum(self._most)

    def figures(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """The figures of the tokens added since the last call. All processes must call it.

        Args:
            gather: Joins the tensors of all processes along their first dimension: shape `(1, 6)`
                on each process becomes `(processes, 6)`.

        Returns:
            The figures by their names; empty if no pass was added.
        """
        if self._sums is None or self._most is None:
            return {}
        everywhere = gather(torch.cat([self._most[None], self._sums])[None])
        self._sums = self._most = None
        figures = {"offpolicy/difference_max": everywhere[:, 0].max().item()}
        far, kl, weight, squares, tokens = everywhere[:, 1:].sum(0).tolist()
        if tokens:
            figures["offpolicy/difference"] = far / tokens
            figures["offpolicy/kl"] = kl / tokens
            figures["offpolicy/weight"] = weight / tokens
            figures["offpolicy/effective_tokens"] = weight**2 / squares / tokens
        return figures


class RolloutFigures:
    """Logs how a trainer's batches of episodes were sampled, over all processes.

    Each step logs

    - `rollout/seconds`, from a batch's first prompt to the end of its last episode,
    - `rollout/tokens`, the tokens that the model wrote since the last step, used or not,
    - `rollout/waited`, the seconds that the trainer waited for rollouts and weights,
    - `rollout/tool_seconds`, the duration of tool calls, summed over episodes,
    - `rollout/weight_lag` and `rollout/weight_lag_max`, the mean and the maximum number of
      optimizer steps between the weights that sampled a token and the trainer's weights,
    - `rollout/weight_versions`, the mean number of weight versions that sampled an episode,
    - `rollout/cut_turns`, the number of turns that several weight versions sampled,
    - `rollout/mixed_turns`, if the policy keeps turns over an update (`Policy.at_update`): the
      number of turns since the last step that went on under new weights with an older cache,
    - `rollout/failed`, the number of episodes that are not scored,
    - `rollout/cut`, `rollout/dropped` and `rollout/retried`, episodes since the last step,
    - `rollout/resampled`, the number of groups that were resampled,
    - `rollout/carried`, the number of groups that began in another batch (see
      `retool_env.training.dynamic_sampling`),
    - `env/deadline_cut`, the share of the batch's episodes that the deadline cut.

    Args:
        progress: The engine's counts, which the engine goes on increasing.
        deadline: Seconds after which a batch's episodes are cut; `None`: there is no deadline.
        policy: The policy that samples.
    """

    def __init__(self, progress: Progress, deadline: float | None, policy: BasePolicy) -> None:
        self._progress = progress
        self._policy: Any = policy
        self._mixed = 0
        self._deadline = deadline
        self._counted = dataclasses.replace(progress)
        self._warned = False

    def log(
        self,
        step: Step,
        transcripts: Sequence[Transcript],
        waited: float,
        sampled: Sampled,
    ) -> None:
        """Log a batch's figures, the same on every process. All processes must call it.

        Args:
            step: The trainer's request for the batch.
            transcripts: The episodes of this process.
            waited: Seconds that the trainer waited.
            sampled: The groups and episodes of this process, with their counts.

        Raises:
            RuntimeError: If no episode of any process can be trained on.
        """
        now, before = self._progress, self._counted
        self._counted = dataclasses.replace(now)
        spans = [span for transcript in transcripts for span in transcript.spans]
        lags = [(step.number - version, n) for span in spans for version, n in span.weights]
        sums = {
            name: float(getattr(now, name) - getattr(before, name))
            for name in ("tokens", "tool_seconds", "cut", "dropped", "retried")
        }
        sums |= {"resampled": sampled.resampled, "carried": sampled.carried}
        sums |= {"cut_turns": sum(bool(s.weight_runs) for s in spans)}
        sums |= {"sampled": sum(n for _, n in lags), "weight_lag": sum(lag * n for lag, n in lags)}
        sums["weight_versions"] = sum(
            len({version for span in transcript.spans for version, _ in span.weights})
            for transcript in transcripts
        )
        if self._policy.at_update == "keep":
            sums["mixed_turns"] = float(self._policy.mixed_turns - self._mixed)
            self._mixed = self._policy.mixed_turns
        sums["trainable"] = sum(map(is_trainable, transcripts))
        sums["failed"] = sum(not transcript.scored for transcript in transcripts)
        sums["deadline_cut"] = sum(t.stop_reason is StopReason.CANCELLED for t in transcripts)
        sums["episodes"] = len(transcripts)
        most = {"seconds": sampled.seconds, "waited": waited, "weight_lag_max": 0}
        most["weight_lag_max"] = max((lag for lag, _ in lags), default=0)
        numbers = zip(*gathered(step.accelerator, *sums.values(), *most.values()), strict=True)
        named = zip((*sums, *most), numbers, strict=True)
        figures = {name: (max if name in most else sum)(values) for name, values in named}
        figures["weight_versions"] /= figures["episodes"]
        cut = figures.pop("deadline_cut") / figures.pop("episodes")
        if not figures.pop("trainable"):
            raise PolicyUnavailable(self._nothing(step.number, cut, len(transcripts)))
        if cut >= _MANY_CUT and not self._warned and step.accelerator.is_main_process:
            self._warned = True
            logger.warning(
                "the deadline of %g s cut %.0f %% of the episodes of step %d, which are not "
                "trained on. Long episodes are cut more often than short ones, so that the model "
                "learns to write less: set a later deadline",
                self._deadline,
                100 * cut,
                step.number,
            )
        step.log("env/deadline_cut", cut)
        if sampled := figures.pop("sampled"):
            figures["weight_lag"] /= sampled
        else:  # a policy without weights
            for name in ("weight_lag", "weight_lag_max", "weight_versions", "cut_turns"):
                del figures[name]
        for name, value in figures.items():
            step.log(f"rollout/{name}", value)

    def _nothing(self, step: int, cut: float, episodes: int) -> str:
        """The text of the error that nothing is left to train on."""
        if cut:
            return (
                f"no episode of step {step} is left to train on: {cut:.0%} were cut by the "
                f"deadline of {self._deadline:g} s, and the others failed. Set a later deadline; "
                "the run can go on from its last checkpoint"
            )
        return (
            f"all {episodes} episodes of step {step} failed, in the sandbox or the policy: check "
            "the sandbox with `retool doctor`; the run can go on from its last checkpoint"
        )
