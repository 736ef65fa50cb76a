"""Reads a process's record of its program, with doubt: the program may have forged it."""

import binascii
import json
from collections.abc import Collection, Mapping

from retool_env.execution import Files, Limits, Outcome
from retool_env.sandbox.guest import wire

_ERROR, _TRACE = 4000, 8000  # the most characters of an error and a traceback


def read_record(text: bytes, limits: Limits) -> tuple[Outcome, str, str] | None:
    """How the program ended, according to its record.

    Args:
        text: The record's text.
        limits: The program's limits.

    Returns:
        The outcome, the error and the traceback; `None` if the text is invalid.
    """
    try:
        name, error, trace, *_ = (_clean(part) for part in json.loads(text))
        error, trace = " ".join(error.splitlines())[:_ERROR], trace[:_TRACE]
        if name == Outcome.MEMORY_LIMIT:
            error = f"MemoryError: the program needed more than {limits.memory_mb} MiB"
        if name == Outcome.BLOCKED:
            error = f"{error} (the sandbox does not allow it)"
        # No program, whatever it did to its own process, can pass for a failure of the sandbox.
        if name in Outcome and name != Outcome.INFRASTRUCTURE:
            return Outcome(name), error, trace
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return None


def read_reports(text: bytes) -> tuple[str, ...] | None:
    """The texts that a prelude reported (`Files.reported`), according to the record.

    Args:
        text: The record's text.

    Returns:
        The texts; `None` if the process could not say, or the text is invalid.
    """
    try:
        name, _, _, *reports = (_clean(part) for part in json.loads(text))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return None if name == Outcome.MEMORY_LIMIT else tuple(reports)


def _clean(part: str) -> str:
    """`part` with lone surrogates escaped, which no text file can hold."""
    return part.encode("utf-8", "backslashreplace").decode()


def pack_files(files: Files) -> bytes:
    """The files, the prelude, and the names of the files that come back, as JSON."""
    parts = encode_files(files.given), list(files.wanted), files.prelude
    return json.dumps(dict(zip(wire.FILES, parts, strict=True))).encode()


def encode_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """The files with their contents in base64."""
    return {name: binascii.b2a_base64(data, newline=False).decode() for name, data in files.items()}


def unpack_files(data: bytes | bytearray, wanted: Collection[str]) -> dict[str, bytes]:
    """The files that a program sent back: names and contents.

    Args:
        data: The bytes from the program's process.
        wanted: The names of the requested files; other files are left out.
    """
    try:
        return {
            name: binascii.a2b_base64(content, strict_mode=True)
            for name, content in json.loads(data).items()
            if name in wanted and isinstance(content, str)
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
