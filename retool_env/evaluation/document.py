"""Pages of figures: one HTML file that needs neither a network nor another file, or Markdown.

A page is a list of parts in their order. All text is escaped; a page runs no script. Characters
that a reader can't see, or that reorder the text around them, are shown as escapes.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from retool_env.errors import SettingsError
from retool_env.metrics.tables import markdown

Cells = Sequence[Sequence[str]]
"""The rows of a table; the first row and the first column are headings."""


@dataclass(frozen=True)
class _Part:
    """A part of a page in both forms."""

    html: str
    """The part as HTML."""
    markdown: str
    """The part as Markdown; a picture is a link to its file."""


@dataclass
class Document:
    """A page that is built part by part.

    Example:
        >>> page = Document("Two models")
        >>> page.heading("Accuracy <all problems>")
        >>> page.table([["", "accuracy"], ["A", "50 %"], ["B", "60 %"]])
        >>> "&lt;all problems&gt;" in page.html()
        True
    """

    title: str
    """The title of the page."""
    pictures: dict[str, bytes] = field(default_factory=dict)
    """The PNG files of the page by name, without `.png`."""
    _parts: list[_Part] = field(default_factory=list)

    def heading(self, text: str, level: int = 2, anchor: str | None = None) -> None:
        """Adds a heading.

        Args:
            text: The text.
            level: The level, from 2 to 4; 1 is the title of the page.
            anchor: The name for links to the heading; `None`: no name.
        """
        named = "" if anchor is None else f' id="{_escaped(anchor)}"'
        self._add(f"<h{level}{named}>{_escaped(text)}</h{level}>", f"{'#' * level} {_marked(text)}")

    def paragraph(self, text: str, small: bool = False) -> None:
        """Adds a paragraph.

        Args:
            text: The text.
            small: Whether it is a note below a table or a picture.
        """
        inner = f"<small>{_escaped(text)}</small>" if small else _escaped(text)
        self._add(f"<p>{inner}</p>", _marked(text))

    def verbatim(self, text: str, label: str) -> None:
        """Adds a text whose line breaks and spaces are kept.

        Args:
            text: The text.
            label: The name of the text, for a reader who does not see the page.
        """
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
        self._add(
            f'<pre tabindex="0" role="group" aria-label="{_escaped(label)}">{_escaped(text)}</pre>',
            f"{fence}text\n{visible(text)}\n{fence}",
        )

    def warning(self, text: str) -> None:
        """Adds a paragraph that a reader must not overlook."""
        self._add(f'<p role="note" class="warning">{_escaped(text)}</p>', f"**{_marked(text)}**")

    def listing(self, lines: Iterable[str]) -> None:
        """Adds a list."""
        lines = list(lines)
        inner = "".join(f"<li>{_escaped(line)}</li>" for line in lines)
        self._add(f"<ul>{inner}</ul>", "\n".join(f"- {_marked(line)}" for line in lines))

    def links(self, links: Iterable[tuple[str, str]]) -> None:
        """Adds a list of links to files beside the page.

        Args:
            links: The text and the relative address of each link.
        """
        links = list(links)
        inner = "".join(
            f'<li><a href="{_escaped(to)}">{_escaped(text)}</a></li>' for text, to in links
        )
        self._add(
            f"<ul>{inner}</ul>", "\n".join(f"- [{_marked(text)}]({to})" for text, to in links)
        )

    def table(self, rows: Cells, caption: str = "") -> None:
        """Adds a table.

        Args:
            rows: The rows; the first row and the first column are headings.
            caption: The caption; empty: no caption.
        """
        head, *body = rows
        inner = f"<caption>{_escaped(caption)}</caption>" if caption else ""
        columns = "".join(
            f'<th scope="col">{_escaped(cell)}</th>' if cell else "<td></td>" for cell in head
        )
        inner += f"<thead><tr>{columns}</tr></thead><tbody>"
        for name, *cells in body:
            row = "".join(f"<td>{_escaped(cell)}</td>" for cell in cells)
            inner += f'<tr><th scope="row">{_escaped(name)}</th>{row}</tr>'
        text = markdown([[_marked(cell) for cell in row] for row in rows])
        label = _escaped(caption or head[0] or ", ".join(head[1:]))
        self._add(
            _scrolling(f"<table>{inner}</tbody></table>", label),
            f"{_marked(caption)}\n\n{text}" if caption else text,
        )

    def picture(self, name: str, data: bytes, caption: str, alt: str = "") -> None:
        """Adds a picture.

        Args:
            name: The name of its file, without `.png`.
            data: The bytes of the PNG file.
            caption: The caption.
            alt: The description for a reader who does not see the picture; empty: the caption.
        """
        self.pictures[name] = data
        address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        image = f'<img src="{address}" alt="{_escaped(alt or caption)}">'
        self._add(
            f"<figure>{_scrolling(image, _escaped(caption))}"
            f"<figcaption>{_escaped(caption)}</figcaption></figure>",
            f"![{_marked(alt or caption)}]({name}.png)\n\n{_marked(caption)}",
        )

    @contextmanager
    def details(self, summary: str) -> Iterator[None]:
        """Adds the parts of the block as a part that is closed until a reader opens it.

        Args:
            summary: The line that is always shown.
        """
        outer, self._parts = self._parts, []
        try:
            yield
        finally:
            inner, self._parts = self._parts, outer
            self._add(
                f"<details><summary>{_escaped(summary)}</summary>"
                f"{''.join(part.html for part in inner)}</details>",
                "\n\n".join([f"**{_marked(summary)}**", *(part.markdown for part in inner)]),
            )

    def html(self) -> str:
        """The page as HTML."""
        body = "\n".join([f"<h1>{_escaped(self.title)}</h1>", *(part.html for part in self._parts)])
        return _PAGE.format(
            title=_escaped(self.title), style=_STYLE, body=body, generator=_GENERATOR
        )

    def markdown(self) -> str:
        """The page as Markdown; pictures are links to the PNG files."""
        return (
            "\n\n".join([f"# {_marked(self.title)}", *(part.markdown for part in self._parts)])
            + "\n"
        )

    def write(self, path: Path) -> Path:
        """Writes the page, and its pictures beside it.

        Args:
            path: The HTML file; its folder is made.

        Returns:
            The HTML file.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        for name, data in self.pictures.items():
            (path.parent / f"{name}.png").write_bytes(data)
        return path

    def _add(self, as_html: str, as_markdown: str) -> None:
        self._parts.append(_Part(as_html, as_markdown))


