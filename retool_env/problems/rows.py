"""The reader of tables: yields the rows of a file, in any of several forms.

The forms are JSON lines; a JSON array, or an object that holds an array (`{"data": [...]}`, or a
reply of the Hub's viewer); CSV, separated by commas, semicolons or tabs; and Parquet. A file of any
form may be compressed with gzip. The reader recognises the form by the content; it uses the name
only if the content is ambiguous. All forms give the same rows: a CSV cell that is a number in JSON
becomes this number.

Numbers are exact. An integer is an `int`, or a `Decimal` if it has more digits than Python
converts. Any other number is a `Decimal`.
"""

import csv
import gzip
import itertools
import json
import os
import re
import shutil
import tempfile
import zlib
from collections import Counter
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
"""A file at its beginning, plain or compressed."""

FORMS = "JSON lines, a JSON array, CSV or Parquet, each also compressed with gzip"
"""The accepted forms, as error texts name them."""

SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
"""The suffixes of the accepted forms. A name may also end in `.gz` after the suffix."""

MOST_DOCUMENT = 256 << 20
"""The most bytes of a JSON array or object over several lines, which is read as a whole."""

BATCH_ROWS = 10_000
"""The number of rows of a Parquet file, or of a table of the Hub, that are in memory at once."""

_LISTS = ("data", "rows", "problems", "questions", "examples", "items", "records", "instances")
"""The keys under which a JSON object holds a list of rows. The names of splits are also keys."""
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
    b"<": "HTML or XML; the download probably returned a web page instead of the data",
}
_NOT_BLANK = re.compile(r"\S")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, Row]]:
    """Yields `(location, row)` for each row of a file.

    The location is the file and the line, counted from 1. In a form without lines, it is the file
    and the row, counted from 0. Blank lines are skipped. An empty file has no rows.

    Args:
        path: The path of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not a regular file, has an unknown form or is damaged, or a row is
            not an object. The error text names the location.
        ImportError: The file is Parquet, and pyarrow is not installed.
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
    """Yields `(location, row)` for each row of several tables, with one count over all tables.

    Args:
        tables: The Arrow tables, in order.
        name: The name of the tables in the locations.
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
            for column in narrow:  # a wider float would have more digits than the data
                if row[column] is not None:
                    row[column] = numpy.float32(row[column])
            yield f"{name}, row {index}", row
            index += 1


def _rows(file: Binary, name: str, suffixes: list[str]) -> Iterator[tuple[str, Row]]:
    """The rows of a file that is not compressed, or that is decompressed on reading."""
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
        f"{name}: the form is unknown; accepted are {FORMS}. The file begins with {start[:40]!r}. "
        "If the file is CSV, give it a name that ends in .csv"
    )


# --- JSON -----------------------------------------------------------------------------------------


def _json_line_rows(file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    first = True
    for number, line in enumerate(bounded_lines(file, name), start=1):
        location = f"{name}, line {number}"
        if not (text := _utf8(line, location)).strip():
            continue
        try:
            value = _DECODER.decode(text)
        except json.JSONDecodeError as error:
            if first and not text[error.pos :].strip():  # the object continues on the next line
                yield from _document_rows(b"\n" * (number - 1) + line, file, name)
                return
            raise DataError(f"{location}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{location}: {_json_fault(error)}") from error
        first = False
        yield from _objects(value, location)


def _document_rows(before: bytes, file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    """The rows of JSON over several lines: an array, an object with an array, or objects."""
    content = before + file.read(MOST_DOCUMENT + 1)
    if len(content) > MOST_DOCUMENT:
        raise DataError(
            f"{name} is larger than {MOST_DOCUMENT >> 20} MiB; write a larger file as JSON lines"
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
        for item in value if isinstance(value, list) else [value]:
            yield from _objects(item, f"{name}, row {index}")
            index += 1


def _objects(value: Any, location: str) -> Iterator[tuple[str, Row]]:
    """The value itself if it is a row, or the rows of the list inside it."""
    if not isinstance(value, dict):
        raise DataError(f"{location}: expected an object with columns, found {value!r:.60}")
    if (key := _list_key(value, location)) is None:
        yield location, value
        return
    for index, row in enumerate(value[key]):
        inner = f"{location}, {key}[{index}]"
        if isinstance(row, dict) and "row_idx" in row and isinstance(row.get("row"), dict):
            row = row["row"]  # the form of the Hub's viewer
        if not isinstance(row, dict):
            raise DataError(f"{inner}: expected an object with columns, found {row!r:.60}")
        yield inner, row


def _list_key(value: Row, location: str) -> str | None:
    """The key under which an object holds a list of rows; `None` if the object is a row."""
    if any(key.casefold() in QUESTION_KEYS for key in value):
        return None
    keys = [key for key in value if key in _LISTS + _SPLITS and isinstance(value[key], list)]
    if len(keys) > 1:
        raise DataError(
            f"{location}: the file holds the rows of {' and '.join(keys)}; keep only one list"
        )
    return keys[0] if keys else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        repeated, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise DataError(f"an object has {repeated!r} twice")
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
        raise DataError(f"the number {text:.40} has an exponent out of range") from None


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_decimal)


def _json_fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _utf8(content: bytes, location: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if b"\n" in content[: error.start]:
            location = f"{location}, line {content.count(b'\n', 0, error.start) + 1}"
        raise DataError(
            f"{location}: not UTF-8 ({error.reason}); accepted are {FORMS}, with text in UTF-8"
        ) from error


# --- CSV ------------------------------------------------------------------------------------------


def _csv_rows(file: Binary, name: str) -> Iterator[tuple[str, Row]]:
    lines = (
        _utf8(line, f"{name}, line {number}")
        for number, line in enumerate(bounded_lines(file, name), start=1)
    )
    first = next(lines)
    reader = csv.reader(itertools.chain([first], lines), delimiter=_delimiter(first), strict=True)
    header: list[str] | None = None
    while True:
        location = f"{name}, line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{location}: not CSV ({error})") from error
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if twice := {column for column in header if header.count(column) > 1}:
                raise DataError(f"{location}: several columns have the name {min(twice)!r}")
            continue
        if len(cells) != len(header):
            raise DataError(
                f"{location}: {len(cells)} cells, but the header names {len(header)} columns; put "
                'a text with the separator or a line break into "quotes"'
            )
        yield location, dict(zip(header, map(_cell, cells), strict=True))


def _cell(text: str) -> str | int | Decimal | None:
    """The value of a cell: a number if JSON writes it so, else the text; `None` if it is empty."""
    if not text:
        return None
    if not _JSON_NUMBER.fullmatch(text):
        return text
    return _integer(text) if text.lstrip("-").isdigit() else _decimal(text)


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _is_header(start: bytes) -> bool:
    """Whether the first line of a text names the column of a question."""
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
            f"{name} is Parquet; pyarrow is needed to read it: pip install 'retool-env[hub]'"
        ) from error

    if isinstance(file, gzip.GzipFile):  # the index of Parquet is at the end of the file
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file, unpacked)
            yield from _parquet_rows(unpacked, name)
        return
    try:
        batches = pyarrow.parquet.ParquetFile(file).iter_batches(BATCH_ROWS)
        yield from table_rows((pyarrow.Table.from_batches([batch]) for batch in batches), name)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: damaged Parquet data: {error}") from error
