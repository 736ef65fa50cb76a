"""Attacks on the network, the host's services, and other programs."""

import socket
import threading
from collections.abc import Iterator

import pytest
from helpers.intruders import QUICK, together

from retool_env.sandbox import NsjailSandbox, Outcome


@pytest.fixture
def listener() -> Iterator[int]:
    """The port of a service on the host that greets every client."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            try:
                while True:
                    server.accept()[0].send(b"hello")
            except OSError:
                pass

        threading.Thread(target=greet, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("family", [*range(2, 46)])
def test_socket_family(jail: NsjailSandbox, family: int) -> None:
    """Every family but Unix: IP, netlink, packets, Bluetooth, VSOCK, crypto, XDP."""
    code = f"""
import socket
for kind in (1, 2, 3, 5):
    for protocol in (0, 1, 3):
        try:
            socket.socket({family}, kind, protocol)
            print("open", kind, protocol)
        except OSError as error:
            if error.errno not in (1, 13):
                print(error)
        try:
            socket.socketpair({family}, kind, protocol)
            print("pair", kind, protocol)
        except OSError as error:
            if error.errno not in (1, 13):
                print("pair", error)
"""
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.OK, "")


def test_service_on_the_host(jail: NsjailSandbox, listener: int) -> None:
    code = f"import socket\nprint(socket.create_connection(('127.0.0.1', {listener}), 1).recv(9))"
    execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.BLOCKED, "")


@pytest.mark.parametrize(
    "code",
    [
        "import socket\nsocket.getaddrinfo('example.org', 80)",
        "import urllib.request\nurllib.request.urlopen('http://example.org', timeout=1)",
        "import socket\nsocket.create_connection(('1.1.1.1', 53), 1)",
    ],
)
def test_names_and_addresses(jail: NsjailSandbox, code: str) -> None:
    assert jail.run(code, QUICK).outcome is Outcome.BLOCKED


def test_abstract_address_of_the_host(jail: NsjailSandbox) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0retool-attack")
        server.listen()
        code = "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0retool-attack')\nprint(1)"
        execution = jail.run(code, QUICK)
    assert (execution.outcome, execution.stdout) == (Outcome.RUNTIME_ERROR, "")
    assert "ConnectionRefusedError" in execution.error


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET"])
def test_abstract_address_of_a_neighbour(jail: NsjailSandbox, kind: str) -> None:
    """Programs of a guest share a network namespace, which holds only abstract Unix addresses."""
    server = f"""
import socket, time
try:
    server = socket.socket(socket.AF_UNIX, socket.{kind})
    server.bind("\\0meeting")
    server.listen() if {kind!r} != "SOCK_DGRAM" else None
    time.sleep(0.8)
except PermissionError:
    print("refused")
"""
    client = f"""
import socket
try:
    client = socket.socket(socket.AF_UNIX, socket.{kind})
    client.connect("\\0meeting")
    client.send(b"hello")
    print("met")
except ConnectionRefusedError:
    print("nobody")
"""
    shown = [execution.stdout for execution in together(jail, server, client)]
    assert shown == ["refused\n", "nobody\n"]


@pytest.mark.parametrize("address", ["\\0meeting", "/tmp/meeting", "\\0listener-1"])
def test_one_program_listens_and_one_connects(jail: NsjailSandbox, address: str) -> None:
    """The library reports at once that its socket cannot listen."""
    server = f"""
from multiprocessing.connection import Listener
import time
try:
    Listener("{address}", "AF_UNIX")
    time.sleep(0.8)
except PermissionError:
    print("refused")
"""
    client = f"""
from multiprocessing.connection import Client
try:
    Client("{address}", "AF_UNIX").send("hello")
    print("met")
except (ConnectionRefusedError, FileNotFoundError):
    print("nobody")
"""
    shown = [execution.stdout for execution in together(jail, server, client)]
    assert shown == ["refused\n", "nobody\n"]


def test_flags_of_a_shared_descriptor(jail: NsjailSandbox) -> None:
    """Standard input and errors are opened for each program: their flags end with the program."""
    code = """
import fcntl, os
print([oct(fcntl.fcntl(n, fcntl.F_GETFL) & (os.O_NONBLOCK | os.O_APPEND)) for n in (0, 2)])
for n in (0, 2):
    fcntl.fcntl(n, fcntl.F_SETFL, os.O_NONBLOCK | os.O_APPEND)
"""
    for _ in range(4):  # among them those that were kept ready
        assert jail.run(code, QUICK).stdout == "['0o0', '0o0']\n"


def test_unix_sockets_of_its_own(jail: NsjailSandbox) -> None:
    """Socket pairs are allowed, because asyncio and multiprocessing use them."""
    code = """
import asyncio, multiprocessing, socket
ours, theirs = socket.socketpair()
ours.send(b"hello")
print(theirs.recv(9))
async def main(): return await asyncio.to_thread(lambda: 7)
print(asyncio.run(main()))
a, b = multiprocessing.Pipe()
a.send([1, 2])
print(b.recv())
"""
    execution = jail.run(code, QUICK)
    assert execution.stdout == "b'hello'\n7\n[1, 2]\n", execution
