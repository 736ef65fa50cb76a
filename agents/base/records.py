"""Records: reading and writing the files of a run's folder.

A writer that is killed leaves an incomplete line at the end of a file. Such a line is ignored,
because nothing was lost. Every other line that can't be read is an error, which names the file and
the line, the fault, and the cure. No line is skipped silently.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import json
import math
import os
import re
import stat
import types
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from agents.base.curves import SHOWN
from agents.base.settings import SettingsError
from retool_env.durable import replace_durably
from retool_env.errors import MissingFile
from retool_env.files import MOST_LINE
from retool_env.rotation import opened, parts
from retool_env.training.curves import PANELS
from retool_env.transcript import Transcript, check_transcript, write_transcripts

LARGEST = 2**63
"""The integers in a record are smaller than this, so that they fit into 64 bits."""

SEAL = "files.json"
"""The file in a checkpoint that is written last.

It lists the sizes of all other files, so that a file which is later lost or truncated is found."""

INCOMPLETE = "incomplete"
"""The empty file in a checkpoint that is removed once all files but the seal are on the disk."""

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)', re.DOTALL)


@dataclass(frozen=True)
class Line:
    """A line of a file of JSON lines."""

    location: str
    """The file's path and the line's number."""
    text: bytes
    """The line's bytes, as they are in the file."""
    record: dict[str, Any]
    """The JSON object in the line."""


def damaged(location: str | Path, fault: str, cure: str) -> SettingsError:
    """The error of a record that can't be used.

    Args:
        location: The file and, if known, the line.
        fault: The fault of the record.
        cure: The advice for a record that can't be restored.
    """
    return SettingsError(f"{location}: {fault}. Restore it, or {cure}")


@contextlib.contextmanager
def intact(location: str | Path, cure: str, fault: str = "") -> Iterator[None]:
    """Turn a `ValueError` of the block, which reads a record, into the error of `damaged`.

    Args:
        location: The file and, if known, the line.
        cure: The advice for a record that can't be restored.
        fault: The text in front of the error's own text.

    Raises:
        SettingsError: If the block raises a `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise damaged(location, f"{fault}{error}", cure) from None


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        path: The file.
        cure: The advice of the error, if the file can't be restored.

    Raises:
        SettingsError: If the file is missing, can't be read, or does not hold a JSON object.
    """
    text = read_file(path)
    with intact(path, cure):
        return parse_object(text)


def read_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        SettingsError: If the file is missing, can't be read, or is not a regular file.
    """
    with _open(path) as file:
        return _read(path, file.read)


def read_lines(
    path: Path, cure: str, appended: bool = False, what: str = "record"
) -> Iterator[Line]:
    """Iterate over the lines of a file of JSON lines. A missing file has no lines.

    Args:
        path: The file; of transcripts that were rotated, also the closed parts (`rotation`).
        cure: The advice of the error, if a line can't be restored.
        appended: Whether the file is written line by line. Then an incomplete last line, which a
            stop can leave, is ignored.
        what: The name of a line's content in the error.

    Raises:
        SettingsError: If the file can't be read, or a line does not hold a JSON object.
    """
    if not parts(path):
        return
    for part, file in opened(path, _open):
        yield from _lines(part, file, cure, appended, what)


def read_part(
    path: Path, cure: str, appended: bool = False, what: str = "record"
) -> Iterator[Line]:
    """Iterate over the lines of one file, without other parts of it; see `read_lines`.

    Args:
        path: The file, plain or compressed.
        cure: The advice of the error, if a line can't be restored.
        appended: Whether the file is written line by line.
        what: The name of a line's content in the error.
    """
    with _open(path) as file:
        yield from _lines(path, file, cure, appended, what)


def _lines(
    path: Path, file: BufferedIOBase, cure: str, appended: bool, what: str
) -> Iterator[Line]:
    number = 0
    while text := _read(path, lambda: file.readline(MOST_LINE + 1)):
        number += 1
        location = f"{path}, line {number}"
        if len(text) > MOST_LINE:
            raise damaged(location, f"longer than {MOST_LINE >> 20} MiB", cure)
        if not text.strip():
            continue
        try:
            record = parse_object(text)
        except ValueError as error:
            if appended and not text.endswith(b"\n") and is_cut(text):
                return
            raise damaged(location, f"not a {what}: {error}", cure) from None
        yield Line(location, text, record)


def read_metrics(path: Path) -> list[Line]:
    """The lines of a run's `metrics.jsonl`.

    Raises:
        SettingsError: If the file can't be read, or a line does not hold a step's figures.
    """
    cure = "delete that line: the curves then lack its step"
    lines = []
    for line in read_lines(path, cure, appended=True):
        with intact(line.location, cure, "not a record: "):
            check_figures(line.record)
        lines.append(line)
    return lines


def read_records(path: Path) -> list[dict[str, Any]]:
    """The objects of a run's `metrics.jsonl`; see `read_metrics`."""
    return [line.record for line in read_metrics(path)]


