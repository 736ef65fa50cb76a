"""The messages between the host and the guest."""

import struct
from dataclasses import dataclass

REQUEST = "<B"
"""A request: its flags; `Bounds` follow."""

SPARE, SESSION, EAGER = 1, 2, 4
"""Flags: the process is made ahead of its program; it runs more than one block; it may warm up at
once, because processors are idle."""

PROGRAM = "<?QQQ"
"""The head of a program: whether its last value is shown, and the numbers of bytes of its text,
of its stdin and of the message about its files (`FILES`), which follow. A program without
files has 0 bytes of that message."""

FILES = ("given", "wanted", "prelude")
"""The keys of the message about files, in JSON. `given`: the files to write before the program
begins, each name with its content in base64. `wanted`: the names of the files to send back
when the program is over. After the bell, the process sends these in the same form; it leaves
out missing files and files beyond `FETCHED_BYTES`. `prelude`: Python code to run before the
program."""

FETCHED_BYTES = 8 << 20
"""The largest number of bytes of files that a program sends back."""

BELL = "<d"
"""The process sends this on its source just before it runs a program: the start, in seconds of
the monotonic clock. In a session, one more byte follows when the block is over."""

READY, WARM = b"ready", b"warm"
"""A process sends the first when it waits for its program, and the second when it is warm."""

FAILED = b"failed: "
"""The start of the guest's message about a process that it could not make; the reason follows.
No message `ENDED` starts in this way."""

FAILURE = 1
"""The exit status of a process whose record says how its program failed."""

MADE = "<i"
"""The template announces a process to the supervisor: its id; without a jail, its folder
follows."""

ENDED = "<id"
"""The supervisor's report of a process that has ended: its exit code, or minus its signal, and
its processor time in seconds."""

RECORD = "<IIdd"
"""The head of a record: number of the block, bytes of text that follow, and the block's start
and end in seconds of the monotonic clock. The end is 0.0 while the block runs. The text is a list
in JSON: outcome, error, traceback, and the texts that preludes reported during the block."""

RECORD_BYTES = 1 << 16
"""The size of a record in bytes."""


@dataclass(frozen=True)
class Bounds:
    """The resources that one process may use."""

    memory: int
    """Bytes of address space, besides the guest's own."""
    cpu: int
    """Seconds of processor time."""
    processes: int
    """Number of processes and threads alive at once."""
    tmp: int
    """Bytes of /tmp, and of any single file there."""

    def pack(self) -> bytes:
        """The bounds as bytes."""
        return struct.pack("<4q", self.memory, self.cpu, self.processes, self.tmp)

    @classmethod
    def unpack(cls, data: bytes) -> "Bounds":
        """The bounds from bytes."""
        return cls(*struct.unpack("<4q", data))
