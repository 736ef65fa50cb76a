"""The page as files: the same page with its data inside, which need neither a server nor a network.

The page's modules are written into one script and its style into one element, whose hashes are all
that the Content-Security-Policy of the file allows. The data is JSON in an element of its own. A
page of more than `MOST_PAGE` bytes is divided: each file (`view.html`, `view-2.html`, …) holds all
rows and a part of the episodes, and names the files of the other episodes.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from retool_env.errors import MissingFile, SettingsError
from retool_env.evaluation.runs import Run
from retool_env.evaluation.view.api import describe
from retool_env.evaluation.view.episode import episode_view
from retool_env.evaluation.view.filters import Filter, flips
from retool_env.evaluation.view.index import Index, Progress
from retool_env.evaluation.view.rows import to_json
from retool_env.evaluation.view.tokens import tokens_view

PAGE = Path(__file__).parent / "page"
"""The folder of the page's files."""

MOST_PAGE = 20_000_000
"""The size of a file, in bytes, above which the page is divided. A file is larger only if a single
episode is."""

_GENERATOR = '<meta name="generator" content="retool view">'
_STYLE = '<link rel="stylesheet" href="style.css">'
_SCRIPT = re.compile(r'<script type="module" src="([\w-]+\.js)"></script>')
_IMPORT = re.compile(r'^import\s*\{[^}]*\}\s*from\s*"\./([\w-]+\.js)";?[ \t]*\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async |function|const|let|class))", re.MULTILINE)


def page_files() -> dict[str, bytes]:
    """The files of the page by name.

    Raises:
        MissingFile: The installation lacks them.
    """
    found = {
        path.name: path.read_bytes()
        for path in (PAGE.iterdir() if PAGE.is_dir() else ())
        if path.suffix in (".html", ".css", ".js")
    }
    if "index.html" not in found:
        raise MissingFile(f"{PAGE / 'index.html'} was not found: install retool-env again")
    return found


def link(run: int, address: str, beside: tuple[int, str] | None = None) -> str:
    """The fragment of the page's address that shows an episode.

    Args:
        run: The number of the run, from 0.
        address: The address of the episode.
        beside: The number of the run and the address of an episode to show beside it.

    Example:
        >>> link(0, "p/1/0", beside=(1, "p/1/0"))
        '#run=0&episode=p%2F1%2F0&beside_run=1&beside=p%2F1%2F0'
    """
    fragment = f"#run={run}&episode={_quoted(address)}"
    if beside is not None:
        fragment += f"&beside_run={beside[0]}&beside={_quoted(beside[1])}"
    return fragment


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def matching(indexes: Sequence[Index], query: str) -> list[list[str]]:
    """The addresses of the episodes that a query keeps, for each run.

    Args:
        indexes: The indexes of the runs, read. The runs of a pair are each other's other run.
        query: The filter query.

    Raises:
        FilterError: The query can't be read.
    """
    wanted = Filter.parse(query)
    rows = [index.rows() for index in indexes]
    kept = []
    for number, index in enumerate(indexes):
        found = {text: set(index.search(text)) for text in wanted.texts}
        verdicts = flips(rows[number], rows[1 - number]) if len(rows) == 2 else None
        kept.append([row["address"] for row in rows[number] if wanted.keeps(row, found, verdicts)])
    return kept


@dataclass(frozen=True)
class _Item:
    """An episode in the file of all views."""

    run: int
    """The number of its run."""
    address: str
    """Its address."""
    start: int
    """The first byte of its view."""
    view: int
    """The number of bytes of its view."""
    tokens: int
    """The number of bytes of its tokens, which follow; 0: the record holds no tokens."""

    @property
    def size(self) -> int:
        """The number of bytes in a page."""
        return self.view + self.tokens + 2 * len(_data(self.address)) + 4


def write_static(
    runs: Sequence[Run],
    path: Path,
    addresses: Sequence[Collection[str]] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Writes the page of runs with their episodes inside.

    Args:
        runs: The runs.
        path: The file. A page of an earlier call is replaced.
        addresses: For each run the addresses of the episodes to keep; `None`: all episodes.
        progress: A function that is called with the number of written and of all episodes; `None`:
            no calls.

    Returns:
        The written files.

    Raises:
        SettingsError: The file exists and is not a page, or the list of episodes alone is larger
            than a page may be.
        DataError: A record can't be read.
    """
    _check_target(path)
    indexes = [Index(run) for run in runs]
    for index in indexes:
        index.refresh()
        index.close()
    rows = [index.rows() for index in indexes]
    if addresses is not None:
        chosen = [set(each) for each in addresses]
        rows = [
            [r for r in of if r["address"] in kept] for of, kept in zip(rows, chosen, strict=True)
        ]
    head = {"runs": describe(indexes), "rows": rows}
    page = _Page(page_files())
    names = sum(len(to_json(row["address"])) + len(path.name) + 9 for of in rows for row in of)
    room = MOST_PAGE - page.size - len(_data(head)) - names
    with tempfile.TemporaryFile() as views:
        items = list(_write_views(indexes, rows, views, progress))
        pages = list(_divided(items, room))
        if len(pages) > 1 and room < MOST_PAGE // 2:
            raise SettingsError(
                f"the list of {sum(map(len, rows))} episodes alone fills a page: choose episodes "
                "with --query"
            )
        files = [_numbered(path, number) for number in range(1, len(pages) + 1)]
        for other in files[1:]:
            _check_target(other)
        for number, file in enumerate(files):
            elsewhere: list[dict[str, str]] = [{} for _ in runs]
            for other, others in zip(files, pages, strict=True):
                for item in others if other != file else ():
                    elsewhere[item.run][item.address] = other.name
            fields = _data({**head, "elsewhere": elsewhere})[:-1]
            contents = _contents(pages[number], len(runs), views)
            file.write_bytes(page.with_data(fields + b"," + contents + b"}"))
    return files


def _check_target(path: Path) -> None:
    """Checks that no file of the user's is overwritten."""
    if path.is_file():
        with open(path, "rb") as file:
            if _GENERATOR.encode() in file.read(4096):
                return
    if path.exists():
        raise SettingsError(f"{path} exists and is not a page of `retool view`: name another file")


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")


def _write_views(
    indexes: Sequence[Index],
    rows: Sequence[Sequence[dict[str, Any]]],
    views: IO[bytes],
    progress: Progress | None,
) -> Iterator[_Item]:
    """Writes the views of all episodes into a file, one behind the other."""
    kept = [{row["address"] for row in of} for of in rows]
    todo = [(run, row["address"]) for run, of in enumerate(rows) for row in of]
    for number, (run, address) in enumerate(todo, 1):
        view = _data(_within(episode_view(indexes[run], address), kept[run]))
        tokens = tokens_view(indexes[run], address)
        held = _data(tokens) if tokens["spans"] else b""
        yield _Item(run, address, views.tell(), len(view), len(held))
        views.write(view + held)
        if progress:
            progress(number, len(todo))


def _within(view: dict[str, Any], kept: Collection[str]) -> dict[str, Any]:
    """A view that refers to no episode outside of the page."""
    forks = [
        {**fork, "addresses": [each for each in fork["addresses"] if each in kept]}
        for fork in view["forks"]
    ]
    parent = view["parent"]
    if parent and parent["address"] not in kept:
        parent = {**parent, "address": None}
    return {**view, "forks": forks, "parent": parent}


def _divided(items: Sequence[_Item], room: int) -> Iterator[list[_Item]]:
    """Yields the episodes of each page."""
    page: list[_Item] = []
    size = 0
    for item in items:
        if page and size + item.size > room:
            yield page
            page, size = [], 0
        page.append(item)
        size += item.size
    yield page


def _contents(items: Sequence[_Item], runs: int, views: IO[bytes]) -> bytes:
    """The episodes and the tokens of a page, as the fields `episodes` and `tokens` in JSON."""
    episodes: list[list[bytes]] = [[] for _ in range(runs)]
    tokens: list[list[bytes]] = [[] for _ in range(runs)]
    for item in items:
        views.seek(item.start)
        name = _data(item.address) + b":"
        episodes[item.run].append(name + views.read(item.view))
        if item.tokens:
            tokens[item.run].append(name + views.read(item.tokens))
    fields = {b"episodes": episodes, b"tokens": tokens}
    return b",".join(
        b'"%s":[%s]' % (name, b",".join(b"{%s}" % b",".join(each) for each in values))
        for name, values in fields.items()
    )


def _data(value: Any) -> bytes:
    """A value as JSON that can't end the element around it."""
    return to_json(value).replace("<", "\\u003c").encode("ascii")


# --- the page ------------------------------------------------------------------------------------


class _Page:
    """The page with its style and script inside, cut where the data belongs.

    Args:
        files: The files of the page by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        text = files["index.html"].decode()
        style = files["style.css"].decode()
        found = _SCRIPT.search(text)
        assert found is not None and text.count(_STYLE) == text.count("<head>") == 1
        script = "\n".join(_modules(files, found[1], {}).values())
        assert "</style" not in style.lower() and "</script" not in script.lower()
        allowed = (
            f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
            "img-src data:; base-uri 'none'; form-action 'none'"
        )
        policy = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(allowed)}">'
        before, after = text[: found.start()], text[found.end() :]
        before = before.replace("<head>", f"<head>\n{_GENERATOR}\n{policy}")
        before = before.replace(_STYLE, f"<style>{style}</style>")
        before += '<script type="application/json" id="data">'
        self._before = before.encode()
        self._after = f'</script><script type="module">{script}</script>{after}'.encode()
        self.size = len(self._before) + len(self._after)
        """The number of bytes without data."""

    def with_data(self, data: bytes) -> bytes:
        """The file with its data."""
        return self._before + data + self._after


def _modules(files: dict[str, bytes], name: str, done: dict[str, str]) -> dict[str, str]:
    """The modules that one module needs, in the order of their use, without import and export.

    Args:
        files: The files of the page by name.
        name: The name of the module.
        done: The modules that are already there; the others are added.
    """
    text = files[name].decode()
    for imported in _IMPORT.findall(text):
        if imported not in done:
            _modules(files, imported, done)
    done[name] = _EXPORT.sub("", _IMPORT.sub("", text))
    return done


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