def read_episodes(path: Path, cure: str, appended: bool = False) -> Iterator[Transcript]:
    """Iterate over the transcripts of a file and check their fields. A missing file has none.

    Args:
        path: The file.
        cure: The advice of the error, if a line can't be restored.
        appended: See `read_lines`.

    Raises:
        SettingsError: If the file can't be read, or a line does not hold a valid transcript.
    """
    for line in read_lines(path, cure, appended, "transcript"):
        with intact(line.location, cure):
            transcript = build(Transcript.from_json, line.record, "transcript")
            check_transcript(transcript)
        yield transcript


def build[T](make: Callable[[dict[str, Any]], T], record: dict[str, Any], what: str) -> T:
    """Make a dataclass of a record's values, and check the types of its fields.

    Args:
        make: Makes the dataclass of the record.
        record: The values by name.
        what: The name of the dataclass in the error.

    Raises:
        ValueError: If a value is missing or has the wrong type.
    """
    try:
        made = make(record)
    except RecursionError:
        raise ValueError(f"not a {what}: nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"not a {what}: {error!r:.200}") from None
    if wrong := _wrong_field(made):
        raise ValueError(f"not a {what}: {wrong}")
    return made


def parse_object(text: bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError: If the text is not a JSON object. The message names the fault.
    """
    if not text.strip():
        raise ValueError("it is empty")
    if b"\0" in text:
        raise ValueError(f"it holds {text.count(0)} NUL bytes")
    try:
        value = json.loads(text.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1}: {error.reason})") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not JSON ({error.msg}, {line}column {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object, but {_shown(value)}")
    return value


def is_cut(text: bytes) -> bool:
    """Whether a text is the beginning of a JSON object, which a killed writer can leave.

    Example:
        >>> is_cut(b'{"step": 3, "los'), is_cut(b'{"step": 3}}'), is_cut(b'"step": 3')
        (True, False, False)
    """
    if not text.startswith(b"{") or b"\0" in text:
        return False
    depth = 0
    for bracket in re.findall(rb"[{}\[\]]", _STRING.sub(b"", text)):
        depth += 1 if bracket in b"{[" else -1
        if depth == 0:
            return False
    return True


def check_figures(record: Mapping[str, Any]) -> None:
    """Check the figures of a step's record that are read again.

    Raises:
        ValueError: If the step's number is missing, or a drawn or shown figure is not a number.
    """
    if not is_count(record.get("step")):
        raise ValueError(_not("step", record, "a step's number"))
    seconds = record.get("seconds", 0.0)
    if not (_is_number(seconds) and math.isfinite(seconds) and seconds >= 0):
        raise ValueError(_not("seconds", record, "a number of seconds"))
    for name, value in record.items():
        # A figure may be infinite or NaN: a training can diverge.
        figure = name in PANELS or name in SHOWN or "/" in name
        if figure and not (value is None or _is_number(value)):
            raise ValueError(_not(name, record, "a number"))


def check_kinds(
    record: Mapping[str, Any], hints: Mapping[str, Any], needed: Iterable[str] = ()
) -> None:
    """Check the types of a record's values.

    Args:
        record: The record. It may have further values.
        hints: The types of the values, by name.
        needed: The names that the record must have.

    Raises:
        ValueError: If a needed value is missing, or a value has another type.
    """
    for name in needed:
        if name not in record:
            raise ValueError(f'it lacks "{name}"')
    for name, hint in hints.items():
        if name in record and not _fits(record[name], hint):
            raise ValueError(f'"{name}" is {_shown(record[name])}')


def is_count(value: object) -> bool:
    """Whether a value can be a number of steps: an integer from 0 to below `LARGEST`."""
    return type(value) is int and 0 <= value < LARGEST


def _is_number(value: object) -> bool:
    return type(value) is float or (type(value) is int and abs(value) < 1e300)


def _not(name: str, record: Mapping[str, Any], wanted: str) -> str:
    if name not in record:
        return f'it lacks "{name}"'
    return f'"{name}" is {_shown(record[name])}, not {wanted}'


def _shown(value: object) -> str:
    try:
        return f"{value!r:.60}"
    except (RecursionError, ValueError):  # nested too deeply, or an integer of thousands of digits
        return f"a {type(value).__name__}"


def seal(folder: Path) -> None:
    """Write the seal of a complete checkpoint: the sizes of all its files."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != SEAL
    }
    write_atomically(folder / SEAL, json.dumps(sizes, indent=1) + "\n")


def check_seal(folder: Path, cure: str) -> None:
    """Check that a sealed checkpoint still has all its files.

    Args:
        folder: The checkpoint's folder.
        cure: The advice of the error, if the checkpoint can't be restored.

    Raises:
        SettingsError: If a file is missing, not a regular file, or has another size.
    """
    for name, size in read_object(folder / SEAL, cure).items():
        path = folder / name
        if not os.path.lexists(path):
            raise damaged(path, "it is missing", cure)
        with _open(path) as file:
            now = os.fstat(file.fileno()).st_size
        if now != size:
            raise damaged(path, f"it has {now} bytes instead of {size}", cure)


def write_atomically(path: Path, text: str) -> None:
    """Write a file atomically: a stop or a power failure in the middle leaves the old file."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    replace_durably(temporary, path)


def write_transcripts_atomically(path: Path, transcripts: Iterable[Transcript]) -> None:
    """Write a file of transcripts atomically; see `write_atomically`."""
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    part.unlink(missing_ok=True)
    write_transcripts(part, transcripts)
    replace_durably(part, path)


def _open(path: Path) -> BufferedIOBase:
    """Open a regular file. Opening a pipe does not block."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    except FileNotFoundError:
        raise MissingFile(f"{path}: it is missing. Restore it") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise SettingsError(
            f"{path}: it is {_KINDS.get(kind, 'something else')}, not a file. Move it away, and "
            "restore the file"
        )
    file = os.fdopen(descriptor, "rb")
    return gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file


def _read(path: Path, read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> SettingsError:
    reason = getattr(error, "strerror", None) or error
    return SettingsError(f"{path}: it can't be read ({reason}). Make it readable")


_hints = functools.cache(get_type_hints)


def _wrong_field(made: Any) -> str | None:
    """The first field, in a dataclass or the dataclasses in it, with a value of another type."""
    cls: type = type(made)
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if not _fits(value, _hints(cls)[field.name]):
            return f"{field.name} is {_shown(value)}"
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part) and (wrong := _wrong_field(part)):
                return f"{field.name}: {wrong}"
    return None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type. A float must be finite."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, inner[0]) for item in value)
    if hint is float:
        return _is_number(value) and math.isfinite(value)
    if hint is int:
        return type(value) is int and abs(value) < LARGEST
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    return isinstance(value, origin or hint)
