"""Report: what became of a cold start's lines, as files and as a table."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.base.records import check_kinds, damaged, read_object, write_atomically
from agents.base.settings import SettingsError
from agents.traces.sources import Source
from agents.traces.verification import Drop, agrees, results, verify, written
from retool_env.rollout import PolicyUnavailable
from retool_env.transcript import StopReason, Transcript


def write_result(
    folder: Path,
    sources: Sequence[Source],
    transcripts: Sequence[Transcript | Drop],
    keep_contradictions: bool,
) -> None:
    """Write `data.jsonl`, `dropped.jsonl` and `report.json`, and show the table.

    Args:
        folder: The run's folder.
        sources: The lines of the input.
        transcripts: What became of each line.
        keep_contradictions: See `verify`.

    Raises:
        SettingsError: If no trace is right.
        PolicyUnavailable: If some could not be made.
    """
    kept, dropped, made_up, differ, failed = [], [], 0, 0, 0
    calls: list[bool] = []
    for source, transcript in zip(sources, transcripts, strict=True):
        if isinstance(transcript, Drop):
            asked = [{"role": "user", "content": source.prompt}]
            dropped.append({**dataclasses.asdict(transcript), **source.known, "messages": asked})
            continue
        if transcript.stop_reason is StopReason.INFRASTRUCTURE:
            failed += 1
            continue
        pairs = results(transcript, source.said)
        made_up += len(pairs)
        differ += sum(not agrees(*pair) for pair in pairs)
        drop = verify(transcript, source.said, keep_contradictions)
        response = "".join(text for _, text in written(transcript))
        said = [("user", source.prompt), ("assistant", response)]
        row = {
            **source.known,
            "messages": [{"role": role, "content": content} for role, content in said],
        }
        if drop is None:
            kept.append(row)
            calls += [call.ok for call in transcript.calls]
        else:
            dropped.append({**dataclasses.asdict(drop), **row})
    report = {
        "lines": len(sources),
        "verified": len(kept),
        "dropped": dict(Counter(row["reason"] for row in dropped).most_common()),
        "failed": failed,
        "answers_unchecked": sum("answer" not in row for row in kept),
        "programs": {"run": len(calls), "failed": len(calls) - sum(calls)},
        "made_up_results": {"all": made_up, "contradicted": differ},
    }
    for name, rows in (("data.jsonl", kept), ("dropped.jsonl", dropped)):
        lines = (json.dumps(row) + "\n" for row in rows)
        write_atomically(folder / name, "".join(lines))
    write_atomically(folder / "report.json", json.dumps(report, indent=2) + "\n")
    print(table(report))
    if failed:
        raise PolicyUnavailable(
            f"{failed} of {len(sources)} lines could not be done, because the API or the sandbox failed; the others are in "
            f"{folder / 'data.jsonl'}"
        )
    if not kept:
        raise SettingsError(f"no trace was verified: {folder / 'dropped.jsonl'} says why of each")


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        SettingsError: If it is damaged.
    """
    path, cure = folder / "report.json", f"delete {folder / 'done'}: --resume then writes it anew"
    report = read_object(path, cure)
    kinds: dict[str, Any] = dict.fromkeys(("lines", "verified", "failed", "answers_unchecked"), int)
    parts = {"dropped": {}, "programs": {"run": int, "failed": int}}
    parts["made_up_results"] = {"all": int, "contradicted": int}
    try:
        check_kinds(report, kinds | dict.fromkeys(parts, dict[str, int]), [*kinds, *parts])
        for name, of in parts.items():
            check_kinds(report[name], of, of)
    except ValueError as error:
        raise damaged(path, str(error), cure) from None
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table and what goes with it."""
    rows = {"verified": report["verified"]}
    rows |= {f"dropped: {reason}": count for reason, count in report["dropped"].items()}
    if report["failed"]:
        rows["not done: API or sandbox failed"] = report["failed"]
    rows["lines"] = report["lines"]
    width = max(map(len, rows))
    lines = [f"| {'':{width}} | traces |", f"|{'-' * (width + 2)}|-------:|"]
    lines += [f"| {name:{width}} | {count:6} |" for name, count in rows.items()]
    programs, made_up = report["programs"], report["made_up_results"]
    lines += [
        "",
        f"programs in those verified: {programs['run']}, of which {programs['failed']} failed",
    ]
    if made_up["all"]:
        lines.append(
            f"results that were made up: {made_up['all']}, of which {made_up['contradicted']} differ from the real ones"
        )
    if report["answers_unchecked"]:
        lines.append(f"verified without a known answer: {report['answers_unchecked']}")
    return "\n".join(lines) + "\n"
