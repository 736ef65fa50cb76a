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
from helpers.marks import Mark
from helpers.services import Scripted, command, says, serving, sleeps, wait_until
from prometheus_client.parser import text_string_to_metric_families

from retool_env.cli import main
from retool_env.sandbox import (
    Execution,
    Limits,
    Outcome,
    Sandbox,
    monitoring,
    server,
)
from retool_env.sandbox.server import create_app

SECRET = "s3cret"
OK = Execution(Outcome.OK, "42", duration=0.02)


def ask(url: str, code: str = "", headers: dict | None = None, **fields) -> httpx.Response:
    """Sends a program to a server.

    Args:
        url: The server's URL.
        code: The program's text.
        headers: The headers of the request.
        **fields: Further fields of the request.
    """
    body = {"code": code, "language": "python"} | fields
    return httpx.post(f"{url}/run_code", json=body, headers=headers, timeout=60)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# --- the protocol ---------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"language": "cpp"}, "language"),
        ({"language": None}, "language"),
        ({"code": 3}, "code"),
        ({"stdin": 3}, "stdin"),
        ({"files": {"a.txt": "YQ=="}}, "files and fetch_files: this server's sandbox keeps no files"),
        ({"fetch_files": ["a.txt"]}, "files and fetch_files: this server's sandbox keeps no files"),
        ({"files": {"a.txt": "Y"}}, "files: the content of 'a.txt' is not base64"),
        ({"files": {"../a": "YQ=="}}, "'../a' is not a file's name"),
        ({"files": {"a\0b": "YQ=="}}, "is not a file's name"),
        ({"files": {"a": 3}}, "files"),
        ({"files": {str(n): "" for n in range(257)}}, "257 files are too many"),
        ({"fetch_files": [""]}, "'' is not a file's name"),
        ({"fetch_files": ["a/../b"]}, "'a/../b' is not a file's name"),
        ({"fetch_files": ["a"] * 257}, "257 files are too many"),
        ({"run_timeout": 0}, "wall_seconds"),
        ({"run_timeout": -1}, "wall_seconds"),
        ({"run_timeout": 121}, "wall_seconds of 121.0 is above this server's maximum, 120.0"),
        ({"memory_limit_MB": 10**9}, "memory_mb"),
        ({"retool": {"output_bytes": 10**12}}, "output_bytes"),
        ({"retool": {"processes": 0}}, "processes"),
        ({"retool": 1}, "retool"),
        ({"stdin": "x" * ((1 << 20) + 1), "retool": {"tmp_mb": 1}}, "stdin: 1048577 bytes"),
    ],
)
def test_what_the_server_does_not_do_is_refused(fields: dict, named: str) -> None:
    box = says(OK)
    with serving(create_app(box)) as url:
        response = ask(url, **({"code": "secret program"} | fields))
    assert response.status_code == 422
    assert named in response.json()["detail"]
    assert "secret program" not in response.text
    assert box.started == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"code": NaN}']
)
def test_a_body_that_is_no_request_is_refused(body: bytes) -> None:
    with serving(create_app(says(OK))) as url:
        response = httpx.post(f"{url}/run_code", content=body)
        assert response.status_code == 422 and response.json()["detail"]
        assert ask(url).status_code == 200  # and the server goes on


def test_infinite_limits_are_refused() -> None:
    body = b'{"code": "", "language": "python", "run_timeout": %s}'
    with serving(create_app(says(OK))) as url:
        for number in (b"Infinity", b"NaN", b"1e999"):
            assert httpx.post(f"{url}/run_code", content=body % number).status_code == 422


@pytest.mark.parametrize("maximum", [{"wall_seconds": 1}, "foo", None, 5])
def test_a_maximum_that_is_none_is_refused(maximum: object) -> None:
    with pytest.raises(TypeError, match="maximum must be a Limits"):
        create_app(says(OK), maximum=maximum)


@pytest.mark.parametrize("seconds", ["nan", "inf", "0", "-1"])
def test_serve_refuses_a_maximum_before_it_makes_a_sandbox(seconds: str, capsys, monkeypatch):
    monkeypatch.setattr("retool_env.sandbox.make_sandbox", None)
    assert main(["serve", "--max-seconds", seconds]) == 1
    assert "--max-seconds: Limits.wall_seconds must be a number" in capsys.readouterr().err


