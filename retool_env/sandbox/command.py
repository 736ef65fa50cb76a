"""The command that starts a guest: interpreter options, environment, and the code to run."""

from dataclasses import dataclass

PACKAGES = ("numpy", "sympy", "mpmath")
"""The packages that a program may import besides the standard library, by default."""

GUEST_ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",  # sets print in the same order each time: equal code, equal output
}
"""The whole environment of a program."""

INTERPRETER_OPTIONS = ("-S", "-s", "-P", "-B", "-u", "-X", "utf8")
"""`-S` shortens the start; `-u` leaves no output in a buffer that a time-out would lose."""

START = (
    "import sys; sys.path.append({!r}); from guest.supervisor import main; sys.path.pop(); main()"
)
"""The code that the guest runs; `{!r}` stands for the folder of the package `guest`."""


@dataclass(frozen=True)
class Command:
    """The command that starts one guest, once."""

    arguments: list[str]
    """The path of the executable and its arguments."""

    environment: dict[str, str]
    """The whole environment of the guest."""

    descriptors: tuple[int, ...]
    """Open descriptors that the guest inherits. `start_guest` closes them in this process."""
