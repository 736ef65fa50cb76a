"""VLLMPolicy: a vLLM engine in child processes, on GPUs or the CPU. Token ids in, token ids out.

The engine batches continuously and keeps the key-value blocks of prefixes, so a turn after a call
computes only the result of the call. Its processes are spawned: a script must make the policy below
`if __name__ == "__main__":`. New weights reach the engine as files, in memory if there is room
(`/dev/shm`), else in the folder for temporary files.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, override

from retool_env.episode import Generation
from retool_env.errors import MissingPackage, SettingsError
from retool_env.files import folder_fault
from retool_env.rollout.checkpoint_files import reading
from retool_env.rollout.policy import (
    AtUpdate,
    Policy,
    PolicyUnavailable,
    check_at_update,
    check_room,
    check_sampling,
)
from retool_env.rollout.vllm.gate import Gate
from retool_env.rollout.vllm.partial_turn import PartialTurn
from retool_env.rollout.vllm.passing_folder import passing_folder, remove_abandoned
from retool_env.rollout.vllm.sampling import sampling, stop_reason
from retool_env.rollout.weight_files import write_whole_model
from retool_env.rollout.weights import Inventory, Weights
from retool_env.servers.background import BackgroundLoop

if TYPE_CHECKING:
    from vllm.outputs import CompletionOutput

_CUT_SECONDS = 0.1  # between two attempts to cut the requests under way
_LOOK_SECONDS = 1.0  # between two checks that the engine is alive


class VLLMPolicy(Policy):
    """Samples with a vLLM engine in child processes. It may be used from several event loops.

    Args:
        model: The folder of a checkpoint, or a Hub id.
        temperature: The sampling temperature; 0 is greedy.
        top_p: The nucleus mass of sampling. Training needs 1.0, so that log-probs equal the model's
            own.
        enforce_eager: Whether to skip compilation. The engine starts sooner; a GPU then samples
            more slowly, a CPU does not.
        at_update: The treatment of turns under way when new weights come: `"cut"`, `"wait"` or
            `"keep"`; see `retool_env.rollout.policy.AtUpdate`.
        sleep_mode: Whether `sleep` can free the GPU's memory for a trainer. It needs CUDA.
        **engine: Further arguments of vLLM's `AsyncEngineArgs`: `max_model_len`,
            `tensor_parallel_size`, `gpu_memory_utilization`, `dtype`, ...

    Raises:
        MissingPackage: If vLLM is missing.
        SettingsError: If temperature, top-p or `at_update` is out of range, sleep mode is asked for
            without CUDA, vLLM refuses an argument, or a pipe or a device lies at the path of the
            model.
        RuntimeError: If the engine does not start; the log has its error.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        enforce_eager: bool = False,
        sleep_mode: bool = False,
        at_update: AtUpdate = "cut",
        **engine: Any,
    ) -> None:
        check_sampling(temperature, top_p)
        self.at_update = check_at_update(at_update)
        if importlib.util.find_spec("vllm") is None:
            raise MissingPackage(
                "vLLM is missing: pip install 'retool-env[vllm]'; on a machine without a GPU, run "
                "`make vllm` in a clone"
            )
        # A fork of a process in which torch has threads may hang. vLLM reads this at its import.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from transformers import AutoTokenizer
        from vllm import AsyncEngineArgs
        from vllm.platforms import current_platform

        if sleep_mode and not current_platform.is_cuda():
            raise SettingsError(
                f"sleep mode needs CUDA, and this machine has {current_platform.device_name}"
            )
        if fault := folder_fault(model):
            raise SettingsError(f"model: {fault}")
        self.model = self.checkpoint = str(model)
        with reading(str(model)):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.temperature: float = temperature
        self.top_p = top_p
        self.sleep_mode = sleep_mode
        self._inventory: Inventory | None = None
        self._requests = itertools.count()
        self._under_way: set[str] = set()
        self.gate = Gate()
        """The gate through which requests and new weights pass."""
        # The reason why the engine serves nothing: it is paused, perhaps with half of new weights.
        self._broken = ""
        self._asleep = False
        remove_abandoned()
        arguments = AsyncEngineArgs(
            model=self.model,
            enforce_eager=enforce_eager,
            enable_sleep_mode=sleep_mode,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            worker_extension_cls="retool_env.rollout.vllm.worker.WeightLoader",
            disable_log_stats=True,
            **engine,
        )
        self.loop = BackgroundLoop("vllm")
        """The event loop in which the engine lives."""
        try:
            # vLLM's engine; `None` after `close`.
            self.engine: Any = self.loop.run_blocking(_start(arguments))
        except BaseException:
            self.loop.close()
            raise
        self.context_length = int(self.engine.model_config.max_model_len)

    @override
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If there are no tokens, the budget is below 1, or both together do not fit
                into the model's context.
            PolicyUnavailable: If the engine ends the turn, or fails at the turn and lives on.
            RuntimeError: If the engine has died, the policy is closed, or the last new weights were
                not loaded to the end.
        """
        check_room(token_ids, budget, self.context_length)
        return await self.loop.run(self._act(list(token_ids), list(stop), budget, seed))

    @override
    async def update_weights(self, version: int, weights: Weights | None = None) -> None:
        """Serve new weights. New turns wait.

        Turns under way are cut, and go on under the new weights; with `at_update="wait"` they end
        first.

        Args:
            version: The number of the new weights.
            weights: All weights of the model, adapters merged. `None`: the model's folder is read
                again.

        Raises:
            ValueError: If names or shapes differ from the model's. Nothing has changed then.
            OSError: If the weights can't be written for the engine. Nothing has changed then.
            RuntimeError: If the engine has died, sleeps, or can't load the weights. After a failed
                or a cancelled load the engine serves nothing until it has loaded other weights.
        """
        await self.loop.run(self._update(version, weights))

    async def sleep(self) -> None:
        """Free the GPU's memory of weights and cache until `wake_up`.

        Turns under way end first, and new turns wait.

        Raises:
            RuntimeError: If the policy was made without `sleep_mode`, or the engine has died.
        """
        self._check_sleep_mode()
        await self.loop.run(self._sleep())

    async def wake_up(self) -> None:
        """Bring back the weights that were served before `sleep`.

        Raises:
            RuntimeError: If the policy was made without `sleep_mode`, or the engine has died.
        """
        self._check_sleep_mode()
        await self.loop.run(self._wake_up())

    def close(self) -> None:
        """End the engine. It may be called again."""
        # A second shutdown, at the exit of the interpreter, would find modules already cleared.
        engine, self.engine = self.engine, None
        try:
            if engine is not None:
                engine.shutdown()
        finally:
            self.loop.close()

    async def _act(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> Generation:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        turn = PartialTurn(self.tokenizer, token_ids, stop, budget, seed)
        generation = None
        while generation is None:
            settings = SamplingParams(
                **sampling(
                    self.temperature, self.top_p, stop, turn.request_budget, turn.request_seed
                ),
                flat_logprobs=True,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            prompt = TokensPrompt(prompt_token_ids=turn.prompt)
            self.reread_tokens += len(turn.prompt) if turn.cut else 0
            name = str(next(self._requests))
            async with self.gate.request():
                engine = self._living()
                if self._broken:
                    raise RuntimeError(self._broken)
                version = self.weight_version
                if self.at_update == "keep":  # the blocks of older weights are still in the cache
                    prompt["cache_salt"] = str(version)
                self._under_way.add(name)
                try:
                    async for output in engine.generate(prompt, settings, name):
                        last = output.outputs[0]
                except EngineDeadError as error:
                    raise self._ended() from error
                except EngineGenerateError as error:  # its own text is empty
                    self._living()
                    reason = f"vLLM failed at a turn: {error.__cause__!r}"
                    raise PolicyUnavailable(reason) from error
                finally:
                    self._under_way.discard(name)
                self.mixed_turns += self.weight_version != version
            generation = self._add(turn, last, version)
        return generation

    def _add(self, turn: PartialTurn, output: CompletionOutput, version: int) -> Generation | None:
        """Add the tokens of a request to its turn; returns the turn if it has ended."""
        sampled = tuple(output.token_ids)
        reason = stop_reason(output.finish_reason, output.stop_reason)
        if reason is None:
            self._living()  # a dead or closed engine aborts its requests
            if output.finish_reason != "abort" or self.gate.open:
                raise PolicyUnavailable(f"the engine ended the turn: {output.finish_reason}")
        assert output.logprobs is not None
        logprobs = tuple(
            0.0 if self.temperature == 0 else step[token].logprob
            for token, step in zip(sampled, output.logprobs, strict=True)
        )
        return turn.add(sampled, logprobs, version, reason)

    async def _cut(self) -> None:
        """Cut the requests under way."""
        while self.gate.requests:
            # A request that has passed the gate may not have reached the engine yet.
            await self._answer(self._living().abort(list(self._under_way)))
            await self.gate.ended(_CUT_SECONDS)

    async def _update(self, version: int, weights: Weights | None) -> None:
        if weights is None:
            await self._reload(version, self.model)
            return
        if self._inventory is None:
            self._inventory = await asyncio.to_thread(Inventory.of, self.model)
        # The engine rounds to its data type, so nothing is lost if the files have that type.
        dtype = self._living().model_config.dtype
        with passing_folder(self._inventory.elements * dtype.itemsize) as folder:
            await write_whole_model(folder, self._inventory, weights, dtype)
            await self._reload(version, str(folder))

    async def _reload(self, version: int, path: str) -> None:
        cut, keeps = self._cut if self.at_update == "cut" else None, self.at_update == "keep"
        async with self.gate.change(cut, waits=not keeps):
            engine = self._living()
            if self._asleep:  # the memory of the weights is not allocated
                raise RuntimeError("the engine sleeps: call wake_up before update_weights")
            # A paused engine accepts turns and never answers them. If this is interrupted, the
            # engine stays paused, and `_broken` keeps turns away from it.
            self._broken = (
                f"the engine did not load the weights of version {version} to the end, and may "
                "hold some of them (the log says more): call update_weights before the next turn"
            )
            # Unless they are kept, our turns have ended. But the engine notices a stop string
            # later: `abort` ends the requests that it still samples.
            mode = "keep" if keeps else "abort"
            await self._answer(engine.pause_generation(mode=mode, clear_cache=not keeps))
            try:
                await self._answer(engine.collective_rpc("load_checkpoint", args=(path,)))
            except Exception as error:  # vLLM has no type for it
                await self._living().abort(list(self._under_way))  # the requests that were kept
                raise RuntimeError(self._broken) from error
            await self._answer(engine.resume_generation())
            self.weight_version, self._broken = version, ""

    async def _sleep(self) -> None:
        async with self.gate.change():
            engine, self._asleep = self._living(), True
            await self._answer(engine.sleep())

    async def _wake_up(self) -> None:
        engine = self._living()
        await self._answer(engine.wake_up())
        await self._answer(engine.resume_generation())
        self._asleep = False

    async def _answer[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call of the engine, and fail if the engine dies meanwhile.

        vLLM would let the caller wait for ever.
        """
        task = asyncio.create_task(call)
        try:
            while not task.done():
                self._living()
                await asyncio.wait([task], timeout=_LOOK_SECONDS)
            return task.result()
        except Exception:
            self._living()  # raises a clearer error if the engine has died
            raise
        finally:
            task.cancel()  # has no effect on a finished task

    def _living(self) -> Any:
        """The engine.

        Raises:
            RuntimeError: If the engine has died, or the policy is closed.
        """
        engine = self.engine
        if engine is None or engine.errored:
            raise self._ended()
        return engine

    def _ended(self) -> RuntimeError:
        if self.engine is None:
            return RuntimeError("this policy is closed: make a new policy")
        return RuntimeError("vLLM's engine process has died (see its log): make a new policy")

    def _check_sleep_mode(self) -> None:
        if not self.sleep_mode:
            raise RuntimeError("this policy can't sleep: make it with sleep_mode=True, on CUDA")


async def _start(arguments: Any) -> Any:
    """Start the engine in the event loop in which it is to live."""
    from vllm import AsyncLLMEngine

    return AsyncLLMEngine.from_engine_args(arguments)
