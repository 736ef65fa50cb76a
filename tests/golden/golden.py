"""The golden episodes: seed, settings and actions, with the transcripts that they give.

`episodes.jsonl` has an episode a line. This command writes it anew, from its own seeds, settings
and actions:

    python tests/golden/golden.py

The command refuses to change a transcript while `retool_env.REVISION` stays the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from retool_env import REVISION, Episode, Generation, Problem, ReToolEnv, Rules, Transcript
from retool_env.episode import GradeAnswer, Need
from retool_env.grading import is_equivalent
from retool_env.interpreter import Interpreter
from retool_env.sandbox import Sandbox, make_sandbox
from retool_env.task import registered_settings

EPISODES = Path(__file__).with_name("episodes.jsonl")


class PairTokenizer:
    """Two characters a token, so that tags end inside tokens. Ids depend on the text alone."""

    eos_token_id = 0
    chat_template = None

    def encode(self, text: str, **_: Any) -> list[int]:
        pairs = (text[i : i + 2] for i in range(0, len(text), 2))
        return [1 + sum(ord(each) << 21 * at for at, each in enumerate(pair)) for pair in pairs]

    def decode(self, token_ids: Iterable[int], **_: Any) -> str:
        numbers = [each - 1 for each in token_ids if each]
        pairs = ((each & 0x1FFFFF, each >> 21) for each in numbers)
        return "".join(chr(one) + (chr(other) if other else "") for one, other in pairs)

    def apply_chat_template(self, conversation: Any, **_: Any) -> str:
        raise AssertionError("there is no template")


def play(case: dict[str, Any], sandbox: Sandbox) -> dict[str, Any]:
    """The transcript of a case, as its file holds it; without wall-clock times."""
    settings = registered_settings(case["id"]) | case["settings"]
    by_tokens = settings.pop("max_tokens", None)
    with contextlib.closing(ReToolEnv(**settings, sandbox=sandbox)) as env:
        _, info = env.reset(seed=case["seed"])
        problem = info["transcript"].problem
        if by_tokens is not None:
            return timeless(_play_tokens(case, by_tokens, problem, env.rules, sandbox))
        for action in case["actions"]:
            *_, info = env.step(action)
    return timeless(info["transcript"])


def _play_tokens(
    case: dict[str, Any], max_tokens: int, problem: Problem, rules: Rules, sandbox: Sandbox
) -> Transcript:
    rules = dataclasses.replace(rules, max_tokens=max_tokens)
    tokenizer = PairTokenizer()
    episode = Episode(problem, rules, tokenizer)
    with contextlib.closing(Interpreter(sandbox)) as interpreter:
        for action in case["actions"]:
            need = _act(episode, tokenizer, action)
            if isinstance(need, GradeAnswer):
                episode.graded(is_equivalent(need.answer, need.gold))
            elif need is not None:
                episode.executed(interpreter.run(need))
    return episode.transcript


def timeless(transcript: Transcript) -> dict[str, Any]:
    """A transcript as JSON values, but for what differs between equal episodes."""
    record = json.loads(json.dumps(transcript.to_json()))
    for span in record["spans"]:
        del span["seconds"]
        if span["execution"] is not None:
            del span["execution"]["duration"]
    return record


def _act(episode: Episode, tokenizer: PairTokenizer, text: str) -> Need | None:
    ids = tokenizer.encode(text)
    stopped = any(tag in text for tag in episode.stop)
    if not stopped:
        ids.append(tokenizer.eos_token_id)
    reason = "tag" if stopped else "eos"
    return episode.act_ids(Generation(tuple(ids), (-0.5,) * len(ids), reason))


def read() -> list[dict[str, Any]]:
    """The cases of the file."""
    return [json.loads(line) for line in EPISODES.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    """Writes the file anew; returns the exit status."""
    cases, lines, changed = read(), [], []
    with make_sandbox("nsjail") as sandbox:
        for case in cases:
            transcript = play(case, sandbox)
            before = case.get("transcript")
            if before is not None and before != transcript and before["revision"] == REVISION:
                changed.append(case["name"])
            lines.append(json.dumps({**case, "transcript": transcript}, ensure_ascii=False) + "\n")
    if changed:
        print(f"raise retool_env.REVISION first; these differ: {', '.join(changed)}")
        return 1
    EPISODES.write_text("".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
