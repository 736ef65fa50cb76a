"""API keys that a real local server repeats in its answers: no error and no log shows them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from retool_env.problems import Problem
from retool_env.rollout.openai.policy import OpenAIPolicy
from retool_env.rollout.vllm.server import VLLMServerPolicy
from retool_env.servers.address import REDACTED
from retool_env.transcript import Span, Transcript

KEY = "sk-hunter2-0123456789"


@contextlib.contextmanager
def repeating(status: int) -> Iterator[str]:
    """An API whose every answer repeats the key of the request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            sent = self.headers["Authorization"]
            body = json.dumps({"error": {"message": f"not {sent}"}, "data": sent}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 422, 429, 500, 503])
@pytest.mark.parametrize("client", ["openai", "vllm"])
def test_a_key_that_an_api_repeats_is_not_shown(status: int, client: str, caplog) -> None:
    with (
        repeating(status) as url,
        caplog.at_level("INFO"),
        pytest.raises((OSError, ValueError, RuntimeError)) as caught,
    ):
        if client == "openai":
            pytest.importorskip("openai", reason="pip install 'retool-env[openai]'")
            policy = OpenAIPolicy("m", url, KEY, retries=0)
            asked = Transcript(Problem("p", "q", "1"), (Span("prompt", "q"),))
            asyncio.run(policy.write(asked, (), 0))
        else:
            VLLMServerPolicy([url], None, token=KEY)
    told = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in told and "hunter2" not in caplog.text
    if (client, status) != ("vllm", 429):  # which is busy, whatever it says
        assert REDACTED in told
