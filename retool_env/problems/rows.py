"""The rows of a table in a file, whatever its form.

Forms: JSON lines; a JSON array, or an object that holds one (`{"data": [...]}`, and the answers
of the Hub's viewer); CSV, separated by commas, semicolons or tabs; Parquet. Each may be compressed
with gzip. The form is recognised by the content, and by the name only where the content leaves it
open. All give the same rows: a cell of CSV that is a number in JSON is that number.

Numbers are exact: an integer is an `int`, or a `Decimal` if it is longer than Python converts;
other numbers are a `Decimal`.
"""

import csv
import gzip
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retool_env.errors import DataError, MissingPackage
from retool_env.files import bounded_lines, check_regular
from retool_env.problems.columns import QUESTION_KEYS, Row

if TYPE_CHECKING:
    import pyarrow

Binary = BufferedReader | gzip.GzipFile
"""A file, perhaps compressed, that is read from its beginning."""

FORMS = "JSON lines, a JSON array, CSV or Parquet, each also compressed with gzip"
"""The forms that are read, as errors name them."""

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
"""The names' endings of these forms; `.gz` may follow."""

MOST_DOCUMENT = 256 << 20
"""Bytes of a JSON document that isn't JSON lines: it is read as a whole."""

BATCH_ROWS = 10_000
"""Rows of a Parquet file, or of the Hub's table, that are in memory at once."""

_LISTS = ("data", "rows", "problems", "questions", "examples", "items", "records", "instances")
"""Names under which a JSON object holds the rows, besides those of splits."""
_SPLITS = ("train", "test", "validation")
_SNIFFED = 4096

_OTHER_FORMS = {
    b"\x1f\x8b": "compressed with gzip twice",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a ZIP archive, as .zip, .xlsx and .npz are",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xff\xfe": "in UTF-16 (save it as UTF-8)",
    b"\xfe\xff": "in UTF-16 (save it as UTF-8)",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"version https://git-lfs": "a pointer of Git LFS, not the data: run `git lfs pull`",
    b"<": "HTML or XML, as a download gives that was answered by a web page",
}
_NOT_BLANK = re.compile(r"\S")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """Yield `(place, row)` for each row of a file.

    The place names the file and the line, counted from 1, or, where there are no lines, the row,
    counted from 0. Blank lines are left out. An empty file has no rows.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no regular file, has another form or is damaged, or a row is no object;
            the message names file and place.
        ImportError: It is Parquet, and pyarrow is not installed.
    """
    check_regular(path)
    name = os.fspath(path)
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    with open(path, "rb") as raw:
        if raw.peek(2)[:2] != b"\x1f\x8b":
            yield from _rows(raw, name, suffixes)
            return
        try:
            with gzip.GzipFile(fileobj=raw) as file:
                yield from _rows(file, name, suffixes)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{name}: damaged gzip data: {error}") from error


def table_rows(tables: Iterable["pyarrow.Table"], name: str) -> Iterator[tuple[str, Row]]:
    """Yield `(place, row)` for each row of the tables, counted through.

    Args:
        tables: Arrow's, one after the other.
        name: What the places call them.
    """
    import numpy
    import pyarrow

    index = 0
    for table in tables:
        narrow = [
            field.name
            for field in table.schema
            if pyarrow.types.is_float32(field.type) or pyarrow.types.is_float16(field.type)
        ]
        for row in table.to_pylist():
            for column in narrow:  # a wider number would have digits that nobody wrote
                if row[column] is not None:
                    row[column] = numpy.float32(row[column])
            yield f"{name}, row {index}", row
            index += 1


