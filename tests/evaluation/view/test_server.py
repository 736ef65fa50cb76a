"""The server answers its own page alone, and survives hostile requests and records."""

import http.client
import json
import socket
import threading
from urllib.parse import quote

import pytest
from helpers.episodes import ANSWERED, OK, episode
from helpers.run_folders import fill
from helpers.viewed_runs import HOSTILE, a_page, an_eval, append, evaluated, hostile

from retool_env.errors import SettingsError
from retool_env.evaluation.runs import open_run
from retool_env.evaluation.view import static
from retool_env.evaluation.view.api import Api
from retool_env.evaluation.view.index import Index
from retool_env.evaluation.view.server import ViewServer
from retool_env.transcript import write_transcripts


class Client:
    """A client of one server, which lets every header be wrong."""

    def __init__(self, server):
        self.server = server
        self.token = f"/{server.token}"

    def ask(self, path, method="GET", body=None, **headers):
        """The status, the headers and the content of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.server_port, timeout=30)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.headers, content

    def get(self, path):
        """The JSON of an answer of the API."""
        status, headers, content = self.ask(f"{self.token}/api/{path}")
        assert headers["Content-Type"] == "application/json"
        return status, json.loads(content)

    def raw(self, data):
        """The beginning of the answer to any bytes."""
        with socket.create_connection(("127.0.0.1", self.server.server_port), 30) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return a_page(tmp_path_factory.mktemp("page") / "page")


@pytest.fixture
def serve(page, monkeypatch):
    """A function that serves runs and returns a client."""
    monkeypatch.setattr(static, "PAGE", page)
    servers = []

    def start(*paths):
        indexes = [Index(open_run(path), cache=False) for path in paths]
        for index in indexes:
            index.refresh()
        server = ViewServer(Api(indexes))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return Client(server)

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def client(serve, tmp_path):
    return serve(an_eval(tmp_path / "run"))


def test_the_page_and_its_files_are_served_with_their_types(client):
    for name, kind in (("", "html"), ("style.css", "css"), ("main.js", "javascript")):
        status, headers, content = client.ask(f"{client.token}/{name}")
        assert (status, headers["Content-Type"]) == (200, f"text/{kind}; charset=utf-8")
        assert int(headers["Content-Length"]) == len(content) > 0


def test_every_answer_has_the_headers_that_confine_the_page(client):
    for path in (f"{client.token}/", f"{client.token}/api/runs", "/", f"{client.token}/nothing"):
        _, headers, _ = client.ask(path)
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers


def test_a_head_request_has_the_headers_alone(client):
    path = f"{client.token}/api/runs"
    status, headers, content = client.ask(path, "HEAD")
    assert (status, content) == (200, b"")
    assert headers["Content-Length"] == client.ask(path)[1]["Content-Length"]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "/api/runs",
            "/wrong/api/runs",
            "//api/runs",
            "/%00/",
        ),
        *("{token}x/", "/x{token}/", "{token}", "{token}/nothing", "{token}/api", "{token}/api/"),
        *("{token}/api/nothing", "{token}/notes.txt", "{token}/index.py", "{token}/runs"),
        *("{token}/../index.py", "{token}/..%2findex.py", "{token}/%2e%2e/index.py"),
        *("{token}/..\\index.py", "{token}//etc/passwd", "{token}/page/../main.js"),
        *("{token}/main.js/", "{token}/./main.js", "{token}/MAIN.JS", "{token}/main.js%00"),
        *("{token}/api/../api/runs", "/../..{token}/api/runs", "{token};x/"),
    ],
)
def test_any_other_path_is_not_found(client, path):
    status, headers, content = client.ask(path.format(token=client.token))
    assert status == 404
    assert headers["Content-Type"] == "application/json"
    assert list(json.loads(content)) == ["error"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "[::1]:{port}", ""]
)
def test_a_foreign_name_of_this_machine_is_refused(client, host):
    host = host.format(port=client.server.server_port)
    status, _, content = client.ask(f"{client.token}/api/runs", Host=host)
    assert (status, "Host header" in json.loads(content)["error"]) == (403, True)


def test_localhost_is_a_name_of_this_machine(client):
    host = f"localhost:{client.server.server_port}"
    assert client.ask(f"{client.token}/api/runs", Host=host)[0] == 200


def test_two_host_headers_are_refused(client):
    port = client.server.server_port
    lines = [
        f"GET {client.token}/api/runs HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Host: evil",
        "",
        "",
    ]
    assert client.raw("\r\n".join(lines).encode()).startswith(b"HTTP/1.1 403 ")


BODY = json.dumps({"run": 0, "address": "nothing", "call": 1, "seconds": 1})


def post(client, body=BODY, path="/api/run", **headers):
    own = f"http://127.0.0.1:{client.server.server_port}"
    named = {"Origin": own, "Content_Type": "application/json", **headers}
    kept = {name: value for name, value in named.items() if value is not None}
    status, _, content = client.ask(client.token + path, "POST", body, **kept)
    return status, json.loads(content)["error"]


def test_a_program_is_run_for_the_page_alone(client):
    assert post(client)[0] == 400  # it reached the API, which has no such episode
    for origin in ("http://evil.example", "null", None, "http://127.0.0.1", "https://127.0.0.1:1"):
        assert post(client, Origin=origin) == (403, "the Origin header is not this server's page")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": None}, 415),
        ({"body": "{"}, 400),
        ({"body": "[]"}, 400),
        ({"body": "[" * 60_000}, 400),
        ({"body": "{}"}, 400),
        ({"body": "x" * 100_000}, 413),
        ({"path": "/api/runs"}, 404),
        ({"path": "/"}, 404),
    ],
)
def test_a_malformed_request_to_run_a_program_is_refused(client, change, status):
    assert post(client, **change)[0] == status


def test_other_methods_and_broken_requests_are_answered_in_json(client):
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        status, headers, _ = client.ask(f"{client.token}/api/runs", method)
        assert (status, headers["Content-Type"]) == (501, "application/json")
    for data in (
        "GET /é/ HTTP/1.1\r\n\r\n".encode(),
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00\xff\r\n\r\n",
    ):
        assert b"Traceback" not in client.raw(data)
    assert b" 414 " in client.raw(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n").splitlines()[0]
    assert client.get("runs")[0] == 200


def test_an_error_of_the_viewer_shows_no_trace_to_the_page(client, monkeypatch, capfd):
    monkeypatch.setitem(client.server.api.requests, "runs", lambda query: 1 / 0)
    status, answer = client.get("runs")
    assert (status, "Zero" in answer["error"], "\n" in answer["error"]) == (500, False, False)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_the_log_is_silent(client, capfd):
    client.ask("/nothing")
    client.get("runs")
    assert capfd.readouterr() == ("", "")


def test_a_port_in_use_is_named(client, monkeypatch):
    with pytest.raises(SettingsError, match=f"port {client.server.server_port} can't be used"):
        ViewServer(client.server.api, client.server.server_port)
    with pytest.raises(SettingsError, match="port 70000 can't be used"):
        ViewServer(client.server.api, 70_000)


def test_hostile_texts_arrive_as_they_were_recorded(serve, tmp_path):
    made = hostile()
    long = "<" * 1_000_000
    write_transcripts(tmp_path / "t.jsonl", [made, episode("p", ANSWERED, long, correct=True)])
    client = serve(tmp_path / "t.jsonl")
    assert [len(client.get("rows?run=0&since=0")[1]["rows"]) for _ in range(2)] == [2, 2]
    _, view = client.get(f"episode?run=0&address={quote('line/1', safe='')}")
    assert [span["text"] for span in view["spans"]] == [span.text for span in made.spans]
    assert view["problem"]["question"] == HOSTILE
    _, view = client.get("episode?run=0&address=line/2")
    assert (len(view["spans"][1]["text"]), view["spans"][1]["cut"]) == (200_000, 800_000)
    _, rest = client.get("span?run=0&address=line/2&span=1&from=200000")
    assert rest == {"text": long[200_000:]}
    _, found = client.get(f"search?run=0&text={quote('<SCRIPT>', safe='')}")
    assert found == {"addresses": ["line/1"]}
    assert client.get("tokens?run=0&address=line/1")[1]["known"] is False


@pytest.mark.parametrize(
    "address",
    ["..", "../../etc/passwd", "%00", "%ff%fe", "<script>", "%0d%0aX-A:%20b", "a" * 20_000],
)
def test_a_hostile_address_is_not_found(client, address):
    status, answer = client.get(f"episode?run=0&address={address}")
    assert (status, "has no episode" in answer["error"]) == (400, True)


def test_a_run_is_followed_while_it_grows_and_after_it_was_replaced(serve, tmp_path):
    path = an_eval(tmp_path / "run", 2)
    client = serve(path)
    _, first = client.get("rows?run=0&since=0")
    append(path / "episodes.jsonl", evaluated(2))
    with open(path / "episodes.jsonl", "a") as file:
        file.write(json.dumps(evaluated(3).to_json())[:200])
    _, more = client.get(f"rows?run=0&since={first['next']}")
    assert ([row["address"] for row in more["rows"]], more["removed"]) == (["p/1/2"], [])
    fill(path / "episodes.jsonl", [evaluated(0)])
    _, last = client.get(f"rows?run=0&since={more['next']}")
    assert [row["address"] for row in last["rows"]] == ["p/1/0"]
    assert sorted(last["removed"]) == ["p/1/1", "p/1/2"]
    (path / "episodes.jsonl").unlink()
    assert client.get(f"rows?run=0&since={last['next']}")[1]["removed"] == ["p/1/0"]


def test_many_requests_are_answered_at_once(serve, tmp_path):
    write_transcripts(tmp_path / "t.jsonl", [episode("p", ANSWERED, ("<code>a</code>", OK))] * 5)
    client = serve(tmp_path / "t.jsonl")
    answers = []

    def ask(number):
        answers.append(client.get(f"episode?run=0&address=line/{number}")[1]["address"])

    threads = [threading.Thread(target=ask, args=(n % 5 + 1,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == sorted(f"line/{n % 5 + 1}" for n in range(20))