@pytest.mark.parametrize("memory", [-1, 0])
def test_no_memory_limit_means_the_usual_one(memory: int) -> None:
    seen = []

    async def answer(code: str, limits: Limits, *_) -> Execution:
        seen.append(limits)
        return OK

    with serving(create_app(Scripted(answer))) as url:
        ask(url, memory_limit_MB=memory, run_timeout=5)
    assert seen == [Limits(wall_seconds=5)]


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
    monkeypatch.setattr(server, "_BODY_SECONDS", 0.2)

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


# --- health and metrics ---------------------------------------------------------------------------


def test_health_probes_once_and_learns_from_programs(monkeypatch) -> None:
    box = says(OK)
    with serving(create_app(box)) as url:
        for _ in range(3):
            response = httpx.get(f"{url}/health")
            assert (response.status_code, response.json()) == (200, {"status": "ok"})
        assert box.started == 1
        monkeypatch.setattr(monitoring, "_PROBE_EVERY", 0.3)
        time.sleep(0.4)
        ask(url)
        httpx.get(f"{url}/health")  # a program has just run: no probe is needed
        assert box.started == 2
        time.sleep(0.4)
        httpx.get(f"{url}/health")
        assert box.started == 3


def test_health_says_what_is_wrong_and_when_it_is_over() -> None:
    now = [Execution(Outcome.INFRASTRUCTURE, "", "no namespaces")]

    async def answer(*_) -> Execution:
        return now[0]

    box = Scripted(answer)
    with serving(create_app(box)) as url:
        for _ in range(3):
            response = httpx.get(f"{url}/health")
            assert response.status_code == 503
            assert "no namespaces" in response.json()["reason"]
        assert box.started == 1
        now[0] = OK
        ask(url)
        assert httpx.get(f"{url}/health").status_code == 200
        now[0] = Execution(Outcome.INFRASTRUCTURE, "", "gone")
        ask(url)
        assert "gone" in httpx.get(f"{url}/health").json()["reason"]


def test_a_sandbox_that_raises_or_hangs_is_not_healthy(monkeypatch) -> None:
    async def raises(*_) -> Execution:
        raise RuntimeError("closed")

    async def hangs(*_) -> Execution:
        await asyncio.sleep(60)
        return OK

    monkeypatch.setattr(monitoring, "_PROBE_SECONDS", 0.2)
    for answer, reason in ((raises, "RuntimeError: closed"), (hangs, "did not end within 0.2 s")):
        with serving(create_app(Scripted(answer))) as url:
            response = httpx.get(f"{url}/health")
        assert response.status_code == 503 and reason in response.json()["reason"]


def counted(url: str) -> dict[tuple[str, str], float]:
    response = httpx.get(f"{url}/metrics")
    assert response.headers["Content-Type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    samples = (sample for family in families for sample in family.samples)
    return {(s.name, s.labels.get("outcome", s.labels.get("le", ""))): s.value for s in samples}


def test_metrics_count_programs_by_outcome_and_time_them() -> None:
    async def answer(code: str, *_) -> Execution:
        return Execution(Outcome(code), "", duration=0.2)

    with serving(create_app(Scripted(answer))) as url:
        assert counted(url)["retool_sandbox_programs_total", "ok"] == 0
        for code in ("ok", "ok", "timeout"):
            ask(url, code)
        ask(url, language="cpp")
        found = counted(url)
        programs = {label: n for (name, label), n in found.items() if name.endswith("ms_total")}
    assert set(programs) == {*(str(outcome) for outcome in Outcome), "cancelled"}
    assert {label: n for label, n in programs.items() if n} == {"ok": 2, "timeout": 1}
    assert found["retool_sandbox_in_flight", ""] == 0
    assert found["retool_sandbox_program_seconds_count", ""] == 3
    assert found["retool_sandbox_program_seconds_sum", ""] == pytest.approx(0.6)
    assert found["retool_sandbox_program_seconds_bucket", "0.1"] == 0
    assert found["retool_sandbox_program_seconds_bucket", "0.3"] == 3


def test_metrics_show_what_is_in_flight_and_what_was_turned_away() -> None:
    box = sleeps()
    with serving(create_app(box, max_in_flight=1)) as url, ThreadPoolExecutor(1) as pool:
        held = pool.submit(ask, url, "1")
        wait_until(lambda: box.running == 1)
        assert ask(url, "0").status_code == 503
        found = counted(url)
        assert found["retool_sandbox_in_flight", ""] == 1
        assert found["retool_sandbox_busy_total", ""] == 1
        held.result()
        assert counted(url)["retool_sandbox_in_flight", ""] == 0


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
        assert ask(url, "print(1)").status_code == 401
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
