"""Notices of preemption, as the metadata servers of two clouds give them, here by a server on this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from grpo_jax import notices


class Metadata(ThreadingHTTPServer):
    """Answers as the real ones do, and refuses what they refuse."""

    def __init__(self):
        super().__init__(("localhost", 0), Handler)
        self.preempted = False
        self.asked = 0


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.path == "/computeMetadata/v1/instance/preempted":
            right = self.headers["Metadata-Flavor"] == "Google"
            self._answer(200 if right else 403, "TRUE" if self.server.preempted else "FALSE")
        elif self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "token":
                self._answer(401, "")
            elif self.server.preempted:
                self._answer(200, '{"action": "terminate", "time": "2030-01-01T00:00:00Z"}')
            else:
                self._answer(404, "not found")

    def do_PUT(self) -> None:
        right = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200 if right else 400, "token")

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def server(monkeypatch) -> Iterator[Metadata]:
    server = Metadata()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"localhost:{server.server_port}"
    monkeypatch.setenv("GCE_METADATA_HOST", address)
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{address}/")
    monkeypatch.setenv("http_proxy", "http://localhost:9")  # the server is the machine's own: no proxy
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("name", "says"), [("gce", "Google's notice"), ("aws", "Amazon's notice")])
def test_a_notice_is_heard_when_it_comes(server, monkeypatch, name, says):
    monkeypatch.setattr(notices, "POLL_S", 0.05)
    heard, come, ended = [], threading.Event(), threading.Event()

    def hear(text: str) -> None:
        heard.append(text)
        come.set()

    notices.watch(name, on_notice=hear, on_trouble=pytest.fail, until=ended)
    assert not come.wait(0.5) and server.asked > 2
    server.preempted = True
    assert come.wait(5)
    assert len(heard) == 1 and says in heard[0]
    ended.set()


@pytest.mark.parametrize("name", ["gce", "aws"])
def test_a_server_that_does_not_answer_is_told_once_and_asked_again(server, monkeypatch, name):
    monkeypatch.setattr(notices, "POLL_S", 0.05)
    away = server.server_port
    monkeypatch.setenv("GCE_METADATA_HOST", "localhost:9")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://localhost:9")
    trouble, come, ended = [], threading.Event(), threading.Event()
    notices.watch(name, on_notice=lambda _: come.set(), on_trouble=trouble.append, until=ended)
    assert not come.wait(0.5)
    assert len(trouble) == 1 and "gives no answer" in trouble[0] and "preemption_notice='none'" in trouble[0]
    server.preempted = True
    monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{away}")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://localhost:{away}")
    assert come.wait(5)
    ended.set()


def test_nobody_is_asked_for_none(server):
    notices.watch("none", on_notice=pytest.fail, on_trouble=pytest.fail, until=threading.Event())
    assert server.asked == 0
