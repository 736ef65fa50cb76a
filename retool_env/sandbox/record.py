"""What a process tells of its program, read with doubt: the program may have forged it."""

import binascii
import json
from collections.abc import Collection

from retool_env.execution import Files, Limits, Outcome
from retool_env.sandbox.guest import wire

_ERROR, _TRACE = 4000, 8000  # characters of what a record says that are believed


def read_record(text: bytes, limits: Limits) -> tuple[Outcome, str, str] | None:
    """How the program ended, as its record says.

    Args:
        text: The record's text.
        limits: The program's.

    Returns:
        The outcome, the error and the traceback; `None` where the text is nonsense.
    """
    try:
        name, error, trace = (_clean(part) for part in json.loads(text))
        error, trace = " ".join(error.splitlines())[:_ERROR], trace[:_TRACE]
        if name == Outcome.MEMORY_LIMIT:
            error = f"MemoryError: the program needed more than {limits.memory_mb} MiB"
        if name == Outcome.BLOCKED:
            error = f"{error} (the sandbox does not allow it)"
        # Whatever a program did to its own process, it cannot pass for a failure of the sandbox.
        if name in Outcome and name != Outcome.INFRASTRUCTURE:
            return Outcome(name), error, trace
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return None


def _clean(part: str) -> str:
    """`part` without lone surrogates, which no text file can hold."""
    return part.encode("utf-8", "backslashreplace").decode()


def pack_files(files: Files) -> bytes:
    """The files that go with a program, and the names of those that it sends back."""
    given = {
        name: binascii.b2a_base64(data, newline=False).decode()
        for name, data in files.given.items()
    }
    return json.dumps(dict(zip(wire.FILES, (given, list(files.wanted)), strict=True))).encode()


def unpack_files(data: bytes | bytearray, wanted: Collection[str]) -> dict[str, bytes]:
    """The files that a program sent back; what is not one of those that are wanted is left out."""
    try:
        found = json.loads(data)
        return {
            name: binascii.a2b_base64(content, strict_mode=True)
            for name, content in found.items()
            if name in wanted and isinstance(content, str)
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}
