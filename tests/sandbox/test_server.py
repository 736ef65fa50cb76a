"""The server over HTTP: real uvicorn on the loopback; the last tests run `retool serve`."""

import asyncio
import base64
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import sandbox_fusion
from helpers.clients import OK, SECRET, ask, bearer, counted
from helpers.marks import Mark
from helpers.services import Scripted, command, says, serving, sleeps, wait_until

from retool_env.cli import main
from retool_env.sandbox import Execution, Limits, Outcome, Sandbox, server
from retool_env.sandbox.server import create_app


def test_the_program_runs_under_what_the_request_says() -> None:
    seen = []

    async def answer(*arguments) -> Execution:
        seen.append(arguments)
        return OK

    with serving(create_app(Scripted(answer))) as url:
        response = ask(url, "print(42)", run_timeout=1.5, memory_limit_MB=77, stdin="in")
        assert response.status_code == 200
        assert response.json()["run_result"]["stdout"] == "42"
        own = {"output_bytes": 11, "processes": 2, "tmp_mb": 3, "display": True}
        ask(url, "1", retool=own, stdin=None, files={}, fetch_files=[], compile_timeout=1)
    assert seen[0] == ("print(42)", Limits(wall_seconds=1.5, memory_mb=77), "in", False)
    expected = Limits(wall_seconds=10.0, output_bytes=11, processes=2, tmp_mb=3)
    assert seen[1] == ("1", expected, "", True)


@pytest.mark.parametrize("maximum", [{"wall_seconds": 1}, "foo", None, 5])
def test_a_maximum_that_is_none_is_refused(maximum: object) -> None:
    with pytest.raises(TypeError, match="maximum must be a Limits"):
        create_app(says(OK), maximum=maximum)


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_serve_refuses_a_maximum_before_it_makes_a_sandbox(seconds: str, capsys, monkeypatch):
    monkeypatch.setattr("retool_env.sandbox.make_sandbox", None)
    assert main(["serve", "--max-seconds", seconds]) == 1
    assert "--max-seconds: Limits.wall_seconds must be a number" in capsys.readouterr().err


def test_a_program_of_ten_megabytes_passes() -> None:
    sizes = []

    async def answer(code: str, *_) -> Execution:
        sizes.append(len(code))
        return OK

    program = "é\n" * 3_333_333 + "x"  # 10 MB as UTF-8, 27 MB when escaped
    body = json.dumps({"code": program, "language": "python"})
    assert len(body) > 25_000_000
    with serving(create_app(Scripted(answer))) as url:
        assert httpx.post(f"{url}/run_code", content=body, timeout=60).status_code == 200
    assert sizes == [len(program)]


def test_a_body_that_is_too_large_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(server, "BODY_BYTES", 1000)
    box = says(OK)
    with serving(create_app(box)) as url:
        assert ask(url, "x" * 2000).status_code == 413
        chunked = httpx.post(f"{url}/run_code", content=iter([b"x" * 600] * 2))
        assert chunked.status_code == 413
        assert ask(url).status_code == 200
    assert box.started == 1


def test_a_body_that_does_not_come_frees_its_place(monkeypatch) -> None:
    monkeypatch.setattr(server, "BODY_SECONDS", 0.2)

    def slow() -> Iterator[bytes]:
        yield b"{"
        time.sleep(1)
        yield b"}"

    with serving(create_app(says(OK), max_in_flight=1)) as url:
        with contextlib.suppress(httpx.TransportError):  # or the answer, if it is read in time
            assert httpx.post(f"{url}/run_code", content=slow()).status_code == 408
        assert ask(url).status_code == 200


@pytest.mark.parametrize("outcome", Outcome)
def test_the_sandbox_failing_is_not_the_programs_failing(outcome: Outcome) -> None:
    with serving(create_app(says(Execution(outcome, "", "why")))) as url:
        response = ask(url).json()
    assert (response["status"] == "SandboxError") == (outcome is Outcome.INFRASTRUCTURE)
    assert response["message"] == ("why" if outcome is Outcome.INFRASTRUCTURE else "")


