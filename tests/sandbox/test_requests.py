"""The body of `POST /run_code`: refusals, and default limits."""

import httpx
import pytest
from helpers.clients import OK, ask
from helpers.services import Scripted, says, serving

from retool_env.sandbox import Execution, Limits
from retool_env.sandbox.server import create_app


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"language": "cpp"}, "language"),
        ({"language": None}, "language"),
        ({"code": 3}, "code"),
        ({"stdin": 3}, "stdin"),
        (
            {"files": {"a.txt": "YQ=="}},
            "files and fetch_files: this server's sandbox keeps no files",
        ),
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


@pytest.mark.parametrize("memory", [-1, 0])
def test_no_memory_limit_means_the_usual_one(memory: int) -> None:
    seen = []

    async def answer(code: str, limits: Limits, *_) -> Execution:
        seen.append(limits)
        return OK

    with serving(create_app(Scripted(answer))) as url:
        ask(url, memory_limit_MB=memory, run_timeout=5)
    assert seen == [Limits(wall_seconds=5)]
