"""The contract of policies: their defaults, and policies that inherit nothing."""

import asyncio

import pytest

from agents.models.tiny import make_tokenizer
from retool_env.episode import Generation
from retool_env.problems import Problem
from retool_env.rollout import Policy, RolloutEngine, ScriptedPolicy, TextGeneration, TextPolicy
from retool_env.rollout.openai.policy import OpenAIPolicy
from retool_env.rollout.policy import as_policy
from retool_env.rollout.simulated import SimulatedPolicy
from retool_env.rollout.transformers.policy import TransformersPolicy
from retool_env.rollout.vllm import VLLMPolicy, VLLMServerPolicy
from retool_env.rules import Rules
from retool_env.transcript import check_transcript

PROBLEM = Problem(id="p", question="6 * 7?", answer="42")
RULES = Rules(interpreter=False, max_tokens=1000)


class Own:
    """A policy that inherits no class of the project."""

    def __init__(self):
        self.tokenizer = make_tokenizer()
        self.context_length = 10_000
        self.weight_version = 3

    async def act(self, token_ids, stop, budget, seed):
        ids = tuple(self.tokenizer.encode("<answer>42</answer>", add_special_tokens=False))
        return Generation(ids, (0.0,) * len(ids), "tag", weight_version=self.weight_version)

    async def update_weights(self, version, weights=None):
        self.weight_version = version


class OwnText:
    async def write(self, transcript, stop, seed):
        return TextGeneration("<answer>42</answer>", "tag")


@pytest.mark.parametrize(
    "policy",
    [ScriptedPolicy, SimulatedPolicy, TransformersPolicy, VLLMPolicy, VLLMServerPolicy],
)
def test_each_policy_of_token_ids_is_one(policy):
    assert issubclass(policy, Policy) and not policy.__abstractmethods__


def test_the_policy_of_an_api_is_one_of_text():
    assert issubclass(OpenAIPolicy, TextPolicy) and not OpenAIPolicy.__abstractmethods__


@pytest.mark.parametrize("policy", [ScriptedPolicy(lambda _: "", make_tokenizer()), Own()])
def test_what_a_policy_does_not_say_has_a_default(policy):
    policy = as_policy(policy)
    assert isinstance(policy, Policy) and not isinstance(policy, TextPolicy)
    assert (policy.temperature, policy.top_p, policy.model, policy.checkpoint) == (
        None,
        1,
        None,
        None,
    )
    assert not policy.sleep_mode and not policy.shares_servers
    policy.clear_cache()
    for refused in (policy.sleep(), policy.wake_up(), policy.follow(1)):
        with pytest.raises(RuntimeError):
            asyncio.run(refused)
    with policy:  # and closes it, which may be done again
        policy.close()


def test_a_policy_that_inherits_nothing_runs_and_keeps_what_it_has():
    own = Own()
    engine = RolloutEngine(own, RULES, None)
    asyncio.run(engine.policy.update_weights(5))
    assert own.weight_version == engine.policy.weight_version == 5
    [[transcript]] = engine.run([PROBLEM])
    check_transcript(transcript)
    assert transcript.correct and transcript.weight_version == 5
    own.top_p = 0.5
    assert engine.policy.top_p == 0.5 and isinstance(engine.policy, Own)


def test_so_does_one_of_text():
    [[transcript]] = RolloutEngine(OwnText(), Rules(interpreter=False), None).run([PROBLEM])
    assert transcript.correct and transcript.spans[0].token_ids is None


def test_what_is_no_policy_is_told_what_to_inherit():
    with pytest.raises(TypeError, match="object is not a policy: inherit retool_env"):
        RolloutEngine(object(), RULES, None)


def test_a_policy_that_lacks_a_method_is_refused_when_it_is_made():
    class Half(Policy):
        async def update_weights(self, version, weights=None):
            pass

    with pytest.raises(TypeError, match="act"):
        Half()
