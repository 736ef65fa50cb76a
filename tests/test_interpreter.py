"""The interpreter of an episode, with and without a session, and the sandbox settings."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from helpers.notebooks import Notebooks

from retool_env.episode import RunProgram
from retool_env.interpreter import (
    Interpreter,
    SharedSandboxes,
    check_sandbox,
    impossible_kinds,
    open_sandbox,
)
from retool_env.rules import Rules
from retool_env.sandbox import Execution, Limits, NsjailSandbox, Outcome, SandboxUnavailable

LIMITS = Limits(wall_seconds=3)
SHARED = Rules(session=True)
ONLY_NUMPY = {"name": "nsjail", "packages": ["numpy"], "guests": 1}


def run(interpreter: Interpreter, need: RunProgram, waiting: bool) -> Execution:
    return interpreter.run(need) if waiting else asyncio.run(interpreter.run_async(need))


class WithoutSessions(Notebooks):
    def session(self, limits, *, display=False):
        raise SandboxUnavailable("this sandbox has no sessions")


# --- programs -----------------------------------------------------------------------------------

waiting_or_not = pytest.mark.parametrize("waiting", [True, False], ids=["run", "run_async"])


@waiting_or_not
@pytest.mark.parametrize("display", [True, False])
def test_programs_run_alone_with_what_they_need(waiting, display):
    box = Notebooks()
    interpreter = Interpreter(box)
    for program in ("a", "b"):
        need = RunProgram(program, LIMITS, display=display)
        assert run(interpreter, need, waiting).stdout == "alone\n"
    assert box.alone == [("a", LIMITS, display), ("b", LIMITS, display)] and not box.sessions
    interpreter.close()
    assert not box.closed  # its maker closes it


@waiting_or_not
def test_a_session_begins_with_the_first_program_and_is_ended_once(waiting):
    box = Notebooks()
    interpreter = Interpreter(box)
    assert not box.sessions
    needs = [RunProgram(program, LIMITS, session=True, display=True) for program in ("a", "b")]
    shown = [run(interpreter, need, waiting).stdout for need in needs]
    assert shown == ["session 0, block 1: a\n", "session 0, block 2: b\n"]
    assert (box.sessions[0].limits, box.sessions[0].display) == (LIMITS, True)
    assert box.open == [0] and not box.alone
    interpreter.close()
    interpreter.close()
    assert box.open == []


def test_no_program_means_no_session():
    box = Notebooks()
    Interpreter(box).close()
    assert not box.sessions


@waiting_or_not
def test_the_real_one(waiting, sandbox):
    """Names last only in a session, and values are shown only with `display`."""
    for session in (True, False):
        for display in (True, False):
            interpreter = Interpreter(sandbox)
            first, second = (
                run(interpreter, RunProgram(program, Limits(), session, display), waiting)
                for program in ("x = 6", "x * 7")
            )
            interpreter.close()
            assert first == Execution(Outcome.OK, "")
            if session:
                assert second == Execution(Outcome.OK, "42\n" if display else "")
            else:
                assert second.error == "NameError: name 'x' is not defined"


# --- the sandbox of a setting -------------------------------------------------------------------


def test_a_sandbox_is_itself_and_stays_open():
    for box in (Notebooks(), WithoutSessions()):
        assert open_sandbox(box, Rules()) is box
    with pytest.raises(SandboxUnavailable, match="has no sessions"):
        open_sandbox(box, SHARED)
    assert not box.closed


@pytest.fixture
def made(monkeypatch):
    """The calls of `make_sandbox`, with their sandboxes."""
    calls = []

    def make_sandbox(*names, **settings):
        calls.append((names, settings, WithoutSessions()))
        return calls[-1][-1]

    monkeypatch.setattr("retool_env.interpreter.make_sandbox", make_sandbox)
    return calls


@pytest.mark.parametrize(
    ("setting", "names", "settings"),
    [
        ("unsafe", ("unsafe",), {}),
        ("http://a:1,http://b:2", ("http://a:1,http://b:2",), {}),
        (ONLY_NUMPY, (), ONLY_NUMPY),
        ({"packages": ["scipy"]}, (), {"packages": ["scipy"]}),
        ({}, (), {}),
    ],
)
def test_names_and_mappings_are_make_sandboxs_arguments(made, setting, names, settings):
    box = open_sandbox(setting, Rules())
    assert made == [(names, settings, box)] and not box.closed


def test_without_an_interpreter_none_is_made(made):
    assert open_sandbox("nsjail", Rules(interpreter=False, session=True)) is None
    assert open_sandbox(Notebooks(), Rules(interpreter=False)) is None and not made


def test_one_made_for_nothing_is_closed(made):
    with pytest.raises(SandboxUnavailable, match="has no sessions"):
        open_sandbox("somewhere", SHARED)
    assert made[0][-1].closed == 1


def test_packages_are_those_of_the_mapping():
    with open_sandbox(ONLY_NUMPY, Rules()) as sandbox:
        assert isinstance(sandbox, NsjailSandbox)
        assert sandbox.run("import numpy; print(numpy.arange(3).sum())").stdout == "3\n"
        assert "No module named 'sympy'" in sandbox.run("import sympy").error


def test_a_wrong_setting_says_what_to_write():
    with pytest.raises(TypeError, match=r"'pakages'.*mapping must hold a `name`"):
        open_sandbox({"pakages": ["numpy"]}, Rules())
    with pytest.raises(ValueError, match=r"'nsjial'.*nsjail.*unsafe"):
        open_sandbox("nsjial", Rules())
    for setting in (3, ["nsjail"], True, object):
        with pytest.raises(TypeError, match=r"sandbox=.*must be a Sandbox, a sandbox's name, or a"):
            open_sandbox(setting, Rules())
    with pytest.raises(ValueError, match="a sandbox's name must be a str, not 3"):
        open_sandbox({"name": 3}, Rules())


# --- sandboxes that environments share -----------------------------------------------------------


class User:
    """A user of a shared sandbox."""


@pytest.fixture
def shared():
    return SharedSandboxes()


EQUAL = [
    ("nsjail", {"name": "nsjail"}),
    ("nsjail", {}),
    ({"guests": 1, "packages": ["numpy"]}, {"packages": ("numpy",), "guests": 1}),
    ("http://a:1", {"name": "http://a:1"}),
]
OTHER = [
    ("nsjail", "unsafe"),
    ("nsjail", {"guests": 1}),
    ({"guests": 1}, {"guests": 2}),
    ({"packages": ["numpy", "sympy"]}, {"packages": ["sympy", "numpy"]}),
    ("http://a:1", "http://b:1"),
]


@pytest.mark.parametrize(("one", "other"), [*EQUAL, *OTHER])
def test_equal_settings_share_a_sandbox_and_others_do_not(made, shared, one, other):
    users = [User(), User()]
    boxes = [
        shared.borrow(each, Rules(), user) for each, user in zip((one, other), users, strict=True)
    ]
    assert (boxes[0] is boxes[1]) == ((one, other) in EQUAL)
    assert len(made) == len({id(box) for box in boxes})


def test_the_last_user_closes_it_and_the_next_makes_another(made, shared):
    users = [User() for _ in range(3)]
    boxes = {id(shared.borrow("nsjail", Rules(), user)) for user in users}
    assert len(boxes) == len(made) == 1
    box = made[0][-1]
    for user in (*users[:2], users[0], users[0]):  # repeated calls of one user
        shared.give_back(box, user)
    assert not box.closed
    shared.give_back(box, users[2])
    assert box.closed
    assert shared.borrow("nsjail", Rules(), users[0]) is not box and len(made) == 2


def test_a_user_that_is_dropped_holds_nothing(made, shared):
    first, second = User(), User()
    box = shared.borrow("nsjail", Rules(), first)
    shared.borrow("nsjail", Rules(), second)
    del first
    shared.give_back(box, second)
    assert box.closed
    third = User()
    box = weakref.ref(shared.borrow("nsjail", Rules(), third))
    made.clear()
    gc.collect()
    assert box() is None  # only its users keep it alive
    shared.borrow("nsjail", Rules(), third)
    assert len(made) == 1


def test_a_sandbox_of_ones_own_is_not_shared(made, shared):
    box, user = Notebooks(), User()
    assert shared.borrow(box, Rules(), user) is box
    assert shared.borrow("nsjail", Rules(interpreter=False), user) is None
    assert not made


def test_one_without_what_the_rules_want_is_closed_unless_others_use_it(made, shared):
    first, second = User(), User()
    with pytest.raises(SandboxUnavailable, match="has no sessions"):
        shared.borrow("nsjail", SHARED, first)
    assert made[0][-1].closed
    box = shared.borrow("nsjail", Rules(), first)
    with pytest.raises(SandboxUnavailable, match="has no sessions"):
        shared.borrow("nsjail", SHARED, second)
    assert not box.closed and len(made) == 2


def test_another_token_is_another_setting(made, shared, monkeypatch):
    first, second = User(), User()
    box = shared.borrow("http://a:1", Rules(), first)
    monkeypatch.setenv("RETOOL_SANDBOX_TOKEN", "secret")
    assert shared.borrow("http://a:1", Rules(), second) is not box


def test_threads_that_ask_at_once_get_one(shared, monkeypatch):
    made = []

    def slow(*_, **__):
        time.sleep(0.05)
        made.append(WithoutSessions())
        return made[-1]

    monkeypatch.setattr("retool_env.interpreter.make_sandbox", slow)
    users = [User() for _ in range(8)]
    with ThreadPoolExecutor(8) as threads:
        boxes = list(threads.map(lambda user: shared.borrow("nsjail", Rules(), user), users))
    assert len(made) == 1 and set(map(id, boxes)) == {id(made[0])}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_copy_makes_its_own(shared):
    """A fork is safe even while another thread makes a sandbox."""
    user = User()
    box = shared.borrow(ONLY_NUMPY, Rules(), user)
    box.run("1")
    before = [guest.process.pid for guest in box.pool.guests]
    heard, say = os.pipe()
    holding, held = threading.Event(), threading.Event()

    def hold() -> None:
        with shared._lock, box.pool.lock, box.pool.guests[0].log_lock:
            held.set()
            holding.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            mine = User()
            threading.Timer(20, os._exit, [3]).start()  # locks may be inherited
            own = shared.borrow(ONLY_NUMPY, Rules(), mine)
            said = f"{own is not box} {own.run('print(1)').stdout}{box.run('print(2)').stdout}"
            shared.give_back(own, mine)
            shared.give_back(box, user)  # an inherited sandbox
            os.write(say, said.encode())
        os._exit(0)
    holding.set()
    holder.join()
    os.close(say)
    with os.fdopen(heard) as said:
        assert said.read() == "True 1\n2\n"
    assert os.waitpid(pid, 0)[1] == 0
    assert box.run("print(2)").stdout == "2\n"
    assert [guest.process.pid for guest in box.pool.guests] == before
    shared.give_back(box, user)


@pytest.mark.parametrize("name", ["http://h:1", "https://h:1,http://h:2"])
def test_the_kinds_that_a_sandbox_server_cannot_make_are_known_beforehand(name, sandbox):
    made_in_guest = ("missing_package", "wrong_function")
    assert impossible_kinds(name) == impossible_kinds({"name": name}) == made_in_guest
    for local in ("nsjail", {"packages": ["numpy"]}, sandbox):
        assert impossible_kinds(local) == ()


def test_a_remote_sandbox_has_no_sessions():
    """The check runs before any host is asked."""
    pytest.importorskip("httpx")
    from retool_env.sandbox.remote import RemoteSandbox

    with RemoteSandbox(["http://localhost:1"]) as remote:
        check_sandbox(Rules(), remote)
        with pytest.raises(SandboxUnavailable, match=r"no sessions.*local sandbox"):
            check_sandbox(SHARED, remote)


def test_an_interpreter_needs_a_sandbox():
    with pytest.raises(ValueError, match="need a sandbox"):
        check_sandbox(Rules(), None)
    check_sandbox(Rules(interpreter=False), None)
    box = Notebooks()
    check_sandbox(SHARED, box)
    assert box.open == []  # the trial session has ended


@pytest.mark.parametrize(
    "setting",
    [
        "me:hunter2@host:80",
        "http://me:hunter2@host:80",
        "http://me:hunter2,x@host:80",
        {"name": "http://host:80", "token": "hunter2", "wrong": 1},
        {"name": "nsjail", "token": "hunter2"},
    ],
)
def test_a_sandbox_setting_that_is_wrong_is_shown_without_its_key(setting):
    with pytest.raises((ValueError, TypeError)) as caught:
        open_sandbox(setting, Rules())
    assert "hunter2" not in str(caught.value)