def test_a_sandbox_that_raises_is_a_sandbox_error() -> None:
    async def answer(*_) -> Execution:
        raise RuntimeError("the sandbox is closed")

    with serving(create_app(Scripted(answer))) as url:
        response = ask(url)
    assert response.status_code == 200 and response.json()["status"] == "SandboxError"
    assert response.json()["message"] == "RuntimeError: the sandbox is closed"


def test_lone_surrogates_pass_both_ways() -> None:
    async def answer(code: str, *_) -> Execution:
        return Execution(Outcome.RUNTIME_ERROR, "", code)

    with serving(create_app(Scripted(answer))) as url:
        body = json.dumps({"code": "'\ud800'", "language": "python"})
        response = httpx.post(f"{url}/run_code", content=body)
    assert json.loads(response.content)["retool"]["error"] == "'\ud800'"


# --- who may ask, and how many --------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), bearer(SECRET + "x"), {"Authorization": SECRET}]
)
def test_without_the_token_nothing_but_health(headers: dict) -> None:
    box = says(OK)
    with serving(create_app(box, SECRET)) as url:
        refused = ask(url, headers=headers)
        assert refused.status_code == 401 and "token" in refused.json()["detail"]
        assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 401
        assert box.started == 0
        assert httpx.get(f"{url}/health", headers=headers).json()["status"] != "refused"


def test_with_the_token_all() -> None:
    with serving(create_app(says(OK), SECRET)) as url:
        assert ask(url, headers=bearer(SECRET)).status_code == 200
        assert httpx.get(f"{url}/metrics", headers=bearer(SECRET)).status_code == 200


def test_more_than_may_be_in_flight_are_asked_to_come_back() -> None:
    box = sleeps()
    with serving(create_app(box, max_in_flight=2)) as url, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(ask, url, "1") for _ in range(2)]
        wait_until(lambda: box.running == 2)
        refused = ask(url, "0")
        assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"
        assert [future.result().status_code for future in held] == [200, 200]
        assert ask(url, "0").status_code == 200
    assert box.started == 3


def test_every_refusal_and_failure_gives_its_place_back() -> None:
    with serving(create_app(says(OK), max_in_flight=1)) as url:
        for _ in range(3):
            assert ask(url, language="cpp").status_code == 422
            assert ask(url).status_code == 200


def test_no_places_at_all_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        create_app(says(OK), max_in_flight=0)


def test_a_client_that_goes_away_has_its_program_ended() -> None:
    box = sleeps()
    with serving(create_app(box, max_in_flight=1)) as url:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/run_code", json={"code": "60", "language": "python"}, timeout=0.5)
        wait_until(lambda: box.cancelled == 1)
        wait_until(lambda: ask(url, "0").status_code == 200)  # its place is free again
        assert counted(url)["retool_sandbox_programs_total", "cancelled"] == 1


def test_programs_that_a_stop_cuts_off_are_ended_in_order() -> None:
    box = sleeps()
    with ThreadPoolExecutor(4) as pool:
        with serving(create_app(box)) as url:
            cut = [pool.submit(ask, url, "60") for _ in range(4)]
            wait_until(lambda: box.running == 4)
        assert (box.running, box.cancelled) == (0, 4)
        for each in cut:
            assert each.result().status_code == 200  # answered, so that a client tries elsewhere
            assert each.result().json()["status"] == "SandboxError"
            assert "the server stops" in each.result().json()["message"]


# --- with the jail --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def jailed(jail: Sandbox) -> Iterator[str]:
    with serving(create_app(jail)) as url:
        yield url


def fusion(url: str, code: str, **fields) -> sandbox_fusion.RunCodeResponse:
    """Sends a program by SandboxFusion's own client.

    Args:
        url: The server's URL.
        code: The program's text.
        **fields: Further fields of the request.
    """
    request = sandbox_fusion.RunCodeRequest(code=code, language="python", **fields)
    return sandbox_fusion.run_code(request, endpoint=url, max_attempts=1, client_timeout=60)


