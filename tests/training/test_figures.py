"""Figures of episodes, and of the distance between trained model and sampling policy."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch

from retool_env.metrics import measure
from retool_env.problems import Problem
from retool_env.sandbox import Execution, Outcome
from retool_env.training.figures import Distance, episode_figures, episode_reward
from retool_env.transcript import Span, StopReason, Transcript


def episode(reward, *outcomes, reason=StopReason.ANSWERED):
    """An episode whose calls ended so."""
    spans = [Span("prompt", "?")]
    for outcome in outcomes:
        shown = Execution(outcome, "7")
        spans += [
            Span("model", "<code>\nprint(7)\n</code>"),
            Span("env", "\n<interpreter>\n7\n</interpreter>\n", execution=shown),
        ]
    spans.append(Span("model", "<answer>7</answer>"))
    scored = reason is not StopReason.INFRASTRUCTURE
    return Transcript(
        Problem("0", "?", "7"),
        tuple(spans),
        stop_reason=reason,
        correct=reward > 0 if scored else None,
        reward=reward if scored else None,
    )


GOOD, BAD = Outcome.OK, Outcome.RUNTIME_ERROR
EPISODES = [
    episode(1.0, GOOD, BAD),
    episode(-1.0),
    episode(1.0, GOOD),
    episode(-1.0, BAD, reason=StopReason.INFRASTRUCTURE),
    episode(-1.0, reason=StopReason.CANCELLED),
]


def test_the_environments_figures_are_means_over_episodes_and_over_calls():
    figures = episode_figures(t for t in EPISODES if t.scored)
    assert {name: statistics.fmean(each) for name, each in figures.items()} == {
        "env/accuracy": 0.5,
        "env/code_ratio": 0.5,
        "env/calls_per_episode": 0.75,
        "env/void_turns": 0.0,
        "env/call_pass_rate": pytest.approx(2 / 3),
        "env/outcome/syntax_error": 0.0,
        "env/outcome/runtime_error": pytest.approx(1 / 3),
        **{f"env/outcome/{name}_limit": 0.0 for name in ("memory", "output")},
        "env/outcome/timeout": 0.0,
        "env/outcome/blocked": 0.0,
        "env/recovery": 0.0,
    }
    assert episode_figures([EPISODES[1]]).keys() == {
        *("env/accuracy", "env/code_ratio", "env/calls_per_episode", "env/void_turns")
    }
    assert episode_figures([]) == {}


def test_recovery_and_void_turns_are_the_figures_of_an_evaluation():
    cut = episode(-1.0, BAD, reason=StopReason.TOKEN_BUDGET)
    episodes = [
        *EPISODES,
        episode(1.0, BAD, GOOD),
        episode(1.0, BAD, BAD, Outcome.TIMEOUT, GOOD, GOOD),
        dataclasses.replace(cut, spans=cut.spans[:-1]),  # no turn follows the failed call
        Transcript(
            Problem("1", "?", "7"),
            (Span("prompt", "?"), Span("model", "hm")),
            stop_reason=StopReason.VOID_TURN,
            correct=False,
            reward=-1.0,
        ),
    ]
    figures = episode_figures(t for t in episodes if t.scored)
    measured = {figure.key: figure for figure in measure(episodes)}
    recovery = measured["recovery/ran@1/had_turn"]
    assert statistics.fmean(figures["env/recovery"]) == pytest.approx(recovery.mean)
    assert len(figures["env/recovery"]) == recovery.count == 5
    assert figures["env/void_turns"].count(1.0) == 1


def test_rewards_are_those_of_episodes_that_are_trained_on_and_figures_those_of_all_scored():
    logged = []
    untrained = [[EPISODES[0]], [], [], [], []]
    rewards = episode_reward(EPISODES, lambda *figure: logged.append(figure), untrained=untrained)
    assert rewards == [1.0, -1.0, 1.0, None, None]
    accuracy = [number for name, number in logged if name == "env/accuracy"]
    assert accuracy == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert episode_reward(EPISODES) == rewards


def alone(tensor):
    return tensor


def test_the_distance_is_over_the_models_tokens_of_all_passes():
    own, passes = [], []
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        logps, sampled = -torch.rand(2, 4, 5, generator=generator)
        mask = torch.rand(4, 5, generator=generator) < 0.6
        own += (logps - sampled)[mask].tolist()
        # What stands elsewhere is not looked at.
        passes.append((logps.masked_fill(~mask, math.nan), sampled.masked_fill(~mask, 1e4), mask))
    expected = {
        "offpolicy/difference": statistics.fmean(map(abs, own)),
        "offpolicy/difference_max": max(map(abs, own)),
        "offpolicy/kl": statistics.fmean(math.expm1(each) - each for each in own),
        "offpolicy/weight": statistics.fmean(map(math.exp, own)),
        "offpolicy/effective_tokens": sum(map(math.exp, own)) ** 2
        / sum(math.exp(2 * each) for each in own)
        / len(own),
    }
    whole = Distance()
    for each in passes:
        whole.add(*each)
    assert whole.figures(alone) == pytest.approx(expected, rel=1e-4)
    assert whole.figures(alone) == {}  # it begins anew
    halves = [Distance(), Distance()]
    for number, each in enumerate(passes):
        halves[number % 2].add(*each)
    other = []
    halves[1].figures(lambda row: other.append(row) or row)
    found = halves[0].figures(lambda row: torch.cat([row, *other]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_distance_is_finite_however_far_apart_they_are_and_nothing_without_tokens():
    far = Distance()
    mask = torch.ones(1, 2, dtype=torch.bool)
    far.add(torch.tensor([[-1e4, 0.0]]), torch.tensor([[0.0, -94.0]]), mask)
    assert all(map(math.isfinite, far.figures(alone).values()))
    far.add(torch.zeros(1, 2), torch.ones(1, 2), ~mask)
    assert far.figures(alone) == {"offpolicy/difference_max": 0.0}
