"""Measures new weights on their way to vLLM's server for the GPU suite."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import AutoTokenizer

from agents.base.model import lora_config
from agents.models.tiny import make_model, make_tokenizer
from benchmarks.memory import build, count
from benchmarks.parts.gpu_task import CUDA, MEDIUM, Task, config_32b, save_model
from retool_env.rollout.vllm.server import VLLMServerPolicy
from retool_env.training.trained_weights import trained_adapter, trained_weights

ROWS, TOKENS, UPDATES = 8, 400, 4
RANK = 16
_MEMORY = Path("/dev/shm")


def served(task: Task) -> dict[str, Any]:
    """Part `served`: seconds of an update by each way, and to the first token under new weights.

    Turns are under way at each update, and are cut. A turn that is cut goes on, so all turns end.
    The server's weights are random. It shares the GPU with this process, except with `nccl`, which
    needs two GPUs.
    """
    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vLLM is not installed"}
    folder = save_model(task.folder / "model", task.small, **MEDIUM)
    dtype = torch.bfloat16 if CUDA else torch.float32
    figures: dict[str, Any] = {}
    for way in ("files", "adapter", "nccl" if CUDA else "gloo"):
        if way == "nccl" and torch.cuda.device_count() < 2:
            figures[way] = {"skipped": "NCCL needs a GPU for each process, and there is one"}
            continue
        trained: Any = make_model(1, **({} if task.small else MEDIUM))[0]
        if way == "adapter":
            trained = get_peft_model(trained, lora_config(RANK))

        def weights(way: str = way, trained: Any = trained) -> Any:
            if way == "adapter":
                return trained_adapter(trained)
            return dict(trained_weights(trained, dtype))

        with server(folder, way, task) as url:
            files = None if way in ("nccl", "gloo") else task.folder / f"weights-{way}"
            figures[way] = measured(url, folder, way, files, weights)
    return figures


def served32b(task: Task) -> dict[str, Any]:
    """Part `served32b`: an update of vLLM's server of a 32B model, whole and as an adapter.

    The server begins with dummy weights, and the new weights are zeros, so no memory is needed for
    a trained model. The folder of whole weights is in memory if there is room, else on disk.
    """
    if importlib.util.find_spec("vllm") is None:
        return {"skipped": "vLLM is not installed"}
    config = config_32b(task.small)
    config.architectures = ["Qwen2ForCausalLM"]
    folder = str(task.folder / "model")
    config.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    model = build(config)
    dtype = torch.bfloat16 if CUDA else torch.float32
    size = dtype.itemsize * count(model.parameters())

    def whole() -> Any:
        return ((name, torch.zeros(t.shape, dtype=dtype)) for name, t in model.state_dict().items())

    def adapter() -> Any:
        with torch.device("meta"):
            made = trained_adapter(get_peft_model(build(config), lora_config(RANK)))
        tensors = {
            name: torch.zeros(t.shape, dtype=dtype) for name, t in dict(made.tensors).items()
        }
        return replace(made, tensors=tensors)

    figures: dict[str, Any] = {}
    roomy = [f for f in (_MEMORY, task.folder) if f.exists() and shutil.disk_usage(f).free > size]
    if roomy:
        with (
            tempfile.TemporaryDirectory(dir=roomy[0]) as files,
            server(folder, "files", task, "dummy", 0.75) as url,
        ):  # one update: there is seldom room for two versions
            figures["files"] = measured(url, folder, "files", Path(files), whole, 1)
            figures["files"]["in_memory"] = roomy[0] == _MEMORY
    else:
        figures["files"] = {"skipped": f"no folder has room for {size / 2**30:.0f} GiB"}
    with server(folder, "adapter", task, "dummy", 0.75) as url:
        figures["adapter"] = measured(url, folder, "adapter", task.folder / "adapters", adapter)
    return figures


@contextmanager
def server(
    model: str, way: str, task: Task, load_format: str = "auto", memory: float = 0.2
) -> Iterator[str]:
    """Start vLLM's server, and yield its URL.

    Args:
        model: The folder of the model.
        way: The way of new weights.
        task: The task of the part.
        load_format: vLLM's option `--load-format`.
        memory: The share of the memory that the server may take on a GPU.

    Raises:
        RuntimeError: If the server does not start in time.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--model", model, "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    options += ["--logprobs-mode", "processed_logprobs", "--max-model-len", "512"]
    options += ["--dtype", "bfloat16" if CUDA else "float32", "--load-format", load_format]
    options += ["--gpu-memory-utilization", str(memory if CUDA else 0.2)]
    options += ["--worker-extension-cls", "retool_env.rollout.vllm.worker.WeightLoader"]
    if way == "adapter":
        options += ["--enable-lora", "--max-loras", "2", "--max-lora-rank", str(RANK)]
    elif way != "files":
        options += ["--weight-transfer-config", f'{{"backend": "{way}"}}']
    log = task.folder / f"server-{way}.log"
    more = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    if not CUDA:
        # vLLM's build for the CPU dies when it reads the prompt of a request with a seed in parts.
        options += ["--max-num-batched-tokens", "32768"]
        more |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
    elif way == "nccl":
        more["CUDA_VISIBLE_DEVICES"] = str(torch.cuda.device_count() - 1)
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **more},
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None and time.monotonic() < task.deadline:
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health")
                break
            time.sleep(0.5)
        else:
            raise RuntimeError(f"vLLM's server did not start:\n{log.read_text()[-2000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


def measured(
    url: str,
    folder: str,
    way: str,
    files: Path | None,
    weights: Callable[[], Any],
    updates: int = UPDATES,
) -> dict[str, Any]:
    """Update a server while turns are under way, and measure the updates.

    Args:
        url: The server's address.
        folder: The folder of the model.
        way: The way of new weights.
        files: The folder of new weights, or `None`.
        weights: Gives the new weights, each time anew.
        updates: The number of updates.

    Returns:
        `update_s` and `first_token_s`, the seconds of each update after the first, or of the only
        one; `bytes`, the size of the sent tensors; `cut_turns`, the turns of several weight
        versions.
    """
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    dtype = "bfloat16" if CUDA else "float32"
    options: dict[str, Any] = {"weights": way, "weights_folder": files, "weights_dtype": dtype}
    travelling = weights()
    tensors = travelling.tensors if way == "adapter" else travelling
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in pairs)
    seconds: list[tuple[float, float]] = []

    async def run(policy: VLLMServerPolicy) -> int:
        prompt = tokenizer.encode("Compute 12 + 34.")
        turns = [asyncio.create_task(policy.act(prompt, (), TOKENS, row)) for row in range(ROWS)]
        for version in range(1, updates + 1):
            await asyncio.sleep(0.3)
            new = weights()
            began = time.perf_counter()
            await policy.update_weights(version, new)
            updated = time.perf_counter()
            await policy.act(prompt, (), 1, version)
            seconds.append((updated - began, time.perf_counter() - began))
        return sum(bool(turn.weight_runs) for turn in await asyncio.gather(*turns))

    with VLLMServerPolicy([url], tokenizer, **options) as policy:
        cut = asyncio.run(run(policy))
    return {
        "update_s": [round(update, 3) for update, _ in seconds[updates > 1 :]],
        "first_token_s": [round(first, 3) for _, first in seconds[updates > 1 :]],
        "bytes": size,
        "cut_turns": cut,
    }


def served_text(row: dict[str, Any]) -> str:
    """The figures of one way as text."""
    if "skipped" in row:
        return f"skipped, {row['skipped']}"
    updates, first = (sorted(row[name]) for name in ("update_s", "first_token_s"))
    return (
        f"{row['bytes'] / 2**20:.1f} MiB, update {updates[len(updates) // 2]:.2f} s, first token "
        f"after {first[len(first) // 2]:.2f} s, {row['cut_turns']} turns cut"
    )
