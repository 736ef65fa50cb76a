"""Times two loops of TRL: `GRPOTrainer` with `tools=`, and with our `rollout_func`.

Trainer, tool loop and parsing are TRL's. Only the generation of one turn (`_generate_single_turn`)
is replaced, by a policy of this project or by fixed turns. The trainer's `_generate` is timed, from
prompts to finished rollouts, without training.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from agents.models.tiny import make_model
from benchmarks.parts.chains import (
    CHAIN_RULES,
    CHAIN_TOOLS,
    ChainPolicy,
    ChainTool,
    call_text,
    make_chat_model,
)
from retool_env.integrations.trl import EngineGRPOTrainer, EngineRollouts, problem_dataset
from retool_env.problem import Problem, ProblemList
from retool_env.protocol.calls import TOOL_NAME
from retool_env.protocol.hermes import RESPONSE_OPEN
from retool_env.rollout import RolloutEngine

Rows = list[list[int]]
Turn = Callable[[Rows], tuple[Rows, list[list[float]]]]
"""A function from contexts to the token ids of the next turns and their log-probs."""


class _Measured(Exception):
    """Ends the trainer's step as soon as the rollouts are done; the argument is `Rollouts`."""


@dataclass(frozen=True)
class Rollouts:
    """Finished rollouts."""

    seconds: float
    """The time from prompts to finished rollouts."""
    rows: Rows
    """The token ids of each rollout, prompt included."""


class _Timed(GRPOTrainer):
    """A trainer that times its first rollouts and then stops."""

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.perf_counter()
        prompt_ids, completion_ids, *_ = super()._generate(prompts)
        seconds = time.perf_counter() - began
        rows = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
        raise _Measured(Rollouts(seconds, rows))


class _Trainer(_Timed):
    """TRL's trainer with a replaced policy.

    Args:
        turn: Generates the turns.
        prompts: The conversations. They replace TRL's batch, which repeats each prompt.
    """

    def __init__(self, *args: Any, turn: Turn, prompts: list[Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._turn = turn
        self._conversations = prompts

    def _generate_single_turn(
        self, prompt_ids: Rows, *_: Any, **__: Any
    ) -> tuple[Rows, list[list[float]]]:
        return self._turn(prompt_ids)

    def _generate(self, prompts: list[Any]) -> Any:
        return super()._generate(self._conversations)


class _EngineTrainer(_Timed, EngineGRPOTrainer):
    """This project's trainer."""


def _measured(trainer: type[GRPOTrainer], tokenizer: Any, rollouts: int, **kwargs: Any) -> Rollouts:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    # The trainer needs a model, but this model neither samples nor trains.
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 8, "intermediate_size": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    model, _ = make_model(0, **sizes, **ends, max_position_embeddings=1_000_000)
    with tempfile.TemporaryDirectory() as folder:
        built = trainer(
            model=model,
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=rollouts,
                num_generations=rollouts,
                max_completion_length=100_000,
                max_steps=1,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
                shuffle_dataset=False,
            ),
            processing_class=tokenizer,
            reward_funcs=_no_reward,
            **kwargs,
        )
        try:
            built.train()
        except _Measured as measured:
            return measured.args[0]
    raise RuntimeError("the trainer ended without rollouts")


def _no_reward(completions: list[Any], **_: Any) -> list[float | None]:
    return [0.0] * len(completions)


def _tool(run: Callable[[str], Any]) -> Any:
    """Give a function the name and description of our environment's tool, in TRL's form."""
    function = CHAIN_TOOLS[0]["function"]
    run.__name__ = TOOL_NAME
    argument = function["parameters"]["properties"]["code"]["description"]
    run.__doc__ = f"{function['description']}\n\nArgs:\n    code: {argument}"
    return run


def trl_chains(policy: ChainPolicy, problems: Sequence[Problem], tool: ChainTool) -> Rollouts:
    """Run chains with TRL's tool loop.

    All rows of a turn are generated at once. The tool is a coroutine, which TRL awaits row by row.

    Args:
        policy: The policy of the chains.
        problems: The problems of the chains.
        tool: The sandbox of the chains.
    """

    def turn(contexts: Rows) -> tuple[Rows, list[list[float]]]:
        async def all_at_once() -> list[Any]:
            return await asyncio.gather(*(policy.act(ids, (), 1, 0) for ids in contexts))

        turns = asyncio.run(all_at_once())
        return [list(t.token_ids) for t in turns], [list(t.logprobs) for t in turns]

    # Without a return type: TRL would show it to the model, and our environment does not.
    async def run(code: str):
        return (await tool.run_async(code)).stdout.removesuffix("\n")

    prompts = [[{"role": "user", "content": CHAIN_RULES.prompt(p)}] for p in problems]
    rollouts = max(2, len(problems))  # the smallest group that TRL accepts
    return _measured(
        _Trainer,
        policy.tokenizer,
        rollouts,
        train_dataset=Dataset.from_dict({"prompt": [prompts[0]] * rollouts}),
        tools=[_tool(run)],
        turn=turn,
        prompts=prompts,
    )


def trl_tool_loop(rollouts: int, tool_seconds: float, asynchronous: bool) -> float:
    """Time TRL's tool loop with fixed turns, in seconds. Each rollout calls the tool once.

    Args:
        rollouts: The number of rollouts.
        tool_seconds: The time that a tool call takes.
        asynchronous: Whether the tool is a coroutine function; TRL accepts both.

    Raises:
        RuntimeError: If the number of tool calls is not the number of rollouts.
    """
    calls = 0

    def wait(code: str) -> str:
        nonlocal calls
        calls += 1
        time.sleep(tool_seconds)
        return "done"

    async def wait_async(code: str) -> str:
        nonlocal calls
        calls += 1
        await asyncio.sleep(tool_seconds)
        return "done"

    _, tokenizer = make_chat_model(0)
    called = tokenizer.convert_tokens_to_ids(RESPONSE_OPEN)
    call, end = (
        tokenizer.encode(text + tokenizer.eos_token, add_special_tokens=False)
        for text in (call_text("1"), "The end.")
    )

    def turn(contexts: Rows) -> tuple[Rows, list[list[float]]]:
        turns = [end if called in ids else call for ids in contexts]
        return [list(ids) for ids in turns], [[0.0] * len(ids) for ids in turns]

    prompt = [{"role": "user", "content": "?"}]
    measured = _measured(
        _Trainer,
        tokenizer,
        rollouts,
        train_dataset=Dataset.from_dict({"prompt": [prompt] * rollouts}),
        tools=[_tool(wait_async if asynchronous else wait)],
        turn=turn,
        prompts=[prompt] * rollouts,
    )
    if calls != rollouts:
        raise RuntimeError(f"{rollouts} rollouts made {calls} calls, not one each")
    return measured.seconds


def engine_tool_loop(rollouts: int, engine: RolloutEngine) -> float:
    """Time TRL's trainer with our `rollout_func`, in seconds.

    Args:
        rollouts: The number of rollouts.
        engine: The engine that runs them.

    Raises:
        RuntimeError: If the number of rows is not the number of rollouts.
    """
    problems = ProblemList([Problem("0", "?", "1")])
    run = EngineRollouts(engine, problems)
    try:
        measured = _measured(
            _EngineTrainer,
            engine.policy.tokenizer,
            rollouts,
            train_dataset=problem_dataset(problems, rollouts, 0),
            rollout_func=run,
        )
    finally:
        run.close()
    if len(measured.rows) != rollouts:
        raise RuntimeError(f"{rollouts} rollouts gave {len(measured.rows)} rows, not one each")
    return measured.seconds
