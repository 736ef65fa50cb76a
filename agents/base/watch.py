"""Watch: a thread of each process of a run, which tells the processes about one another.

A process in a collective waits for the others without a word. So a thread of each process writes a
sign of life every two seconds, with the process's present work, to the store of the process group
(a `TCPStore`), and reads the others' signs. A process that hangs or was killed is named with its
work: "rank 1 (gpu-7, rollouts since 12:03:21 UTC)". A signal that one process received reaches the
others in the same way, also where they wait in a collective or for their rollouts.

The store belongs to the first machine. If that machine hangs, a question to the store waits for
ever. So a second thread, which asks nothing, ends a process whose store is silent.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from torch import distributed

from agents.base.sharding import processes
from agents.base.stopping import Stopping
from retool_env.training.processes import everywhere, present_phase

POLL_SECONDS = 0.5
"""Seconds between two looks for a signal of another process."""

BEAT_SECONDS = 2.0
"""Seconds between two signs of life of a process."""

SILENT_SECONDS = 5.0
"""A process without a sign of life for this time is named as the cause of an error."""

WARN_SECONDS = 60.0
"""A process without a sign of life for this time is named in a warning."""

GONE_SECONDS = 600.0
"""A process without a sign of life for this time ends the run."""

GONE_AT_STOP_SECONDS = 60.0
"""The same once the run was told to stop: a launcher does not wait for long."""

STALLED_SECONDS = 10.0
"""If a process itself stood still for longer, as in a suspended job, or waited for the store, then
this time does not count as silence of the others."""

REFRESH_SECONDS = 30.0
"""Seconds between two calls of `refresh`."""

_numbers = itertools.count()


class Watch:
    """The signs of life of the processes of a run.

    Args:
        stopping: The handler of the signals.
        refresh: Called regularly by the first process.
        gone: Called with a text before this process ends, because another process is gone.
    """

    def __init__(
        self, stopping: Stopping, refresh: Callable[[], object], gone: Callable[[str], object]
    ) -> None:
        self._stopping, self._refresh, self._gone = stopping, refresh, gone
        self._store: Any = None
        self._told = self._lost = False
        self._beats = itertools.count()
        self._seen: dict[int, tuple[str, float]] = {}
        self._warned: set[int] = set()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._looked = self._answered = time.monotonic()
        """The times of the last look at the others, and of the store's last answer."""

    def start(self) -> None:
        """Begin to watch. All processes call this together."""
        state = processes()
        self._rank, self._count = state.process_index, state.num_processes
        number = next(_numbers)  # the same on all processes, which start the same runs
        if self._count > 1:
            # A copy has a connection of its own: the store's own one may wait for a key.
            store = distributed.distributed_c10d._get_default_store().clone()
            self._store = distributed.PrefixStore(f"retool-watch-{number}", store)
            self._beat()
            everywhere(None)
        self._looked = self._answered = time.monotonic()
        for work in (self._watch, self._guard):
            self._threads.append(threading.Thread(target=work, name="watch", daemon=True))
            self._threads[-1].start()

    def close(self, error: BaseException | None = None) -> None:
        """End the watch.

        Args:
            error: The error that ends this process, a `KeyboardInterrupt` for a signal; `None`: no
                error.
        """
        if not self._threads:
            return
        self._closing.set()
        for thread in self._threads:
            thread.join(SILENT_SECONDS)  # a store that does not answer may hold it
        silent = any(thread.is_alive() for thread in self._threads)
        self._threads.clear()
        if self._store is not None and not self._lost and not silent:
            with contextlib.suppress(RuntimeError):
                how = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
                reason = str(error) or type(error).__name__
                self._beat("ended" if error is None else f"{how}: {reason}")

    def stopped(self) -> bool:
        """Whether a signal ended another process: the errors of the others are a consequence."""
        return any(self._work(rank).startswith("stopped: ") for rank in self._others())

    def report(self) -> str:
        """The processes that are silent or have failed; otherwise, the work of each process.

        It waits until a process that was killed just now counts as silent. The text is empty if the
        watch has not begun, or there is one process.
        """
        if self._store is None:
            return ""
        until = time.monotonic() + SILENT_SECONDS + BEAT_SECONDS
        while not (found := self._silent(SILENT_SECONDS)) and time.monotonic() < until:
            if self._lost or any(self._failed(rank) for rank in self._seen):
                break
            time.sleep(POLL_SECONDS / 5)
        if self._lost:
            return "the store of the process group is gone, and the process that held it with it"
        failed = [self._name(rank) for rank in self._seen if self._failed(rank)]
        silent = [self._name(rank) for rank in found if not self._failed(rank)]
        if silent:
            return f"without a sign of life: {', '.join(silent)}"
        if failed:
            return ", ".join(failed)
        return f"all processes are alive: {', '.join(map(self._name, range(self._count)))}"

    def _watch(self) -> None:
        beaten, refreshed = -BEAT_SECONDS, time.monotonic()
        while not self._closing.wait(POLL_SECONDS):
            now = time.monotonic()
            if self._rank == 0 and now - refreshed >= REFRESH_SECONDS:
                self._refresh()
                refreshed = now
            if self._store is None or self._lost:
                continue
            try:
                self._pass_signals_on()
                if now - beaten >= BEAT_SECONDS:
                    self._beat()
                    beaten = now
                    self._look()
                self._answered = time.monotonic()
            except RuntimeError:
                self._lost = True

    def _guard(self) -> None:
        """End this process if the store gives no answer: the first machine hangs or is gone."""
        before, warned = time.monotonic(), False
        while self._store is not None and not self._closing.wait(POLL_SECONDS):
            now = time.monotonic()
            if now - before > STALLED_SECONDS:
                self._answered += now - before
            before, silent = now, now - self._answered
            limit = GONE_AT_STOP_SECONDS if self._stopping.asked() else GONE_SECONDS
            if silent >= limit:
                self._leave(f"{self._name(0)}: its machine gives no answer for {limit:.0f} s")
            elif silent >= WARN_SECONDS and not warned:
                self._say(f"{self._name(0)}: its machine gives no answer")
            warned = silent >= WARN_SECONDS

    def _pass_signals_on(self) -> None:
        if self._stopping.asked():
            if not self._told:
                self._store.set("stop", str(self._stopping.number))
                self._told = True
        elif self._store.check(["stop"]):
            self._stopping.tell(int(self._store.get("stop")))
            self._told = True

    def _beat(self, work: str | None = None) -> None:
        name, since = present_phase()
        beat = [next(self._beats), socket.gethostname(), work or name, since]
        self._store.set(str(self._rank), json.dumps(beat))

    def _look(self) -> None:
        """Read the signs of life of all processes, warn of silent ones, and end without them."""
        beats = self._store.multi_get([str(rank) for rank in range(self._count)])
        now = time.monotonic()
        stood, self._looked = now - self._looked, now
        if stood > STALLED_SECONDS:
            self._seen = {rank: (text, when + stood) for rank, (text, when) in self._seen.items()}
        for rank, beat in enumerate(beats):
            text = beat.decode()
            if rank not in self._seen or self._seen[rank][0] != text:
                self._seen[rank] = text, now
                self._warned.discard(rank)
        silent = self._silent(WARN_SECONDS)
        if self._rank == min(self._seen.keys() - silent, default=self._rank):
            for rank in silent:
                if rank not in self._warned:
                    self._say(f"{self._name(rank)} gives no sign of life")
        self._warned |= set(silent)
        limit = GONE_AT_STOP_SECONDS if self._stopping.asked() else GONE_SECONDS
        if gone := self._silent(limit):
            names = ", ".join(map(self._name, gone))
            self._leave(f"{names}: no sign of life for {limit:.0f} s")

    def _leave(self, why: str) -> None:
        text = f"{why}, so the run ends"
        self._say(text)
        self._gone(text)
        # The main thread may wait for that process in a collective, without an end.
        os._exit(1)

    def _others(self) -> list[int]:
        return [rank for rank in sorted(self._seen) if rank != self._rank]

    def _work(self, rank: int) -> str:
        work: str = json.loads(self._seen[rank][0])[2]
        return work

    def _silent(self, seconds: float) -> list[int]:
        """The other processes without a sign of life for a time, if they have not ended."""
        now = time.monotonic()
        return [
            rank
            for rank in self._others()
            if now - self._seen[rank][1] >= seconds and self._work(rank) != "ended"
        ]

    def _failed(self, rank: int) -> bool:
        return rank != self._rank and self._work(rank).startswith(("failed: ", "stopped: "))

    def _name(self, rank: int) -> str:
        if rank not in self._seen:
            return f"rank {rank}"
        _, host, work, since = json.loads(self._seen[rank][0])
        clock = time.strftime("%H:%M:%S UTC", time.gmtime(since))
        return f"rank {rank} ({host}, {work} since {clock})"

    def _say(self, text: str) -> None:
        print(f"rank {self._rank}: {text}", file=sys.stderr, flush=True)
