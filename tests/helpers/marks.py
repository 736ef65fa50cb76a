"""Finds a program's processes from the outside, by the name that the program gives itself."""

import secrets
import time
from pathlib import Path


class Mark:
    """A unique process name."""

    def __init__(self) -> None:
        self.name = "rt" + secrets.token_hex(6)
        """The name, of at most 15 bytes, the kernel's limit."""
        self.code = f"import ctypes\nctypes.CDLL(None).prctl(15, b{self.name!r}, 0, 0, 0)\n"
        """Python code that gives a process this name; its children inherit the name."""

    def find(self) -> list[int]:
        """The ids of the living processes with this name."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                stat = (entry / "stat").read_text()
                if f"({self.name})" in stat and f"({self.name}) Z" not in stat:
                    found.append(int(entry.name))
            except OSError:  # the process ended meanwhile
                continue
        return found

    def wait_for(self, count: int) -> list[int]:
        """Wait until `count` processes have the name, for 10 seconds at most."""
        deadline = time.monotonic() + 10
        while len(found := self.find()) != count and time.monotonic() < deadline:
            time.sleep(0.01)
        return found
