"""Report: the outcomes of a cold start's lines, as files and as a table."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.base.records import check_kinds, intact, read_object, write_atomically
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
        transcripts: For each line its episode, or a `Drop` if an API refused the line.
        keep_contradictions: Whether a made-up result may differ from the real result; see `verify`.

    Raises:
        SettingsError: If no trace is right.
        PolicyUnavailable: If some traces could not be made.
    """
    kept, dropped, made_up, differ, failed = [], [], 0, 0, 0
    calls: list[bool] = []
    for source, transcript in zip(sources, transcripts, strict=True):
        asked = {"role": "user", "content": source.prompt}
        if isinstance(transcript, Drop):
            row = {**source.known, "messages": [asked]}
            dropped.append({**dataclasses.asdict(transcript), **row})
            continue
        if transcript.stop_reason is StopReason.INFRASTRUCTURE:
            failed += 1
            continue
        pairs = results(transcript, source.parts)
        made_up += len(pairs)
        differ += sum(not agrees(*pair) for pair in pairs)
        drop = verify(transcript, source.parts, keep_contradictions)
        response = "".join(text for _, text in written(transcript))
        answered = {"role": "assistant", "content": response}
        row = {**source.known, "messages": [asked, answered]}
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
            f"{failed} of {len(sources)} lines could not be done, because the API or the sandbox "
            f"failed; the verified traces of the other lines are in {folder / 'data.jsonl'}"
        )
    if not kept:
        raise SettingsError(
            f"no trace was verified: read the reasons in {folder / 'dropped.jsonl'}"
        )


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a finished run.

    Raises:
        SettingsError: If the report is damaged.
    """
    path, cure = folder / "report.json", f"delete {folder / 'done'}: --resume then writes it again"
    report = read_object(path, cure)
    kinds: dict[str, Any] = dict.fromkeys(("lines", "verified", "failed", "answers_unchecked"), int)
    parts = {"dropped": {}, "programs": {"run": int, "failed": int}}
    parts["made_up_results"] = {"all": int, "contradicted": int}
    with intact(path, cure):
        check_kinds(report, kinds | dict.fromkeys(parts, dict[str, int]), [*kinds, *parts])
        for name, of in parts.items():
            check_kinds(report[name], of, of)
    return report


def table(report: Mapping[str, Any]) -> str:
    """The report as a Markdown table, with further counts below it."""
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
        f"programs in verified traces: {programs['run']}, of which {programs['failed']} failed",
    ]
    if made_up["all"]:
        lines.append(
            f"made-up results: {made_up['all']}, of which {made_up['contradicted']} differ from "
            "the real results"
        )
    if report["answers_unchecked"]:
        lines.append(f"verified without a known answer: {report['answers_unchecked']}")
    return "\n".join(lines) + "\n"
