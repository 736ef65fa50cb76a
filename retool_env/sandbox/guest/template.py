"""The process that has loaded the packages; each program gets a copy of it.

The template does as little as possible. Each page to which it writes while copies live is torn out
of the large pages that make it cheap to start and end a copy. So the template only takes a request,
forks, and announces the copy to the supervisor, whose child the copy is. Loading takes about a
second, in steps; between the steps, the template already serves requests.
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
from dataclasses import dataclass

from . import confine, syscalls, wire
from .immortal import immortalize
from .process import Process, forget_randomness

STANDARD = ("cmath", "copy", "datetime", "fractions", "heapq", "statistics", "string", "typing")
"""Modules of the standard library that programs often import and the guest itself does not."""

WARM_UP = {
    "numpy": """
numpy.random.rand(2); numpy.linalg.solve(numpy.eye(3), numpy.ones(3))
numpy.roots([1, -3, 2]); str(numpy.arange(3) / 2)
""",
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
factor(x**4 - 1), expand((x + y)**4), Poly(x**3 + x + 1).nroots(), diff(x**2 * sin(x), x)
limit(sin(x) / x, x, 0), summation(x, (x, 1, 10)), Rational(1, 3) + Rational(2, 5), N(pi, 30)
nsimplify(0.5), binomial(10, 3), latex(sqrt(x) / 3), isprime(10**9 + 7), factorint(360)
divisors(28), totient(12), primerange(20), gcd(12, 18), mod_inverse(3, 7)
Matrix([[1, 2], [3, 4]]).inv(), Matrix([[1, 2], [3, 4]]).eigenvals(), Matrix([[1, 2], [3, 4]]).det()
series(cos(x), x, 0, 4), diophantine(2*x + 3*y - 5), str(x**2 / 3), pretty(x**2)
""",
}
"""Code that the template runs once for each package, because packages import and compute much at
their first use."""


@dataclass
class Template:
    """Serves requests in this process until the host is gone."""

    requests: socket.socket
    """The socket of the host's requests."""
    supervisor: socket.socket
    """The socket to the supervisor."""
    proc: int
    """Descriptor of the host's /proc; closed when all packages are loaded."""
    jailed: bool
    """Whether the guest is in a jail, where each process gets its own namespaces."""
    uid: int | None
    """The first of 65,536 user ids for the processes. `None`: user namespaces."""
    packages: list[str]
    """The packages to import."""

    def __post_init__(self) -> None:
        self._made = 0
        self._filter = syscalls.program_filter() if self.jailed else b""

    def serve(self) -> None:
        """Serves until the host closes the socket of requests."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        confine.limit_template()
        self._used = confine.address_space()
        poller = select.poll()
        poller.register(self.requests, select.POLLIN)
        steps = [f"import {', '.join(STANDARD)}", *(f"import {name}" for name in self.packages)]
        for name in self.packages:
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
            self._used = confine.address_space()
        self._settle()
        for request in later:
            self._fork(*request)
        later.clear()
        while (request := self._receive()) is not None:
            self._fork(*request)

    def _settle(self) -> None:
        """Makes copies cheap, once all packages are loaded."""
        atexit._clear()  # programs must not run the packages' exit functions
        gc.collect()
        gc.disable()
        immortalize()
        confine.give_back_memory()
        with suppress(OSError):
            path = os.open("self/maps", os.O_RDONLY, dir_fd=self.proc)
            with open(path) as maps:
                regions = confine.own_memory(maps.read())
            self._filling = fill_holes(regions)
            confine.use_huge_pages(regions)
        os.close(self.proc)
        gc.freeze()  # a collection in a copy would write to every object
        self._used = confine.address_space()

    def _receive(self) -> tuple[int, wire.Bounds, list[int]] | None:
        message, descriptors, _, _ = socket.recv_fds(self.requests, 256, 4)
        return (message[0], wire.Bounds.unpack(message[1:]), descriptors) if message else None

    def _fork(self, flags: int, bounds: wire.Bounds, descriptors: list[int]) -> None:
        source, stdout, record, status = descriptors
        self._made += 1
        folder = "" if self.jailed else tempfile.mkdtemp(prefix="retool-")
        try:
            pid = confine.clone(self.jailed)
        except OSError as error:
            _tell(status, error)
            pid = -1
        if pid == 0:
            try:
                told = socket.socket(fileno=status)
                child = Process(flags, source, stdout, record, told, self._made)
                if self.jailed:
                    uid = None if self.uid is None else self.uid + 1 + self._made % 65_535
                    child.enter_jail(bounds, self._used, uid, self._filter)
                else:
                    child.settle_in(folder, bounds, self._used)
                child.serve(self.packages)
            except BaseException as error:
                _tell(status, error)
            finally:
                os._exit(1)
        if pid > 0:
            message = struct.pack(wire.MADE, pid) + folder.encode()
            socket.send_fds(self.supervisor, [message], [status])
        for descriptor in descriptors:
            os.close(descriptor)


def fill_holes(regions: list[tuple[int, int]]) -> list[object]:
    """Fills the free memory between existing objects.

    New objects, also in copies, then lie together on fresh pages. In the holes, each new object
    would tear a page of the template out of its large page, or copy the page.

    Args:
        regions: First address and end of each piece of this process's own memory, in order.

    Returns:
        The objects that fill the holes; the caller keeps them.
    """
    firsts = [first for first, _ in regions]
    filling: list[object] = []
    for size in range(16, 513, 16):  # the size classes of the allocator of small objects
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
    except Exception as error:  # a program that needs the package will report it
        print(f"cannot load {step.split()[1]}: {error}", file=sys.stderr)


def _tell(status: int, error: BaseException) -> None:
    with suppress(BaseException):
        text = f"{type(error).__name__}: {error}".encode()[:500]
        socket.socket(fileno=os.dup(status)).send(wire.FAILED + text)
