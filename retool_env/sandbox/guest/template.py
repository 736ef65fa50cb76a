"""The process that has loaded the packages, and is copied for each program.

It does as little as it can. Whatever it writes to while copies of it live is torn out of the large pages that make a
copy, and the end of one, cheap; so it only takes a request, forks, and tells the supervisor, whose child the copy is.
Loading takes about a second, in steps, between which requests are served already.
"""

import atexit
import bisect
import gc
import os
import select
import signal
import socket
import struct
import sys
import tempfile
from contextlib import suppress

from . import confine, syscalls, wire
from .immortal import immortalize
from .process import Process, forget_randomness

STANDARD = ("cmath", "copy", "datetime", "fractions", "heapq", "statistics", "string", "typing")
"""Of the standard library, what programs often import and the guest itself does not."""

WARM_UP = {
    "numpy": "numpy.random.rand(2); numpy.linalg.solve(numpy.eye(3), numpy.ones(3)); numpy.roots([1, -3, 2]); str(numpy.arange(3) / 2)",
    "sympy": """
from sympy import *
x, y = symbols("x y")
solve(x**2 - 3*x + 2, x), solve([x + y - 3, x - y - 1], [x, y]), nsolve(cos(x) - x, 1)
---
from sympy import *
x, y = symbols("x y")
simplify(sin(x)**2 + cos(x)**2)
---
from sympy import *
x, y = symbols("x y")
integrate(x * sin(x), x)
---
from sympy import *
x, y = symbols("x y")
factor(x**4 - 1), expand((x + y)**4), Poly(x**3 + x + 1).nroots(), diff(x**2 * sin(x), x), limit(sin(x) / x, x, 0)
summation(x, (x, 1, 10)), Rational(1, 3) + Rational(2, 5), N(pi, 30), nsimplify(0.5), binomial(10, 3), latex(sqrt(x) / 3)
isprime(10**9 + 7), factorint(360), divisors(28), totient(12), primerange(20), gcd(12, 18), mod_inverse(3, 7)
Matrix([[1, 2], [3, 4]]).inv(), Matrix([[1, 2], [3, 4]]).eigenvals(), Matrix([[1, 2], [3, 4]]).det()
series(cos(x), x, 0, 4), diophantine(2*x + 3*y - 5), str(x**2 / 3), pretty(x**2)
""",
}
"""What of a package is run once, since much is imported or computed at the first use."""


class Template:
    """Serves requests until the host is gone.

    Args:
        requests: The socket of the host's requests.
        supervisor: The socket to the supervisor.
        proc: Descriptor of the folder /proc outside; closed when all is loaded.
        jailed: Whether this is a jail, in which processes get namespaces of their own.
        uid: The first of 65,536 user ids for the processes; `None`: user namespaces.
        packages: To be imported.
    """

    def __init__(
        self,
        requests: socket.socket,
        supervisor: socket.socket,
        proc: int,
        jailed: bool,
        uid: int | None,
        packages: list[str],
    ) -> None:
        self._requests = requests
        self._supervisor = supervisor
        self._proc = proc
        self._jailed = jailed
        self._uid = uid
        self._packages = packages
        self._made = 0
        self._filter = syscalls.program_filter() if jailed else b""
        self._own = confine.address_space()

    def serve(self) -> None:
        """Serves until the host closes the socket of requests."""
        poller = select.poll()
        poller.register(self._requests, select.POLLIN)
        steps = [f"import {', '.join(STANDARD)}", *(f"import {name}" for name in self._packages)]
        for name in self._packages:
            texts = WARM_UP.get(name, "").split("---")
            steps += [f"import {name}\n{text}" for text in texts if text.strip()]
        later = []
        for step in steps:
            while poller.poll(0):
                if (request := self._receive()) is None:
                    return
                if request[0] & wire.SPARE:
                    later.append(request)
                else:
                    self._fork(*request)
            _load(step)
            forget_randomness()
            self._own = confine.address_space()
        self._settle()
        for request in later:
            self._fork(*request)
        later.clear()
        while (request := self._receive()) is not None:
            self._fork(*request)

    def _settle(self) -> None:
        """Makes copies cheap, now that all is loaded."""
        atexit._clear()  # what the packages left for the end of this process is not the programs'
        gc.collect()
        gc.disable()
        immortalize()
        confine.give_back_memory()
        with suppress(OSError):
            path = os.open("self/maps", os.O_RDONLY, dir_fd=self._proc)
            with open(path) as maps:
                regions = confine.own_memory(maps.read())
            self._filling = _fill_holes(regions)
            confine.use_huge_pages(regions)
        os.close(self._proc)
        gc.freeze()  # a collection in a copy would write to every object
        self._own = confine.address_space()

    def _receive(self) -> tuple[int, wire.Bounds, list[int]] | None:
        message, descriptors, _, _ = socket.recv_fds(self._requests, 256, 4)
        return (message[0], wire.Bounds.unpack(message[1:]), descriptors) if message else None

    def _fork(self, flags: int, bounds: wire.Bounds, descriptors: list[int]) -> None:
        source, stdout, record, status = descriptors
        self._made += 1
        folder = "" if self._jailed else tempfile.mkdtemp(prefix="retool-")
        try:
            pid = confine.clone(self._jailed)
        except OSError as error:
            _tell(status, error)
            pid = -1
        if pid == 0:
            try:
                told = socket.socket(fileno=status)
                child = Process(flags, source, stdout, record, told, self._made)
                if self._jailed:
                    uid = None if self._uid is None else self._uid + 1 + self._made % 65_535
                    child.enter_jail(bounds, self._own, uid, self._filter)
                else:
                    child.settle_in(folder, bounds, self._own)
                child.serve(self._packages)
            except BaseException as error:
                _tell(status, error)
            finally:
                os._exit(1)
        if pid > 0:
            message = struct.pack(wire.MADE, pid) + folder.encode()
            socket.send_fds(self._supervisor, [message], [status])
        for descriptor in descriptors:
            os.close(descriptor)


def _fill_holes(regions: list[tuple[int, int]]) -> list[object]:
    """Uses up what is free between the objects that are there.

    New objects, those of a copy too, then lie together on fresh pages. In the holes, each would have a page of the
    template's torn out of its large page, or copied.

    Args:
        regions: First address and end of each piece of this process's own memory, in order.

    Returns:
        What fills the holes: to be kept.
    """
    firsts = [first for first, _ in regions]
    filling: list[object] = []
    for size in range(16, 513, 16):  # the allocator of small objects has these sizes
        within = True
        while within:
            filling.append(
                object() if size == 16 else float(size) if size == 32 else bytes(size - 33)
            )
            address = id(filling[-1])
            region = bisect.bisect(firsts, address) - 1
            within = region >= 0 and address < regions[region][1]
    return filling


def _load(step: str) -> None:
    try:
        exec(step, {})
    except Exception as error:  # a program that needs it will say so itself
        print(f"cannot load {step.split()[1]}: {error}", file=sys.stderr)


def _tell(status: int, error: BaseException) -> None:
    with suppress(BaseException):
        text = f"{type(error).__name__}: {error}".encode()[:500]
        socket.socket(fileno=os.dup(status)).send(wire.FAILED + text)


def run(
    requests: socket.socket,
    supervisor: socket.socket,
    proc: int,
    jailed: bool,
    uid: int | None,
    packages: list[str],
) -> None:
    """Serves as a template in this process; see `Template`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    confine.limit_template()
    Template(requests, supervisor, proc, jailed, uid, packages).serve()