def _rows(file: Binary, name: str, suffixes: list[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a file that is not compressed, or no longer."""
    head = file.peek(_SNIFFED)[:_SNIFFED]
    if head.startswith(b"PAR1"):
        return _parquet_rows(file, name)
    for mark, form in _OTHER_FORMS.items():
        if head.startswith(mark):
            raise DataError(f"{name} is {form}; accepted are {FORMS}")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] == b"[":
        return _document_rows(b"", file, name)
    if start[:1] == b"{" or not start or {".json", ".jsonl", ".ndjson"} & set(suffixes):
        return _json_line_rows(file, name)
    if {".csv", ".tsv"} & set(suffixes) or _is_header(start):
        return _csv_rows(file, name)
    raise DataError(
        f"{name}: the form is unknown; accepted are {FORMS}. The file begins with {start[:40]!r}; "
        "if it is CSV, let its name end in .csv"
    )


# --- JSON -----------------------------------------------------------------------------------------


def _json_line_rows(file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    first = True
    for number, line in enumerate(bounded_lines(file, name), start=1):
        place = f"{name}, line {number}"
        if not (text := _utf8(line, place)).strip():
            continue
        try:
            value = _DECODER.decode(text)
        except json.JSONDecodeError as error:
            if first and not text[error.pos :].strip():  # the object goes on in the next line
                yield from _document_rows(b"\n" * (number - 1) + line, file, name)
                return
            raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: {_json_fault(error)}") from error
        first = False
        yield from _objects(value, place)


def _document_rows(before: bytes, file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    """The rows of JSON over several lines: an array, an object that holds one, or objects."""
    content = before + file.read(MOST_DOCUMENT + 1)
    if len(content) > MOST_DOCUMENT:
        raise DataError(
            f"{name} is larger than {MOST_DOCUMENT >> 20} MiB, which JSON may only be as JSON lines"
        )
    text = _utf8(content, name)
    position, index = 0, 0
    while begin := _NOT_BLANK.search(text, position):
        try:
            value, position = _DECODER.raw_decode(text, begin.start())
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {error.lineno}: not JSON ({error.msg}, column {error.colno})"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}: {_json_fault(error)}") from error
        for each in value if isinstance(value, list) else [value]:
            yield from _objects(each, f"{name}, row {index}")
            index += 1


def _objects(value: Any, place: str) -> Iterator[tuple[str, Row]]:
    """The row that a value is, or the rows that it holds."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object with columns, found {value!r:.60}")
    held = _held(value, place)
    if held is None:
        yield place, value
        return
    key, rows = held
    for index, row in enumerate(rows):
        inner = f"{place}, {key}[{index}]"
        if isinstance(row, dict) and "row_idx" in row and isinstance(row.get("row"), dict):
            row = row["row"]  # as the Hub's viewer answers
        if not isinstance(row, dict):
            raise DataError(f"{inner}: expected an object with columns, found {row!r:.60}")
        yield inner, row


def _held(value: Row, place: str) -> tuple[str, list[Any]] | None:
    """The list of rows that an object holds, with its name; `None` if it is a row itself."""
    if any(key.casefold() in QUESTION_KEYS for key in value):
        return None
    keys = [key for key in value if key in _LISTS + _SPLITS and isinstance(value[key], list)]
    if len(keys) > 1:
        raise DataError(
            f"{place}: the rows of {' and '.join(keys)} are in one file; keep one of them"
        )
    return (keys[0], value[keys[0]]) if keys else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DataError(f"an object has {key!r} twice")
            seen.add(key)
    return value


def _integer(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:  # more digits than Python converts
        return Decimal(text)


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise DataError(f"the number {text:.40} is beyond all bounds") from None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal)


def _json_fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _utf8(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\n" in content[: error.start]:
            place = f"{place}, line {content.count(b'\n', 0, error.start) + 1}"
        raise DataError(
            f"{place}: not UTF-8 ({error.reason}); accepted are {FORMS}, with text in UTF-8"
        ) from error


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    lines = (
        _utf8(line, f"{name}, line {number}")
        for number, line in enumerate(bounded_lines(file, name), start=1)
    )
    first = next(lines)
    reader = csv.reader(_chain(first, lines), delimiter=_delimiter(first), strict=True)
    header: list[str] | None = None
    while True:
        place = f"{name}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{place}: not CSV ({error})") from error
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if twice := {column for column in header if header.count(column) > 1}:
                raise DataError(f"{place}: several columns have the name {min(twice)!r}")
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{place}: {len(cells)} cells, but the header names {len(header)} columns; text "
                'that holds the separator or a line break stands in "quotes"'
            )
        yield place, dict(zip(header, map(_cell, cells), strict=True))


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _cell(text: str) -> str | int | Decimal | None:
    """A cell's value: a number that JSON writes alike, text, or nothing."""
    if not text:
        return None
    if not _JSON_NUMBER.fullmatch(text):
        return text
    return _integer(text) if text.lstrip("-").isdigit() else _decimal(text)


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _is_header(start: bytes) -> bool:
    """Whether text begins with a line that names the column of a question."""
    line = start.splitlines()[0].decode("utf-8", "replace")
    cells = line.split(_delimiter(line))
    return any(cell.strip(' "').casefold() in QUESTION_KEYS for cell in cells)


# --- Parquet --------------------------------------------------------------------------------------


def _parquet_rows(file: Binary | IO[bytes], name: str) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(
            f"{name} is Parquet, which needs pyarrow: pip install 'retool-env[hub]'"
        ) from error

    if isinstance(file, gzip.GzipFile):  # Parquet is read from its end
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file, unpacked)
            yield from _parquet_rows(unpacked, name)
        return
    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS)
        yield from table_rows((pyarrow.Table.from_batches([each]) for each in batches), name)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: damaged Parquet data: {error}") from error
