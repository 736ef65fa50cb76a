"""TRL's own tool loop, timed: `GRPOTrainer` with `tools=`, whose turns are written beforehand.

The trainer, its loop and its parsing are TRL's; what is replaced is the generation of one turn, so that no time is lost
there: each rollout calls the tool once, and then ends.
"""

import asyncio
import contextlib
import importlib.resources
import os
import tempfile
import time
from typing import Any

from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from agents.tiny import make_tokenizer

CALL = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call><|im_end|>'


class _Measured(Exception):
    """The rollouts are done, and the step need not go on."""


class _Trainer(GRPOTrainer):
    seconds = 0.0

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *_: Any, **__: Any
    ) -> tuple[list[list[int]], None]:
        tokenizer = self.processing_class
        called = tokenizer.convert_tokens_to_ids("<tool_response>")
        turns = ["The end.<|im_end|>" if called in ids else CALL for ids in prompt_ids]
        return [tokenizer.encode(turn, add_special_tokens=False) for turn in turns], None

    def _generate(self, prompts: list[Any]) -> Any:
        began = time.perf_counter()
        super()._generate(prompts)
        self.seconds = time.perf_counter() - began
        raise _Measured


def _tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tags = ["tool_call", "tool_response"]
    tokenizer.add_tokens([f"<{slash}{tag}>" for tag in tags for slash in ("", "/")])
    tokenizer.eos_token = "<|im_end|>"
    templates = importlib.resources.files("trl") / "chat_templates"
    tokenizer.chat_template = (templates / "qwen3.jinja").read_text()
    return tokenizer


def trl_tool_loop(rollouts: int, tool_seconds: float, asynchronous: bool) -> float:
    """Seconds that TRL takes for rollouts which call a tool once.

    Args:
        rollouts: How many.
        tool_seconds: What the tool takes.
        asynchronous: Whether the tool is a coroutine function, which TRL also takes.

    Raises:
        RuntimeError: If the tool was not called once by each.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    calls = 0

    def wait() -> str:
        """Wait a little."""
        nonlocal calls
        calls += 1
        time.sleep(tool_seconds)
        return "done"

    async def wait_async() -> str:
        """Wait a little."""
        nonlocal calls
        calls += 1
        await asyncio.sleep(tool_seconds)
        return "done"

    wait_async.__name__ = "wait"
    tokenizer = _tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=8192,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    prompts = [[{"role": "user", "content": f"{i}?"}] for i in range(rollouts)]
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=folder,
                per_device_train_batch_size=rollouts,
                num_generations=2,
                max_completion_length=4096,
                max_steps=1,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            tools=[wait_async if asynchronous else wait],
        )
        with contextlib.suppress(_Measured):
            trainer.train()
    if calls != rollouts:
        raise RuntimeError(f"{rollouts} rollouts made {calls} calls")
    return trainer.seconds
