"""The answers of the viewer's API, apart from HTTP: one method for each request.

| request       | parameters                                | answer                              |
|---------------|-------------------------------------------|-------------------------------------|
| `GET runs`    |                                           | the open runs                       |
| `GET rows`    | `run`, `since`                            | rows that changed; 0: all rows      |
| `GET episode` | `run`, `address`                          | one episode                         |
| `GET tokens`  | `run`, `address`                          | the tokens of one episode           |
| `GET search`  | `run`, `text`                             | addresses of episodes with the text |
| `GET span`    | `run`, `address`, `span`, `from`          | the text of a span from a character |
| `POST run`    | `run`, `address`, `call`, `seconds`       | the result of a program, run again  |

Runs are numbered from 0, in the order of the command line.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from retool_env.errors import RetoolError, SettingsError
from retool_env.evaluation.recover.records import RecoverRecord
from retool_env.evaluation.runs import DONE, Run
from retool_env.evaluation.view.episode import episode_view, span_text
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.tokens import tokens_view

Answer = dict[str, Any]
"""The JSON object of an answer."""


class Busy(RetoolError):
    """A program is being run for another request."""


class Api:
    """The API of one viewer. All methods may be called from any thread.

    Args:
        indexes: The indexes of the open runs.
    """

    def __init__(self, indexes: Sequence[Index]) -> None:
        self._indexes = indexes
        self._running = threading.Lock()
        self.requests: Mapping[str, Callable[[Mapping[str, str]], Answer]] = {
            "runs": self._runs,
            "rows": self._rows,
            "episode": lambda query: episode_view(self._index(query), _text(query, "address")),
            "tokens": lambda query: tokens_view(self._index(query), _text(query, "address")),
            "search": self._search,
            "span": self._span,
        }
        """The requests by name: functions of the query's parameters.

        They raise a SettingsError for a wrong parameter, and a DataError or an OSError for a
        record that can't be read.
        """

    def _runs(self, query: Mapping[str, str]) -> Answer:
        for index in self._indexes:
            index.refresh()
        return {"runs": describe(self._indexes), "can_run": True}

    def _rows(self, query: Mapping[str, str]) -> Answer:
        index = self._index(query)
        index.refresh()
        rows, following, removed = index.changes(_number(query, "since"))
        return {"rows": rows, "next": following, "removed": removed}

    def _search(self, query: Mapping[str, str]) -> Answer:
        return {"addresses": self._index(query).search(_text(query, "text"))}

    def _span(self, query: Mapping[str, str]) -> Answer:
        numbers = _number(query, "span"), _number(query, "from")
        return {"text": span_text(self._index(query), _text(query, "address"), *numbers)}

    def run(self, body: Mapping[str, Any]) -> Answer:
        """Runs the program of a call again, with another time limit.

        Args:
            body: The number of the run, the address, the number of the call, and the seconds.

        Raises:
            Busy: Another program is being run.
            SettingsError: A value is missing or wrong.
            SandboxUnavailable: The sandbox can't work here.
        """
        kinds = {"run": int, "address": str, "call": int, "seconds": int | float}
        for name, kind in kinds.items():
            if not isinstance(body.get(name), kind) or isinstance(body[name], bool):
                raise SettingsError(f"{name}: {body.get(name)!r:.60} is not a value of this field")
        index = self._index({"run": str(body["run"])})
        index.row(body["address"])  # an unknown address is refused before a sandbox is made
        from retool_env.evaluation.replay import run_call

        if not self._running.acquire(blocking=False):
            raise Busy("a program is already running: wait for its end")
        try:
            done = run_call(index.run, body["address"], body["call"], body["seconds"])
        finally:
            self._running.release()
        return {
            "outcome": str(done.outcome),
            "stdout": done.stdout,
            "error": done.error,
            "traceback": done.traceback,
            "seconds": done.duration,
        }

    def _index(self, query: Mapping[str, str]) -> Index:
        number = _number(query, "run")
        if number >= len(self._indexes):
            raise SettingsError(f"run: {number} is not one of the {len(self._indexes)} open runs")
        return self._indexes[number]


def _text(query: Mapping[str, str], name: str) -> str:
    if name not in query:
        raise SettingsError(f"the parameter {name} is missing")
    return query[name]


def _number(query: Mapping[str, str], name: str) -> int:
    text = _text(query, name)
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise SettingsError(f"{name}: {text!r:.60} is not a whole number")
    return int(text)


# --- descriptions of runs -----------------------------------------------------------------------


def describe(indexes: Sequence[Index]) -> list[Answer]:
    """The descriptions of runs, as the page shows them above its list.

    Args:
        indexes: The indexes of the runs, read.
    """
    return [
        {
            "run": number,
            "title": index.run.title,
            "kind": index.run.kind,
            "path": str(index.run.path),
            "details": _details(index),
            "finished": _finished(index.run),
        }
        for number, index in enumerate(indexes)
    ]


def _finished(run: Run) -> bool:
    """Whether no episode is expected any more."""
    if run.record is not None:
        return run.record.status != "running"
    return run.kind == "file" or (run.path / DONE).exists() or run.step is not None


def _details(index: Index) -> list[list[str]]:
    run, damaged = index.run, index.damaged
    record, settings = run.record, run.config.get("settings", {})
    values: dict[str, Any] = {"path": run.path}
    if record is not None:
        values |= {"model": record.model.name, "environment": record.env}
        if isinstance(record, RecoverRecord):
            values |= {"suite": record.suite, "part": record.part, "quick": record.quick}
        values |= {"problems": record.problems, "episodes of a problem": record.k}
        values |= {"seed": record.seed, "revision": record.revision, "status": record.status}
        values |= {"started": record.started}
    elif run.kind == "training":
        env = settings.get("env")
        values |= {"algorithm": run.config.get("algorithm"), "initial model": settings.get("model")}
        values |= {"environment": env.get("id") if isinstance(env, dict) else env}
        values |= {"steps": settings.get("steps"), "revision": run.config.get("revision")}
    if damaged:
        values["damaged lines"] = f"{len(damaged)}; the first: {damaged[0]}"
    return [[name, str(value)] for name, value in values.items() if value not in (None, "")]