def test_the_public_client_works_unchanged(jailed: str) -> None:
    code = "import sys\nprint(int(sys.stdin.read()) * 7, end='')"
    response = fusion(jailed, code, stdin="6")
    assert response.status == sandbox_fusion.RunStatus.Success
    assert response.run_result.status == sandbox_fusion.CommandRunStatus.Finished
    assert response.run_result.stdout == "42" and response.run_result.return_code == 0
    assert response.run_result.stderr == "" and response.run_result.execution_time < 10

    response = fusion(jailed, "print(1)\n1 / 0")
    assert response.status == sandbox_fusion.RunStatus.Failed
    assert response.run_result.stdout == "1\n" and response.run_result.return_code == 1
    assert "line 2" in response.run_result.stderr
    assert response.run_result.stderr.rstrip().endswith("ZeroDivisionError: division by zero")

    response = fusion(jailed, "print(1)\nwhile True: pass", run_timeout=0.5)
    assert response.status == sandbox_fusion.RunStatus.Failed
    assert response.run_result.status == sandbox_fusion.CommandRunStatus.TimeLimitExceeded
    assert response.run_result.stdout == "1\n"

    asynchronous = sandbox_fusion.run_code_async(
        sandbox_fusion.RunCodeRequest(code="print(2)", language="python"), endpoint=jailed
    )
    assert asyncio.run(asynchronous).run_result.stdout == "2\n"


def test_a_disconnect_ends_the_process(jailed: str) -> None:
    mark = Mark()
    code = mark.code + "import time\ntime.sleep(60)"
    posted = threading.Thread(target=post_and_leave, args=(jailed, code))
    posted.start()
    assert len(mark.wait_for(1)) == 1
    posted.join()
    assert mark.wait_for(0) == []


def post_and_leave(url: str, code: str) -> None:
    with contextlib.suppress(httpx.ReadTimeout):
        httpx.post(f"{url}/run_code", json={"code": code, "language": "python"}, timeout=3)


# --- retool serve ---------------------------------------------------------------------------------


@pytest.mark.some(1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_programs_end_and_takes_no_more(number: signal.Signals) -> None:
    mark = Mark()
    code = mark.code + "import time\ntime.sleep(2)\nprint('done')"
    with command() as (process, url), ThreadPoolExecutor(1) as pool:
        assert url.startswith("http://127.0.0.1:")
        answer = pool.submit(ask, url, code)
        mark.wait_for(1)
        process.send_signal(number)
        wait_until(lambda: not accepts(url))
        assert not answer.done()
        assert answer.result().json()["run_result"]["stdout"] == "done\n"
        assert process.wait(20) == 0
        assert process.stdout.read() == "" and process.stderr.read() == ""


def test_after_the_grace_programs_are_ended() -> None:
    mark = Mark()
    code = mark.code + "import time\ntime.sleep(60)"
    with command("--grace", "1") as (process, url), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, code, run_timeout=100)
        mark.wait_for(1)
        process.terminate()
        assert process.wait(20) == 0
        assert mark.wait_for(0) == []
        assert answer.result().status_code == 200
        assert answer.result().json()["status"] == "SandboxError"
        assert "the server stops" in answer.result().json()["message"]


def accepts(url: str) -> bool:
    try:
        return httpx.get(f"{url}/openapi.json").is_success
    except httpx.TransportError:
        return False


def test_the_token_of_the_environment_and_the_limits_of_the_command_line() -> None:
    options = ("--host", "0.0.0.0", "--max-seconds", "3", "--max-in-flight", "1")
    with command(*options, RETOOL_SANDBOX_TOKEN=SECRET) as (_, url):
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert ask(url, "print(1)", headers={}).status_code == 401
        answer = ask(url, "print(1)", bearer(SECRET), run_timeout=3)
        assert answer.json()["run_result"]["stdout"] == "1\n"
        assert ask(url, "print(1)", bearer(SECRET), run_timeout=4).status_code == 422


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_without_a_token_only_this_machine_is_served(host, monkeypatch, capsys) -> None:
    monkeypatch.delenv("RETOOL_SANDBOX_TOKEN", raising=False)
    assert main(["serve", "--host", host, "--port", "0"]) == 1
    err = capsys.readouterr().err
    assert host in err and "give a token" in err


