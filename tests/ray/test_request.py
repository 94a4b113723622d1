"""What Ray Jobs is sent, and what its answers mean, without a Ray: golden, quoted, strict, and bounded in time."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.errors import LaunchError, UserError
from launchyard.launcher.agent.restart_policy import NODE_LOST, AttemptSummary, after_attempt
from launchyard.launcher.backends.cluster import Cluster, load_cluster
from launchyard.launcher.backends.code import pack_code
from launchyard.launcher.backends.ray import request as ray_request
from launchyard.launcher.backends.ray.client import AwayError, Dashboard
from launchyard.launcher.backends.ray.placement import RayNode, shortage
from launchyard.launcher.backends.request import Ask
from launchyard.launcher.plan.plan import Plan, PlanError, PlannedData
from launchyard.launcher.plan.planner import make_plan
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.resume import _cluster as cluster_of_plan
from launchyard.run.records import Shape
from tests.launcher.plan.test_planner import CPU, DATA, SMALL

GOLDEN = Path(__file__).parent / "golden"
HARD = "a b;$HOME 'q' \"d\" {job} #x"
SITE = {"name": "site", "scheduler": "ray", "ray": {"address": "http://head:8265"}}
CASES: dict[str, dict[str, Any]] = {
    "two-cpu-nodes": {"cluster": SITE},
    "gpus-fewer-will-do": {
        "cluster": {
            **SITE,
            "node": {"gpus": 8, "cpus": 96, "memory": "900GB"},
            "environment": {"NCCL_SOCKET_IFNAME": "ib0"},
            "ray": {
                "address": "https://head/ray", "python": "/opt/venv/bin/python", "wait_seconds": 300,
                "runtime_env": {"pip": ["launchyard[train,ray]"]}, "resources": {"accelerator_type:H100": 0.001},
                "owner": {"CPU": 1, "login": 0.001},
            },
        },
        "train__device": "auto", "resources__nodes": 4, "resources__min_nodes": 1, "train__global_batch_size": 64,
    },
    "this-machine": {"cluster": {"name": "ray", "scheduler": "ray"}},
}  # fmt: skip


def plan_of(cluster: dict[str, Any], **changes: Any) -> Plan:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    keys = {"resources.nodes": 2, "train.device": "cpu", **keys}
    return make_plan(
        load_recipe(SMALL, keys).recipe, cluster=Cluster.model_validate(cluster), run_id="small-ab12",
        run_url="/runs/small-ab12", host=CPU, data=PlannedData(spec=DATA, vocab_size=2048),
    )  # fmt: skip


# -- the request -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """To renew: delete the file, run the test, read the difference."""
    plan, path = plan_of(**CASES[name]), GOLDEN / f"{name}.json"
    text = f"{plan.script}\n{json.dumps(plan.processes[0].model_dump(), indent=1)}\n"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        pytest.fail(f"{path} was missing and has been written; read it and run again")
    assert text == path.read_text()


WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r", exclude_categories=("Cs", "Cc")), min_size=1)


@given(url=WORDS)
def test_the_shell_reads_the_very_words(url: str) -> None:
    words = shlex.split(entrypoint(f"/r/{url}"))
    assert words[:7] == ["exec", "/p", "-P", "-u", "-m", "launchyard.launcher.backends.ray.owner", f"/r/{url}"]
    assert words[-1] == "--job-id=j-1"


def entrypoint(url: str, python: str = "/p") -> str:
    cluster = Cluster.model_validate({**SITE, "ray": {"address": "http://h", "python": python}})
    shape = Shape(nnodes=2, nproc_per_node=1, device="cpu")
    ask = Ask(run_id="r", run_url=url, shape=shape, sizes=(2, 1), python="/x", logs="/l")
    job = ray_request.make_request(cluster, ask).job
    return str(ray_request.filled(job, job_id="j-1", code=None)["entrypoint"])


def test_a_shell_that_runs_it_sees_them_too(tmp_path: Path) -> None:
    show = tmp_path / "show"
    show.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    show.chmod(0o700)
    done = subprocess.run(["sh", "-c", entrypoint(f"/r/{HARD}", str(show))], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "-P", "-u", "-m", "launchyard.launcher.backends.ray.owner", f"/r/{HARD}", "--bundle=CPU=1", "--sizes=2,1",
        "--wait-seconds=60",
        "--job-id=j-1",
    ]  # fmt: skip


def test_what_is_drawn_at_the_submission() -> None:
    request = json.loads(plan_of(SITE).script or "")["request"]
    filled = ray_request.filled(request, job_id="j-1", code="gcs://x.zip")
    assert (filled["submission_id"], filled["runtime_env"]["working_dir"]) == ("j-1", "gcs://x.zip")
    assert "working_dir" not in ray_request.filled(request, job_id="j-1", code=None)["runtime_env"]
    assert "{" not in filled["entrypoint"]


def test_agents_get_their_words() -> None:
    agent = plan_of({**SITE, "ray": {"address": "http://h", "python": "/p"}}).agent
    assert agent == ["/p", "-P", "-u", "-m", ray_request.AGENT, "/runs/small-ab12"]
    assert agent[1:] == ray_request.agent_words("/runs/small-ab12"), "as the owner gives them to an actor"


def test_equal_code_makes_equal_bytes(tmp_path: Path) -> None:
    package = pack_code()
    assert package is not None and package == pack_code()
    (tmp_path / "code.zip").write_bytes(package)
    said = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import launchyard; print(launchyard)",  # noqa: E501
         str(tmp_path / "code.zip")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert "code.zip" in said


def test_a_resume_finds_its_ray_without_the_cluster_file() -> None:
    case = {key: value for key, value in CASES["gpus-fewer-will-do"].items() if key != "cluster"}
    cluster = {**CASES["gpus-fewer-will-do"]["cluster"], "name": "gone"}
    plan = plan_of(cluster, **case)
    found = cluster_of_plan(plan.model_dump(mode="json"))
    assert (found.name, found.ray) == ("gone", Cluster.model_validate(cluster).ray)
    assert (found.node.cpus, found.node.gpus, found.environment) == (96, 8, {"NCCL_SOCKET_IFNAME": "ib0"})


# -- sizes -----------------------------------------------------------------------------------------------------------
def test_sizes_are_those_that_can_make_the_same_steps() -> None:
    plan = plan_of(SITE, resources__nodes=4, resources__min_nodes=1, train__global_batch_size=8)
    assert "--sizes=4,2,1" in (plan.script or "")
    assert "--sizes=4 " in (plan_of(SITE, resources__nodes=4, train__global_batch_size=8).script or "")
    with pytest.raises(PlanError, match=r"no number of nodes from there to 3 can make the same steps"):
        plan_of(SITE, resources__nodes=4, resources__min_nodes=3, train__global_batch_size=8)


def test_min_nodes_is_said_where_it_does_nothing() -> None:
    slurm = {"name": "site", "scheduler": "slurm"}
    notes = plan_of(slurm, resources__min_nodes=1).notes
    assert any("resources.min_nodes: site gives all" in note for note in notes)
    with pytest.raises(UserError, match="min_nodes: 3 is more than nodes, 2"):
        load_recipe(SMALL, {"resources.nodes": 2, "resources.min_nodes": 3})


def test_a_lost_node_is_no_failure_of_the_run() -> None:
    lost = [AttemptSummary(number, "failed", NODE_LOST) for number in range(9)]
    assert after_attempt(lost, max_failures=1).action == "again"
    failed = [*lost, AttemptSummary(9, "failed", "error")]
    assert after_attempt(failed, max_failures=1).action == "end"
    assert after_attempt(failed, max_failures=2).action == "again"


# -- the cluster file ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("ray: {address: 'ray://head:10001'}", "is not its dashboard's address"),
        ("ray: {address: 'http://me:secret@head:8265'}", "is not its dashboard's address"),
        ("ray: {runtime_env: {env_vars: {A: b}}}", "use environment"),
        ("ray: {runtime_env: {working_dir: .}}", "the launcher sends its own code"),
        ("ray: {resources: {GPU: 8}}", "set it in node"),
        ("setup: [module load cuda]", "Ray runs no script"),
        ("container: {runtime: pyxis, image: x}", "ray.runtime_env.image_uri"),
        ("slurm: {partition: gpu}", "slurm: for the scheduler slurm; this one is ray"),
        ("ray: {adress: http://head}", "did you mean ray.address"),
    ],
)
def test_rules(tmp_path: Path, lines: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"name: c\nscheduler: ray\n{lines}\n")
    with pytest.raises(UserError, match=said) as caught:
        load_cluster(str(path))
    assert "secret" not in str(caught.value)


def test_the_bundled_one_is_this_machine() -> None:
    cluster = load_cluster("ray")
    assert cluster.ray is not None and cluster.ray.address is None


# -- why there is no room --------------------------------------------------------------------------------------------
def node(cpus: float, free: float, **more: float) -> RayNode:
    return RayNode("id", "host", "address", total={"CPU": cpus, **more}, free={"CPU": free, **more})


def test_shortage_in_words() -> None:
    assert shortage({"CPU": 2}, [4], [node(2, 2), node(2, 0), node(1, 1)]) == (
        "it needs 4 nodes with 2 CPU each; of 3 nodes here 2 have that much (at most 2 CPU): add nodes, or ask for less"
    )
    assert shortage({"CPU": 2, "GPU": 1}, [2, 1], [node(8, 8, GPU=4), node(8, 1, GPU=4)]) == (
        "it needs 2 nodes (or 1 at least) with 2 CPU, 1 GPU each; of 2 such nodes 1 is free"
    )
    assert "of 0 nodes here 0 have that much (at most 0 CPU)" in shortage({"CPU": 2}, [1], [])


# -- HTTP ------------------------------------------------------------------------------------------------------------
class Answers(BaseHTTPRequestHandler):
    """Says what the test wants, and remembers what it was asked."""

    replies: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012
    heard: list[tuple[str, str | None]] = []  # noqa: RUF012

    def answer(self) -> None:
        self.heard.append((f"{self.command} {self.path}", self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, body = self.replies.get(self.path, (404, b"Job other does not exist"))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Answers.replies, Answers.heard = {}, []
    with HTTPServer(("127.0.0.1", 0), Answers) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()
        thread.join()


def test_states(server: str) -> None:
    ray = Dashboard(server)
    for word, state in {"PENDING": "queued", "RUNNING": "running", "STOPPED": "gone", "FAILED": "gone"}.items():
        Answers.replies["/api/jobs/j"] = 200, json.dumps({"status": word, "message": None}).encode()
        assert (ray.ask("j").state, ray.ask("j").scheduler_state) == (state, word)
    assert ray.ask("other").state == "forgotten"
    assert Dashboard("http://127.0.0.1:9").ask("j").state == "unknown"


def test_refusals_are_the_users(server: str) -> None:
    ray = Dashboard(server)
    Answers.replies["/api/jobs/"] = 500, b"Traceback\n  line\nValueError: no such thing\n"
    with pytest.raises(UserError, match="Ray refuses POST /api/jobs/: ValueError: no such thing"):
        ray.submit({})
    Answers.replies["/api/version"] = 200, b"<html>hello</html>"
    with pytest.raises(UserError, match="answers, but is not a Ray dashboard"):
        ray.version()
    Answers.replies["/api/version"] = 401, b"no"
    with pytest.raises(UserError, match="does not let us in"):
        ray.version()
    with pytest.raises(AwayError, match="no Ray dashboard answers at"):
        Dashboard("http://127.0.0.1:9").submit({})
    with pytest.raises(AwayError):
        Dashboard("unix:///nowhere/x.sock").version()


def test_a_token_is_sent_and_told_nowhere(server: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    Answers.replies["/api/version"] = 403, b"no"
    with pytest.raises(LaunchError) as caught:
        Dashboard(server, str(tmp_path / "token")).version()
    assert Answers.heard == [("GET /api/version", "Bearer s3cret")]
    assert "s3cret" not in f"{caught.value}{caught.value.hint}"
    with pytest.raises(UserError, match=r"ray\.token_file: .*no such file"):
        Dashboard(server, str(tmp_path / "other")).version()


def test_code_that_is_there_is_not_sent_again(server: str) -> None:
    ray = Dashboard(server)
    Answers.replies["/api/packages/gcs/a.zip"] = 200, b""
    assert ray.upload("a.zip", b"x") == "gcs://a.zip"
    assert [what for what, _ in Answers.heard] == ["GET /api/packages/gcs/a.zip"]


def test_a_dashboard_that_says_nothing_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr("launchyard.launcher.backends.ray.client.CONNECT_SECONDS", 0.3)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        began = time.monotonic()
        assert Dashboard(f"unix://{tmp_path}/s").ask("j").state == "unknown"
        assert time.monotonic() - began < 2
