"""The server's report on itself: whether a program can run (`Health`), and counters (`Metrics`)."""

import asyncio
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from retool_env.execution import Execution, Outcome, Sandbox

PROBE_EVERY = 10.0
"""Seconds for which the result of a probe holds."""
PROBE_SECONDS = 30.0
"""The longest time of a probe."""


class Health:
    """Whether a program can run; probed no more often than needed.

    Args:
        sandbox: The sandbox that runs the programs.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._lock = asyncio.Lock()
        self._reason = ""
        self._known_at = float("-inf")

    def saw(self, execution: Execution) -> None:
        """Learns from a program of a client; after a failure the next question starts a probe.

        Args:
            execution: The result of the program.
        """
        if execution.outcome is not Outcome.INFRASTRUCTURE:
            self._reason, self._known_at = "", time.monotonic()
        elif not self._reason:
            self._known_at = float("-inf")

    async def failure(self) -> str:
        """Why programs cannot run; empty if they can."""
        async with self._lock:
            if time.monotonic() - self._known_at > PROBE_EVERY:
                self._reason = await self._probe()
                self._known_at = time.monotonic()
            return self._reason

    async def _probe(self) -> str:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                execution = await self._sandbox.run_async("print(6 * 7, end='')")
        except TimeoutError:
            return f"a probe program did not end within {PROBE_SECONDS:g} s"
        except Exception as error:  # any error means that programs cannot run
            return f"{type(error).__name__}: {error}"
        if execution.outcome is Outcome.OK and execution.stdout == "42":
            return ""
        return f"a probe program ended with {execution.outcome}: {execution.error}"


class Metrics:
    """The counters behind `/metrics`."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.programs = Counter(
            "retool_sandbox_programs",
            "Programs by how they ended; 'cancelled': the client went away",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in (*Outcome, "cancelled"):
            self.programs.labels(str(outcome))  # shown from the start, as 0
        self.busy = Counter("retool_sandbox_busy", "Requests refused with 503", registry=registry)
        self.in_flight = Gauge(
            "retool_sandbox_in_flight", "Programs that run or wait", registry=registry
        )
        self.seconds = Histogram(
            "retool_sandbox_program_seconds",
            "Seconds that a program ran, waiting left out",
            buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
            registry=self.registry,
        )
