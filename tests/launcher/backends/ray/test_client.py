"""What Ray's dashboard says, and what is made of it; every answer is one that Ray 2.60 gives."""

from __future__ import annotations

import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.backends.ray import client
from launchyard.launcher.backends.ray.client import AwayError, Dashboard
from tests.support.certificates import make_certificate, server_context
from tests.support.fake_ray import FakeRay


@pytest.fixture
def ray(cluster: FakeRay) -> Dashboard:
    return Dashboard(f"{cluster.address}/")


def submit(ray: Dashboard, entrypoint: str, job_id: str = "j-1") -> str:
    return ray.submit({"entrypoint": entrypoint, "submission_id": job_id, "runtime_env": {}})


ENDS = {"exit 0": "SUCCEEDED", "echo no such thing; exit 3": "FAILED"}


@pytest.mark.parametrize("entrypoint", ENDS)
def test_a_job_to_its_end(entrypoint: str, cluster: FakeRay, ray: Dashboard) -> None:
    cluster.hold = True
    job = submit(ray, entrypoint)
    seen = ray.ask(job)
    assert (seen.state, seen.scheduler_state) == ("queued", "PENDING")
    assert seen.reason.startswith("Job has not started yet")
    assert not ray.wait_gone(job, seconds=0.0)
    cluster.start(job)
    assert ray.wait_gone(job, seconds=20)
    seen = ray.ask(job)
    assert (seen.state, seen.scheduler_state, seen.reason) == ("gone", ENDS[entrypoint], "")
    assert ray.logs(job) == ("no such thing\n" if "echo" in entrypoint else "")


def test_a_job_that_is_stopped(cluster: FakeRay, ray: Dashboard) -> None:
    job = submit(ray, "exec sleep 60")
    assert ray.ask(job).state == "running"
    ray.stop(job)
    assert ray.wait_gone(job, seconds=20)
    assert ray.ask(job).scheduler_state == "STOPPED"
    ray.stop(job)
    ray.stop("nothing")


def test_a_name_is_taken_once(cluster: FakeRay, ray: Dashboard) -> None:
    submit(ray, "exit 0")
    with pytest.raises(UserError, match=r"Job with submission_id j-1 already exists"):
        submit(ray, "exit 0")


def test_code_is_sent_once(cluster: FakeRay, ray: Dashboard) -> None:
    assert ray.upload("a.zip", b"\0\1") == ray.upload("a.zip", b"\0\1") == "gcs://a.zip"
    assert cluster.packages == {"a.zip": b"\0\1"}
    cluster.replies["PUT /api/packages/gcs/b.zip"] = 500, "Traceback\nRuntimeError: package is larger than 512MiB\n"
    with pytest.raises(LaunchError, match="does not take our code: RuntimeError: package is larger"):
        ray.upload("b.zip", b"x")