def check_place(page: Path, beside: Iterable[str] = ()) -> None:
    """Checks that a page can be written without overwriting a file of the user's.

    A page of an earlier call may be replaced, and so may the files beside it.

    Args:
        page: The HTML file.
        beside: The names of other files in its folder that are written as well.

    Raises:
        SettingsError: One of the files exists, and an earlier call did not write it.
    """
    if page.is_file():
        with open(page, "rb") as file:
            if _GENERATOR.encode() in file.read(4096):
                return
    for path in (page, *(page.parent / name for name in beside)):
        if path.exists():
            raise SettingsError(
                f"{path} exists already and belongs to no earlier page: move it, or name another "
                "folder with --out"
            )


_GENERATOR = '<meta name="generator" content="retool-env">'
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
"""Control characters, marks of direction, characters without width, and halves of a pair."""


def visible(text: object) -> str:
    r"""A text whose hidden characters are shown as escapes; tabs and line breaks are kept.

    Example:
        >>> visible("\x1b[31mred\u202e")
        '\\x1b[31mred\\u202e'
    """
    return _HIDDEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


_TAG = re.compile("<(?=[A-Za-z/!?])")


def _marked(text: object) -> str:
    """A text in Markdown, where a tag in it would be HTML. The sign in `p < 0.05` is kept."""
    return _TAG.sub("&lt;", visible(text))


def _escaped(value: object) -> str:
    return html.escape(visible(value))


def _scrolling(inner: str, label: str) -> str:
    """A part that scrolls by itself where it is wider than the page; the keyboard reaches it."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{label}">{inner}</div>'


_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
html { background: Canvas; color: CanvasText; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem;
  padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 0.4rem; }
h3 { font-size: 1rem; margin: 1rem 0 0; }
p { max-width: 46rem; margin: 0.4rem 0; }
.warning { border-left: 4px solid currentColor; padding-left: 0.8rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 0.6rem 0;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.3rem 0; }
td, th { border-bottom: 1px solid var(--line); padding: 0.25rem 0.8rem 0.25rem 0;
  text-align: left; vertical-align: top; }
td { min-width: 4.5rem; white-space: nowrap; }
details td { white-space: normal; }
thead th { font-weight: 600; border-bottom-width: 2px; }
tbody th { font-weight: 400; min-width: 9rem; position: sticky; left: 0; background: Canvas; }
figure { margin: 1rem 0; }
pre { font-size: 0.85rem; line-height: 1.4; white-space: pre-wrap; overflow-wrap: anywhere;
  background: var(--soft); padding: 0.6rem 0.8rem; border-radius: 4px; max-height: 32rem;
  overflow-y: auto; }
img { display: block; max-width: 100%; background: white; border-radius: 4px; }
figcaption { font-size: 0.85rem; }
summary { cursor: pointer; margin-top: 2rem; font-weight: 600; }
h4 { font-size: 0.95rem; margin: 0.8rem 0 0; }
@media (max-width: 700px) { figure img { max-width: 40rem; } }
@media print { pre { max-height: none; } .wide { overflow: visible; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{generator}
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
