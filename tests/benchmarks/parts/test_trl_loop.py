"""TRL's loop on chains gives the same token ids as the engine."""

from benchmarks.parts.chains import (
    CHAIN_RULES,
    ChainPolicy,
    ChainTool,
    Turn,
    endless,
    make_chat_model,
    make_problems,
)
from benchmarks.parts.trl_loop import trl_chains
from retool_env.rollout import RolloutEngine
from retool_env.rollout.transformers.policy import TransformersPolicy

CHAINS = [
    (Turn(40, 0.05), Turn(25, 0.05), Turn(20, None)),
    (Turn(30, 0.05), Turn(50, None)),
    (Turn(24, None),),
]


def test_trls_own_loop_gives_the_same_ids() -> None:
    """TRL's loop, template and parsing give the engine's prompts, calls, results and samples."""
    model, tokenizer = make_chat_model(0)
    model.config.max_position_embeddings = 2048
    policy = TransformersPolicy(endless(model, tokenizer), tokenizer)
    chains = [*CHAINS, (Turn(10, 0.01),) * 3 + (Turn(5, None),)]
    problems, tool = make_problems(chains), ChainTool(chains)
    groups = RolloutEngine(ChainPolicy(policy, chains), CHAIN_RULES, tool).run(problems)
    rollouts = trl_chains(chained := ChainPolicy(policy, chains), problems, tool)
    for (transcript,), row in zip(groups, rollouts.rows, strict=True):
        assert row == [*transcript.prompt_ids, *transcript.completion_ids]
    assert rollouts.seconds >= sum(turn.tool_seconds or 0 for chain in chains for turn in chain)
    # TRL generates all rows of a turn together, so the numbers of turns never fall.
    assert [turn.turn for turn in chained.requests] == [0] * 4 + [1] * 3 + [2] * 2 + [3]
