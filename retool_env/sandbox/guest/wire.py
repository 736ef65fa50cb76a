"""What the host and the guest say to each other."""

import struct
from dataclasses import dataclass

REQUEST = "<B"
"""Flags of a request; `Bounds` follow."""

SPARE, SESSION, EAGER = 1, 2, 4
"""Flags: made ahead of its program; runs more than one block; may touch at once what its program will, since there are
processors to spare."""

PROGRAM = "<?QQQ"
"""Head of a program: whether it shows its last value, and the bytes of its text, of its stdin and of what is said of
files (`FILES`), which follow. Without files these are none."""

FILES = ("given", "wanted")
"""Keys of what is said of files, in JSON: those that are written before the program begins, each name with its bytes in
base64, and the names of those that are sent back when it is over. These are sent, each name with its bytes in base64,
in JSON as well, after the bell; what is not there, or is too much in all, is left out."""

FETCHED_BYTES = 8 << 20
"""The most bytes of files that a program sends back."""

BELL = "<d"
"""Said by a process on its source, just before it runs a program: when that began, in seconds of the monotonic clock.
One byte more follows in a session when the block is over."""

READY, WARM = b"ready", b"warm"
"""Said by a process that waits for its program, and when it has also touched what programs touch."""

FAILED = b"failed: "
"""Begins what is said by a process that could not be made; the reason follows. No exit code begins so."""

FAILURE = 1
"""Exit status of a process whose record says how its program failed."""

MADE = "<i"
"""Said by the template to the supervisor: a process id; its folder follows, where there is no jail."""

ENDED = "<id"
"""What is said of a process that has ended: its exit code, or minus its signal, and its processor time in seconds."""

RECORD = "<IIdd"
"""Head of a record: number of the block, bytes of text that follow, and when it began and ended, in seconds of the
monotonic clock, 0.0 when it has not."""

RECORD_BYTES = 1 << 16
"""Size of a record."""


@dataclass(frozen=True)
class Bounds:
    """What one process may use."""

    memory: int
    """Bytes of address space, beyond those of the guest."""
    cpu: int
    """Seconds of processor time."""
    processes: int
    """Processes and threads alive at once."""
    tmp: int
    """Bytes of /tmp, and of any one file there."""

    def pack(self) -> bytes:
        """As bytes."""
        return struct.pack("<4q", self.memory, self.cpu, self.processes, self.tmp)

    @classmethod
    def unpack(cls, data: bytes) -> "Bounds":
        """From bytes."""
        return cls(*struct.unpack("<4q", data))
