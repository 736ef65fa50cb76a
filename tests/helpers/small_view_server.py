"""A server of the viewer's interface for the tests of its page."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qsl, urlsplit

import retool_env.evaluation.view
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view.episode import episode_view, span_text
from retool_env.evaluation.view.index import Index

PAGE = Path(retool_env.evaluation.view.__file__).parent / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@contextmanager
def serve_runs(paths):
    indexes = [Index(open_run(path)) for path in paths]
    served = SimpleNamespace(finished=True)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def reply(self, body, kind="application/json", code=200):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(body)),
                "Content-Security-Policy": CSP,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            parts = urlsplit(self.path)
            name = parts.path.removeprefix("/T/")
            if not name.startswith("api/"):
                file = PAGE / (name or "index.html")
                return self.reply(file.read_bytes(), TYPES[file.suffix])
            try:
                self.reply(answer(name[4:], dict(parse_qsl(parts.query, errors="surrogatepass"))))
            except Exception as error:
                self.reply({"error": str(error)}, code=404)

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(dict(outcome="ok", stdout="41\n", error="", traceback="", seconds=7.5))

    def answer(name, query):
        if name == "runs":
            runs = [
                dict(run=i, title=x.run.title, kind=x.run.kind, path=str(x.run.path), details=[], finished=served.finished)
                for i, x in enumerate(indexes)
            ]
            return {"runs": runs, "can_run": True}
        index = indexes[int(query["run"])]
        if name == "rows":
            index.refresh()
            rows = index.rows()
            return {"rows": rows[int(query["since"]) :], "next": len(rows), "removed": []}
        if name == "search":
            return {"addresses": index.search(query["text"])}
        if name == "episode":
            return episode_view(index, query["address"])
        if name == "span":
            return {"text": span_text(index, query["address"], int(query["span"]), int(query["from"]))}
        if name == "tokens":
            transcript = index.episode(query["address"])[1]
            return {"known": False, "why": "no tokenizer was found", "spans": [
                {"ids": list(s.token_ids or ()), "texts": None, "logprobs": s.logprobs and list(s.logprobs),
                 "mask": [int(s.author == "model")] * len(s.token_ids or ()), "versions": None, "trained": None, "ratio": None} for s in transcript.spans]}
        raise KeyError(name)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served.address = f"http://127.0.0.1:{server.server_address[1]}/T/"
    served.server = server
    yield served
    server.shutdown()
    server.server_close()
