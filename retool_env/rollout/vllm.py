"""VLLMPolicy: a vLLM engine of this process's own, on GPUs or the CPU. Token ids in, token ids out.

The engine batches continuously and keeps the key-value blocks of prefixes, so that a turn after a call reads the call's
result alone. It runs in processes of its own, which are spawned: a script that makes a policy does so below
`if __name__ == "__main__":`. New weights go there as files in memory where there is room (`/dev/shm`), else in the
folder for temporary files.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from retool_env.episode import Generation, Tokenizer
from retool_env.rollout.background import BackgroundLoop
from retool_env.rollout.gate import Gate
from retool_env.rollout.policy import PolicyUnavailable
from retool_env.rollout.weights import Inventory, Weights

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput
    from vllm.sampling_params import SamplingParams


class VLLMPolicy:
    """Samples with vLLM in processes of its own. May be used from any event loop, and from several.

    Args:
        model: A checkpoint's folder, or a Hub id.
        temperature: Of sampling; 0 is greedy.
        top_p: Nucleus mass. Training needs 1.0, so that log-probs are those of the model itself.
        enforce_eager: Whether to do without compilation: it starts sooner, and is as fast on a CPU; a GPU is slower.
        sleep_mode: Whether `sleep` can free the GPU's memory for a trainer; needs CUDA.
        **engine: Further arguments of vLLM's `AsyncEngineArgs`: `max_model_len`, `tensor_parallel_size`,
            `gpu_memory_utilization`, `dtype`, ...

    Raises:
        ImportError: If vLLM is missing.
        ValueError: If temperature or top-p are out of range, sleep mode is asked for without CUDA, or vLLM refuses an
            argument.
        RuntimeError: If the engine does not start; its own words are in the log.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        enforce_eager: bool = False,
        sleep_mode: bool = False,
        **engine: Any,
    ) -> None:
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if importlib.util.find_spec("vllm") is None:
            raise ImportError(
                "vLLM is missing: pip install 'retool-env[vllm]'; on a machine without a GPU, `make vllm` in a clone"
            )
        # A fork of a process in which torch has threads may hang. To be set before vLLM is imported.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from transformers import AutoTokenizer
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform

        if sleep_mode and not current_platform.is_cuda():
            raise ValueError(f"sleep mode needs CUDA, and this is {current_platform.device_name}")
        self.model = str(model)
        self.tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model)
        self.temperature = temperature
        self.top_p = top_p
        self.weight_version = 0
        self.sleep_mode = sleep_mode
        self._inventory: Inventory | None = None
        self._requests = itertools.count()
        self._gate = Gate()
        # Why the engine serves nothing: it is paused, with some of the new weights perhaps.
        self._broken = ""
        arguments = AsyncEngineArgs(
            model=self.model,
            enforce_eager=enforce_eager,
            enable_sleep_mode=sleep_mode,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="retool_env.rollout.vllm_worker.WeightLoader",
            disable_log_stats=True,
            **engine,
        )
        self._loop = BackgroundLoop("vllm")
        try:
            self._engine: Any = self._loop.run_blocking(_start(arguments))
        except BaseException:
            self._loop.close()
            raise
        self.context_length = int(self._engine.model_config.max_model_len)

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If the budget is below 1 or does not fit into the model's context.
            PolicyUnavailable: If the engine ends the turn.
            RuntimeError: If new weights were not loaded to the end, and none since.
        """
        if budget < 1 or len(token_ids) + budget > self.context_length:
            raise ValueError(
                f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of {self.context_length}"
            )
        return await self._loop.run(self._act(list(token_ids), list(stop), budget, seed))

    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights. Turns under way end first, and those that come wait.

        Args:
            version: The new weights' number.
            weights: All of the model's, adapters merged. `None`: the model's folder is read again.

        Raises:
            ValueError: If they are not those of the model, by name and shape; nothing has changed then.
            RuntimeError: If the engine can't load them. It then serves nothing until it has loaded others; so it does when this
                is cancelled while it loads.
        """
        await self._loop.run(self._update(version, weights))

    async def sleep(self) -> None:
        """Free the GPU's memory, weights and cache, until `wake_up`. Turns under way end first, and those that come wait.

        Raises:
            RuntimeError: If the policy was made without `sleep_mode`.
        """
        self._check_sleep_mode()
        await self._loop.run(self._sleep())

    async def wake_up(self) -> None:
        """Bring back the weights that were served before `sleep`.

        Raises:
            RuntimeError: If the policy was made without `sleep_mode`.
        """
        self._check_sleep_mode()
        await self._loop.run(self._wake_up())

    def close(self) -> None:
        """End the engine. May be called again."""
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None  # else it is ended again when the interpreter has little left
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _act(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> Generation:
        from vllm import TokensPrompt

        started = time.monotonic()
        prompt = TokensPrompt(prompt_token_ids=token_ids)
        sampling = self._sampling(stop, budget, seed)
        name = str(next(self._requests))
        async with self._gate.turn():
            if self._broken:
                raise RuntimeError(self._broken)
            version = self.weight_version
            async for output in self._engine.generate(prompt, sampling, name):
                last = output.outputs[0]
        return self._read(last, time.monotonic() - started, version)

    def _sampling(self, stop: list[str], budget: int, seed: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=seed % 2**63,
            max_tokens=budget,
            stop=stop,
            include_stop_str_in_output=True,
            # As our own decoding: a tag that holds a special token is one too.
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _read(self, output: CompletionOutput, seconds: float, version: int) -> Generation:
        sampled = tuple(output.token_ids)
        if output.finish_reason not in ("stop", "length"):
            raise PolicyUnavailable(f"the engine ended the turn: {output.finish_reason}")
        assert output.logprobs is not None
        logprobs = tuple(
            0.0 if self.temperature == 0 else step[token].logprob
            for token, step in zip(sampled, output.logprobs, strict=True)
        )
        reason: Literal["tag", "eos", "length"] = "length"
        if output.finish_reason == "stop":
            reason = "tag" if isinstance(output.stop_reason, str) else "eos"
        return Generation(sampled, logprobs, reason, seconds, version)

    async def _update(self, version: int, weights: Weights | None) -> None:
        if weights is None:
            await self._reload(version, self.model)
            return
        if self._inventory is None:
            self._inventory = await asyncio.to_thread(Inventory.of, self.model)
        place = _place(self._inventory.bytes)
        folder = Path(tempfile.mkdtemp(prefix="retool-weights-", dir=place))
        try:
            await self._inventory.write(folder, weights)
            await self._reload(version, str(folder))
        finally:
            shutil.rmtree(folder)

    async def _reload(self, version: int, path: str) -> None:
        async with self._gate.change():
            # A paused engine takes turns and never answers them, so that these must not reach it if this ends before its end.
            self._broken = (
                f"the engine did not load the weights of version {version} to the end, and may have some of them (its log says "
                "more): update its weights before it is to sample"
            )
            # Our turns have ended here, but the engine hears of a stop string later: `abort` ends what it still samples.
            await self._engine.pause_generation(mode="abort", clear_cache=True)
            try:
                await self._engine.collective_rpc("load_checkpoint", args=(path,))
            except Exception as error:  # of no type of its own
                raise RuntimeError(self._broken) from error
            await self._engine.resume_generation()
            self.weight_version, self._broken = version, ""

    async def _sleep(self) -> None:
        async with self._gate.change():
            await self._engine.sleep()

    async def _wake_up(self) -> None:
        await self._engine.wake_up()
        await self._engine.resume_generation()

    def _check_sleep_mode(self) -> None:
        if not self.sleep_mode:
            raise RuntimeError("this policy can't sleep: make it with sleep_mode=True, on CUDA")


async def _start(arguments: Any) -> Any:
    """The engine, in the loop in which it is to live."""
    from vllm import AsyncLLMEngine

    return AsyncLLMEngine.from_engine_args(arguments)


def _place(size: int) -> str | None:
    """A folder in memory, if there is room for so many bytes; otherwise `None`, the folder for temporary files."""
    memory = "/dev/shm"
    room = shutil.disk_usage(memory).free if os.path.isdir(memory) else 0
    return memory if room > size else None
