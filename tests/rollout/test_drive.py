"""One episode, driven from any of its turns to its end."""

from __future__ import annotations

import asyncio

from helpers.notebooks import Notebooks

from agents.models.tiny import make_tokenizer
from retool_env.episode import Episode
from retool_env.interpreter import Interpreter
from retool_env.problems import Problem
from retool_env.rollout import PolicyUnavailable, ScriptedPolicy
from retool_env.rollout.drive import drive
from retool_env.rollout.progress import Progress
from retool_env.rules import Rules
from retool_env.transcript import StopReason

PROBLEM = Problem("p", "6 * 7?", "42")
RULES = Rules(max_tokens=400, prompt_template="{query}\n")


class Watched(ScriptedPolicy):
    """Writes one program, then the answer; it notes the seeds of its turns."""

    def __init__(self) -> None:
        super().__init__(self.turn, make_tokenizer())
        self.seeds: list[int] = []

    def turn(self, text: str) -> str:
        return "<answer>42</answer>" if "<interpreter>" in text else "<code>6 * 7</code>"

    async def act(self, token_ids, stop, budget, seed):
        self.seeds.append(seed)
        return await super().act(token_ids, stop, budget, seed)


def driven(policy, episode: Episode, seed=(1, 2)) -> Progress:
    progress = Progress()
    interpreter = Interpreter(Notebooks())
    asyncio.run(drive(episode, policy, interpreter, seed, progress, lambda turn: None))
    return progress


def test_an_episode_runs_its_programs_and_is_graded():
    policy = Watched()
    episode = Episode(PROBLEM, RULES, policy.tokenizer)
    progress = driven(policy, episode)
    assert episode.transcript.correct and len(episode.transcript.calls) == 1
    assert progress.tokens == sum(episode.transcript.loss_mask)
    assert (progress.generating, progress.executing, progress.grading) == (0, 0, 0)


def test_turns_have_seeds_of_their_own_which_the_numbers_of_the_episode_decide():
    policies = [Watched() for _ in range(3)]
    for policy, seed in zip(policies, [(1, 2), (1, 2), (1, 3)], strict=True):
        driven(policy, Episode(PROBLEM, RULES, policy.tokenizer), seed)
    first, same, other = (policy.seeds for policy in policies)
    assert first == same and len({*first, *other}) == 4


def test_an_unavailable_policy_ends_the_attempt():
    class Down(Watched):
        async def act(self, token_ids, stop, budget, seed):
            raise PolicyUnavailable("down")

    policy = Down()
    episode = Episode(PROBLEM, RULES, policy.tokenizer)
    assert driven(policy, episode).generating == 0
    assert episode.transcript.stop_reason is StopReason.INFRASTRUCTURE