def test_a_port_that_is_taken_is_said(capsys) -> None:
    with serving(create_app(says(OK))) as url:
        assert main(["serve", "--port", url.rpartition(":")[2]]) == 1
    assert "Address already in use" in capsys.readouterr().err


def test_a_port_that_is_none_is_said(capsys) -> None:
    assert main(["serve", "--port", "99999"]) == 1
    assert "99999" in capsys.readouterr().err


# --- files, in a real sandbox


def contents(response: httpx.Response) -> dict[str, bytes]:
    """The files that came back."""
    files = response.json()["files"]
    return {name: base64.b64decode(data, validate=True) for name, data in files.items()}


def test_files_go_with_a_program_and_come_back(jailed: str) -> None:
    data = bytes(range(256)) * 1000
    response = ask(
        jailed,
        "data = open('in/deep/data', 'rb').read()\nopen('out', 'wb').write(data[::-1])\n"
        "open('/mnt/other', 'w').write('x')\nprint(len(data), open('empty').read())",
        files={"in/deep/data": base64.b64encode(data).decode(), "empty": None},
        fetch_files=["out", "/mnt/other", "in/deep/data", "nowhere", "in"],
    )
    assert response.json()["run_result"]["stdout"] == "256000 \n"
    expected = {"out": data[::-1], "/mnt/other": b"x", "in/deep/data": data}
    assert contents(response) == expected


def test_files_of_a_program_that_fails_come_back_and_of_one_that_is_ended_do_not(
    jailed: str,
) -> None:
    write = "w = open('out', 'w')\nw.write('held')\n"
    raised = ask(jailed, f"{write}1 / 0", fetch_files=["out"])
    assert raised.json()["run_result"]["return_code"] == 1 and contents(raised) == {"out": b"held"}
    for end in ("import os\nos._exit(0)", "while True: pass"):
        ended = ask(jailed, f"{write}w.flush()\n{end}", fetch_files=["out"], run_timeout=0.5)
        assert ended.status_code == 200 and contents(ended) == {}


@pytest.mark.parametrize(
    "code",
    [
        "open('out', 'wb').write(bytes(9 << 20))",
        "import os\nos.mkfifo('out')",
        "import os\nos.symlink('/nowhere', 'out')",
        "import os\nos.symlink('out', 'out')",
        "import os\nos.mkdir('out')",
    ],
)
def test_a_file_that_cannot_come_back_is_left_out(jailed: str, code: str) -> None:
    response = ask(jailed, f"open('small', 'w').write('1')\n{code}", fetch_files=["out", "small"])
    assert contents(response) == {"small": b"1"}


def test_what_a_program_writes_in_their_place_is_bounded_and_its_own(jailed: str) -> None:
    flood = (
        "import os\nfor n in range(3, 64):\n    try:\n"
        "        while True: os.write(n, bytes(65536))\n"
        "    except OSError: pass"
    )
    forged = (
        'import os\nfor n in range(3, 64):\n    try: os.write(n, b\'{"out": 3, "etc": "YQ=="}\')\n'
        "    except OSError: pass\nos._exit(0)"
    )
    for code in (flood, forged):
        response = ask(jailed, code, fetch_files=["out"], run_timeout=1)
        assert response.status_code == 200 and contents(response) == {}
    assert ask(jailed, "print(6 * 7)").json()["run_result"]["stdout"] == "42\n"


def test_files_that_do_not_fit_are_refused_and_those_that_cannot_be_written_are_its_error(
    jailed: str,
) -> None:
    data = base64.b64encode(bytes((1 << 20) + 1)).decode()
    refused = ask(jailed, "1", files={"a": data}, retool={"tmp_mb": 1})
    assert refused.status_code == 422 and "files: 1048577 bytes" in refused.json()["detail"]
    clash = ask(jailed, "print(1)", files={"a": "YQ==", "a/b": "YQ=="})
    assert "FileExistsError" in clash.json()["run_result"]["stderr"]
    outside = ask(jailed, "print(1)", files={"/etc/passwd": "YQ=="})
    assert outside.json()["status"] == "Failed"
    assert outside.json()["run_result"]["stdout"] == ""