def test_a_slow_answer_is_not_waited_for(cluster: FakeRay, ray: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_SECONDS", 0.2)
    cluster.delay = 1.0
    began = time.monotonic()
    assert ray.ask("j").state == "unknown"
    with pytest.raises(AwayError, match="timed out"):
        ray.version()
    assert time.monotonic() - began < 5


def test_what_nobody_knows(cluster: FakeRay, ray: Dashboard) -> None:
    assert ray.ask("j").state == "forgotten"
    assert ray.logs("j") == ""
    assert [node["hostname"] for node in ray.nodes()] == ["host0", "host1"]
    cluster.away()
    assert ray.logs("j") == ""
    with pytest.raises(AwayError):
        ray.stop("j")


def test_nobody_behind_https() -> None:
    with pytest.raises(AwayError, match=r"https://127\.0\.0\.1:9"):
        Dashboard("https://127.0.0.1:9").version()


HTML = "<!DOCTYPE html>\n<html>from the ingress</html>"
ODD = {
    "503": (503, "no healthy upstream", "with 503, and not as Ray does: no healthy upstream"),
    "401": (401, HTML, "does not let us in"),
    "302": (302, "", "redirects"),
    "login page": (200, HTML, "is not a Ray dashboard"),
    "404 of an ingress": (404, "404 page not found", "with 404, and not as Ray does: 404 page not found"),
    "404 in HTML": (404, HTML, "a page of HTML"),
    "empty": (200, "", "is not a Ray dashboard"),
    "cut": (200, '{"status": "RUN', "is not a Ray dashboard"),
    "null": (200, "null", "is not a Ray dashboard"),
    "a list": (200, "[]", "is not a Ray dashboard"),
    "no status": (200, "{}", "is not a Ray dashboard"),
    "a status of another program": (200, '{"status": "ok"}', "is not a Ray dashboard"),
}


@pytest.mark.parametrize("what", ODD)
def test_an_answer_that_is_not_rays_is_not_believed(what: str, cluster: FakeRay, ray: Dashboard) -> None:
    status, text, said = ODD[what]
    asked = ("GET /api/jobs/j", "POST /api/jobs/", "GET /api/version", "GET /nodes?view=summary")
    cluster.replies |= dict.fromkeys(asked, (status, text))
    seen = ray.ask("j")
    assert (seen.state, seen.scheduler_state) == ("unknown", "")
    assert said in seen.reason and cluster.address in seen.reason
    for call in (lambda: submit(ray, "exit 0"), ray.version, ray.nodes):
        with pytest.raises(UserError) as caught:
            call()
        assert said in str(caught.value) and "of the cluster" in (caught.value.hint or "")


@pytest.mark.parametrize("status", [302, 401, 404, 503])
def test_code_is_not_taken_for_sent_because_a_proxy_answers(status: int, cluster: FakeRay, ray: Dashboard) -> None:
    cluster.replies["GET /api/packages/gcs/a.zip"] = status, HTML
    with pytest.raises(UserError):
        ray.upload("a.zip", b"x")


def test_a_port_that_is_none_is_no_traceback() -> None:
    seen = Dashboard("http://127.0.0.1:99999").ask("j")
    assert seen.state == "unknown"
    assert "http://127.0.0.1:99999" in seen.reason


class Proxy(HTTPServer):
    """Answers as Ray does, and keeps the paths and headers of what it was asked; with TLS if it gets a context."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.heard = list[tuple[str, dict[str, str]]]()
        super().__init__(("127.0.0.1", 0), ProxyHandler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def __enter__(self) -> Proxy:
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that does not trust us ends the handshake."""


class ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        self.server.heard.append((self.path, dict(self.headers)))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.50.0"}')

    def log_message(self, *words: object) -> None:
        pass


def test_the_path_of_the_address_is_kept_and_client_named() -> None:
    with Proxy() as proxy:
        assert Dashboard(f"http://127.0.0.1:{proxy.server_port}/ray/prod/").version() == {"ray_version": "2.50.0"}
    ((path, headers),) = proxy.heard
    assert (path, headers["User-Agent"]) == ("/ray/prod/api/version", "launchyard")


def test_headers_of_a_file_are_sent(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("# for the proxy\n\nX-Team: nlp\nCookie:session=a:b\n")
    with Proxy() as proxy:
        Dashboard(f"http://127.0.0.1:{proxy.server_port}", headers_file=str(tmp_path / "headers")).version()
    headers = proxy.heard[0][1]
    assert (headers["X-Team"], headers["Cookie"]) == ("nlp", "session=a:b")


@pytest.mark.parametrize("line", ["just-a-secret", "two words: x", ": x"])
def test_a_line_that_is_no_header_is_named_without_its_text(line: str, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text(f"X-Team: nlp\n{line}\n")
    with pytest.raises(UserError, match=r"ray\.headers_file: .*headers, line 2: not a header") as caught:
        Dashboard("http://127.0.0.1:9", headers_file=str(tmp_path / "headers")).version()
    assert "secret" not in str(caught.value)


def test_a_certificate_of_an_own_authority(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path)
    with Proxy(server_context(authority)) as proxy:
        address = f"https://127.0.0.1:{proxy.server_port}"
        assert Dashboard(address, ca_file=str(authority)).version()
        with pytest.raises(AwayError, match="certificate verify failed"):
            Dashboard(address).version()
    (tmp_path / "other").write_text("no certificate")
    with pytest.raises(UserError, match=r"ray\.ca_file: .*holds no certificate"):
        Dashboard(address, ca_file=str(tmp_path / "other")).version()


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_the_port_that_an_address_without_one_means(scheme: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[tuple[str, int]]()

    def refuse(where: tuple[str, int], *rest: object) -> None:
        called.append(where)
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refuse)
    assert Dashboard(f"{scheme}://ray.example").ask("j").state == "unknown"
    assert called == [("ray.example", port)]
