"""The page of one or several models: a table for the terminal, PNG files, and one HTML file."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retool_env.errors import DataError
from retool_env.evaluation.recover.figures import SCHEMA
from retool_env.evaluation.recover.pictures import Results, draw, kinds_of, shown_figures, title_of
from retool_env.evaluation.recover.records import RESULTS
from retool_env.files import read_text
from retool_env.metrics.tables import markdown

PAGE = "page.html"
"""The name of the page."""

_CAPTIONS = {
    "heat-map": "Effect of each fault on accuracy, and recovery ratio. A dash: not shown.",
    "recovery": "Accuracy after a fault, against accuracy with the true result.",
    "dose": "Accuracy and calls against the rate of faults, with 95 % intervals.",
    "outcomes": "Continuations by their state after further calls.",
}


_MOST_KEYS = 8
"""The most hidden figures that the terminal names for one reason; the page names all."""


def read_results(folder: str | Path) -> dict[str, Any]:
    """Reads `results.json`.

    Args:
        folder: The folder of a model in the benchmark.

    Raises:
        DataError: The file is missing, damaged, or of a later version.
    """
    path = Path(folder) / RESULTS
    try:
        values = json.loads(read_text(path))
        known = values["schema"] in range(1, SCHEMA + 1)
    except FileNotFoundError:
        raise DataError(
            f"{path} was not found: name the folder of a finished `retool recover`"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} is damaged: {error!r:.200}") from None
    if not known:
        raise DataError(f"{path} is of schema {values['schema']!r:.20}: update retool-env")
    return values


def comparable(results: Sequence[Results]) -> str:
    """The reason why several results can't be compared; empty if they can."""
    for name in ("suite_hash", "fingerprint", "revision"):
        values = sorted({str(one[name])[:12] for one in results})
        if len(values) > 1:
            return f"these folders differ in {name} ({', '.join(values)}): they can't be compared"
    if len({tuple(one["kinds"]) for one in results}) > 1:
        return "these folders differ in the kinds of faults: their dose curves can't be compared"
    return ""


def table(results: Sequence[Results]) -> str:
    """The main figures of each model as a Markdown table, and the figures that are not shown.

    Args:
        results: The results of each model.
    """
    by_model = [shown_figures(one) for one in results]
    cells = [["", *map(title_of, results)]]
    for key, name in _rows(results):
        if any(key in figures for figures in by_model):
            cells.append([name, *(_text(figures.get(key)) for figures in by_model)])
    lines = [markdown(cells)]
    for one in results:
        lines += ["", f"{title_of(one)}: {_counted(one['counts'])}"]
        hidden: dict[str, list[str]] = {}
        for figure in one["figures"]:
            if not figure.get("shown", True):
                hidden.setdefault(figure["reason"], []).append(figure["key"])
        for why, keys in hidden.items():
            more = len(keys) - _MOST_KEYS
            listed = ", ".join(keys[:_MOST_KEYS]) + f" and {more} more" * (more > 0)
            lines.append(f"not shown: {listed}: {why}")
    if why := comparable(results):
        lines += ["", why]
    return "\n".join(lines)


def _rows(results: Sequence[Results]) -> list[tuple[str, str]]:
    """Key and name of the rows of the table."""
    present = {figure["key"] for one in results for figure in one["figures"]}
    rows = [
        ("dose/0/accuracy", "accuracy without faults"),
        ("dose/area_ratio", "accuracy kept over all rates of faults"),
        ("frequency/gain", "gain by the tool"),
        ("frequency/price", "price of the offer of the tool"),
        ("fallback/accuracy", "accuracy once the tool is gone"),
    ]
    for kind in kinds_of(results):
        rows += [(f"effect/{kind}", f"{kind}: effect"), (f"ratio/{kind}", f"{kind}: recovery")]
    rows += [
        (key, key.replace("/", ": "))
        for key in sorted(present)
        if key.startswith(("natural/", "contagion/"))
    ]
    return [(key, name) for key, name in rows if key in present]


def _text(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "not shown"
    low, high = (
        "–" if figure[bound] is None else f"{figure[bound]:.3f}" for bound in ("low", "high")
    )
    return f"{figure['mean']:.3f} [{low}, {high}]"


def _counted(counts: Mapping[str, Any]) -> str:
    """The numbers of prefixes, and of the prefixes that are left out."""
    prefixes = counts["prefixes"]
    failed = sum(counts["infrastructure_failures"].values())
    return (
        f"{counts['parents']} parents, {prefixes['fork']} forked, {prefixes['natural']} with an "
        f"error of their own; {counts['without_call']} have fewer calls than the fork needs, "
        f"{counts['not_reproducible']} prefixes are not reproducible, "
        f"{sum(counts['not_eligible'].values())} pairs of prefix and fault are not eligible, "
        f"{failed} episodes failed, {counts['visible']} prefixes are visible messages only"
    )


def write_page(results: Sequence[Results], folder: Path) -> Path:
    """Writes the pictures and the page; the page needs no network and no other file.

    Args:
        results: The results of each model.
        folder: The folder of the files.

    Returns:
        The page.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(results)
    for name, data in pictures.items():
        (folder / f"{name}.png").write_bytes(data)
    path = folder / PAGE
    path.write_text(_page(results, pictures), encoding="utf-8")
    return path


def _page(results: Sequence[Results], pictures: Mapping[str, bytes]) -> str:
    titles = ", ".join(title_of(one) for one in results)
    body = [f"<h1>ReTool-Recover {html.escape(str(results[0]['suite']))}</h1>"]
    if why := comparable(results):
        body.append(f"<p><strong>{html.escape(why)}</strong></p>")
    for name, data in pictures.items():
        caption = html.escape(_CAPTIONS[name.partition("-")[0] if name[-1:].isdigit() else name])
        address = f"data:image/png;base64,{base64.b64encode(data).decode()}"
        body.append(
            f'<figure><img src="{address}" alt="{caption}"><figcaption>{caption}</figcaption>'
            "</figure>"
        )
    body += [_settings(one) + _figures(one) for one in results]
    return _HTML.format(title=html.escape(titles), body="\n".join(body))


def _settings(results: Results) -> str:
    names = (
        *("suite", "part", "suite_hash", "quick", "env", "revision", "k", "m", "samples", "seed"),
        *("protocols", "sampling", "model", "counts"),
    )
    rows = "".join(
        f"<tr><th>{name}</th><td>{html.escape(json.dumps(results[name]))}</td></tr>"
        for name in names
    )
    return f"<h2>{html.escape(title_of(results))}</h2><table>{rows}</table>"


def _figures(results: Results) -> str:
    rows = []
    for figure in results["figures"]:
        shown = figure.get("shown", True) and figure["mean"] is not None
        value = _text(figure) if shown else f"not shown: {figure.get('reason') or 'no case'}"
        cells = (figure["key"], value, figure["count"], figure["problems"], figure["definition"])
        rows.append("".join(f"<td>{html.escape(str(cell))}</td>" for cell in cells))
    head = "<tr><th>figure</th><th>mean [95 %]</th><th>n</th><th>problems</th><th>meaning</th></tr>"
    return f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


_HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>ReTool-Recover: {title}</title>
<style>
body {{ font-family: sans-serif; margin: 2rem auto; max-width: 70rem; }}
table {{ border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }}
td, th {{ border: 1px solid #ccc; padding: 0.2rem 0.5rem; text-align: left; vertical-align: top; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
