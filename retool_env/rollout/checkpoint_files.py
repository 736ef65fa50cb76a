"""Checkpoint files: the data types of weights, and errors that name the broken file of a model.

The libraries that read a model raise errors of many kinds, and most of them name no file.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from retool_env.errors import RetoolError, SettingsError

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""The data types in which a model's weights can be loaded."""


def check_dtype(name: str, dtype: str) -> None:
    """Check the name of a data type.

    Args:
        name: The name of the setting or option, for the error text.
        dtype: The name of the data type; `"auto"` is the data type of the checkpoint.

    Raises:
        SettingsError: If the name is unknown.
    """
    if dtype not in ("auto", *DTYPES):
        raise SettingsError(f"{name} {dtype!r:.60} is unknown: choose {', '.join(DTYPES)} or auto")


@contextlib.contextmanager
def reading(model: str) -> Iterator[None]:
    """Turn an error of the block, which reads a model, into an error that names the broken file.

    Errors of the operating system are kept, since transformers raises them with good texts for a
    model that it does not find, and so is an error of a missing package.

    Args:
        model: The folder or Hub id of the model.

    Raises:
        SettingsError: If a file of the folder is broken, or the model can't be read for another
            reason.
    """
    check_no_run(model)
    try:
        yield
    except (RetoolError, ImportError, MemoryError):
        raise
    except Exception as error:  # tokenizers raises no class of its own
        if type(error).__name__ == "OutOfMemoryError":  # torch's
            raise
        if broken := broken_file(model):
            raise SettingsError(f"{broken}: copy or save the model again") from error
        if isinstance(error, OSError):
            raise
        reason = " ".join(str(error).split())
        raise SettingsError(
            f"model {model!r:.200} can't be loaded: {type(error).__name__}: {reason:.400}"
        ) from error


def check_no_run(model: str) -> None:
    """Check that a model is not the folder of a training run, whose model lies below it.

    Args:
        model: The folder or Hub id of the model.

    Raises:
        SettingsError: If the folder is of a training run. The message names its model.
    """
    try:
        is_run = "algorithm" in json.loads((Path(model) / "config.json").read_text("utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return
    if is_run:
        raise SettingsError(
            f"{model} is the folder of a training run: name its model, {Path(model) / 'checkpoint'}"
        )


def broken_file(model: str) -> str:
    """The first file of a model's folder that can't be read, with the reason; empty without one.

    Args:
        model: The folder of the model. Of a Hub id no file is looked at.
    """
    from safetensors import safe_open
    from tokenizers import Tokenizer

    for path in sorted(Path(model).glob("*")) if Path(model).is_dir() else ():
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            if path.name == "tokenizer.json":
                Tokenizer.from_file(str(path))
            if path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
        except Exception as error:
            return f"{path} is damaged ({' '.join(str(error).split()):.200})"
    return ""
