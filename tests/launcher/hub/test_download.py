"""`launch download` against a small hub: what is fetched, resumed, checked and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from launchyard.launcher.cli.main import main
from launchyard.launcher.hub import client
from launchyard.storage.hub_cache import find_downloaded
from tests.launcher.hub.hub_server import COMMIT, SmallHub, etag_of, small_hub

WEIGHTS = bytes(range(256)) * 400
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"model": {}}',
    "LICENSE": b"free",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"onnx",
    "original/model.safetensors": b"twice",
}
REPO = "org/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(client, "HUB_FIRST_SECONDS", 0.3)
    monkeypatch.setattr(client, "HUB_BUDGET_SECONDS", 0.3)
    with small_hub({REPO: dict(FILES)}) as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        yield started


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["download", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_what_is_read_lands_in_the_layout_of_the_hub(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    """huggingface_hub itself finds it there, and a second call fetches nothing."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    code, out, err = launch(capsys, REPO)
    assert code == 0, err
    folder = out.strip()
    assert sorted(os.listdir(folder)) == ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
    assert Path(folder, "model.safetensors").read_bytes() == WEIGHTS
    cache = str(Path(folder).parents[2])
    assert snapshot_download(REPO, cache_dir=cache, local_files_only=True) == folder
    assert try_to_load_from_cache(REPO, "config.json", cache_dir=cache) == f"{folder}/config.json"
    assert find_downloaded(REPO) == find_downloaded(f"{REPO}@{COMMIT[:8]}") == folder
    hub.requests.clear()
    assert launch(capsys, REPO)[0] == 0
    assert hub.fetched() == []


def test_what_huggingface_hub_fetched_is_not_fetched_again(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    from huggingface_hub import hf_hub_download

    cache = Path(os.environ["HF_HOME"], "hub")
    hf_hub_download(REPO, "model.safetensors", cache_dir=cache, endpoint=hub.url)
    hub.requests.clear()
    code, out, err = launch(capsys, REPO, "--json")
    assert code == 0, err
    states = {file["path"]: file["state"] for file in json.loads(out)["files"]}
    assert states["model.safetensors"] == "here" and "model.safetensors" not in hub.fetched()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_connection_goes_on(hub: SmallHub, capsys: pytest.CaptureFixture[str], ranges: bool) -> None:
    hub.cut_after = 5000
    hub.ranges = ranges
    code, out, err = launch(capsys, REPO, "--exclude", "*.json", "--exclude", "LICENSE")
    assert code == 0, err
    assert Path(out.strip(), "model.safetensors").read_bytes() == WEIGHTS
    assert [asked for _, path, asked in hub.requests if path.startswith("/cdn/")] == [None, "bytes=5000-"]


@pytest.mark.parametrize("target", [[], ["--out", "here"]], ids=["cache", "folder"])
def test_a_partial_file_of_an_earlier_process_goes_on(
    hub: SmallHub,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    real = client.HubClient.fetch

    def interrupted(self: client.HubClient, *args: object) -> Iterator[tuple[int, bytes]]:
        for at, piece in real(self, *args):  # type: ignore[arg-type]
            yield at, piece
            if at + len(piece) >= 60000:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client.HubClient, "fetch", interrupted)
        code, _, err = launch(capsys, REPO, "--include", "model.safetensors", *target)
    assert code == 130 and "goes on from there" in err
    assert find_downloaded(REPO) is None  # half a download has no name
    hub.requests.clear()
    code, out, err = launch(capsys, REPO, "--include", "model.safetensors", *target)
    assert code == 0, err
    (asked,) = [asked for _, path, asked in hub.requests if path.startswith("/cdn/")]
    assert asked is not None and int(asked[6:-1]) >= 60000
    assert Path(out.strip(), "model.safetensors").read_bytes() == WEIGHTS


def test_a_folder_holds_the_files_alone(hub: SmallHub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A file of another content is replaced, one that is right is left."""
    out = tmp_path / "plain"
    assert launch(capsys, REPO, "--out", str(out))[0] == 0
    assert sorted(os.listdir(out)) == ["LICENSE", "config.json", "model.safetensors", "tokenizer.json"]
    (out / "tokenizer.json").write_bytes(b"X" * len(FILES["tokenizer.json"]))
    hub.requests.clear()
    assert launch(capsys, REPO, "--out", str(out))[0] == 0
    assert hub.fetched() == ["tokenizer.json"]
    assert (out / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])  # SHA-256, and the hash of a git blob
def test_other_bytes_are_refused_and_removed(hub: SmallHub, capsys: pytest.CaptureFixture[str], path: str) -> None:
    hub.spoiled = {path}
    code, _, err = launch(capsys, REPO)
    assert code == 1
    assert path in err and etag_of(FILES[path], path) in err
    blobs = Path(os.environ["HF_HOME"], "hub/models--org--tiny/blobs")
    assert not [name for name in os.listdir(blobs) if name.startswith(etag_of(FILES[path], path))]
    assert find_downloaded(REPO) is None


def test_a_stale_partial_file_is_fetched_anew(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    blobs = Path(os.environ["HF_HOME"], "hub/models--org--tiny/blobs")
    blobs.mkdir(parents=True)
    (blobs / f"{etag_of(WEIGHTS, 'model.safetensors')}.incomplete").write_bytes(b"of another time")
    code, out, err = launch(capsys, REPO)
    assert code == 0, err
    assert Path(out.strip(), "model.safetensors").read_bytes() == WEIGHTS


def test_busy_hubs_are_asked_again_within_bounds(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(client, "HUB_FIRST_SECONDS", 5.0)
        hub.failures = [429, 503]
        assert launch(capsys, REPO)[0] == 0
    hub.failures = [503] * 100
    code, _, err = launch(capsys, REPO)
    assert code == 1 and "could not list the files of org/tiny: HTTP 503" in err and "HTTPS_PROXY" not in err


def test_a_gated_model_names_licence_and_variable(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated = {REPO}
    code, _, err = launch(capsys, REPO)
    assert code == 2 and REPO in err and "HF_TOKEN" in err and f"{hub.url}/{REPO}" in err and "401" in err
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    code, _, err = launch(capsys, REPO)
    assert code == 2 and "gated" in err and "403" in err and "hf_of_somebody" not in err
    monkeypatch.setenv("HF_TOKEN", hub.token)
    code, out, err = launch(capsys, REPO)
    assert code == 0, err
    assert hub.token not in out + err and not hub.token_leaked
    everything = b"".join(path.read_bytes() for path in Path(os.environ["HF_HOME"]).rglob("*") if path.is_file())
    assert hub.token.encode() not in everything


def test_unknown_names_and_revisions_are_answered_with_near_ones(
    hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = launch(capsys, "org/Tinny")
    assert code == 2 and "did you mean org/tiny?" in err and "HF_TOKEN" in err
    code, _, err = launch(capsys, REPO, "--revision", "v1.1")
    assert code == 2 and "no revision v1.1" in err and "did you mean v1.0?" in err
    code, _, err = launch(capsys, f"{REPO}@v1.0", "--revision", "main")
    assert code == 2 and "two different things" in err
    code, _, err = launch(capsys, "a/b/c")
    assert code == 2 and "ORG/NAME" in err


def test_a_revision_has_a_name_of_its_own(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(capsys, f"{REPO}@v1.0", "--tokenizer-only")[0] == 0
    assert find_downloaded(REPO) is None
    folder = find_downloaded(f"{REPO}@v1.0")
    assert folder is not None and sorted(os.listdir(folder)) == ["config.json", "tokenizer.json"]


def test_offline_is_said_at_once(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(capsys, REPO)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.requests.clear()
    code, _, err = launch(capsys, REPO)
    assert code == 2 and "HF_HUB_OFFLINE is set" in err and str(find_downloaded(REPO)) in err and not hub.requests
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    code, _, err = launch(capsys, REPO)
    assert code == 1 and "http://127.0.0.1:9: could not list the files of org/tiny" in err and "HTTPS_PROXY" in err


def test_a_dry_run_writes_nothing(hub: SmallHub, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = launch(capsys, REPO, "--dry-run")
    assert code == 0, err
    assert "model.safetensors  102,400  missing" in out
    assert not os.path.exists(os.environ["HF_HOME"]) and hub.fetched() == []


def test_a_disk_without_room_is_seen_before(
    hub: SmallHub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launchyard.launcher.hub.download.free_bytes", lambda _: 50_000)
    code, _, err = launch(capsys, REPO)
    assert code == 2 and "102 kB are to come, and 50 kB are free there" in err and hub.fetched() == []


def test_a_mirror_that_lists_names_only_is_asked_for_each_file(
    hub: SmallHub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.names_only = True
    code, out, err = launch(capsys, REPO)
    assert code == 0, err
    assert Path(out.strip(), "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("path", ["../../evil.safetensors", "/evil.safetensors"])
def test_a_hub_does_not_choose_places_here(hub: SmallHub, capsys: pytest.CaptureFixture[str], path: str) -> None:
    hub.models[REPO] = {path: b"x"}
    code, _, err = launch(capsys, REPO, "--include", "*/*")
    assert code == 1 and "is no file of a hub" in err and hub.fetched() == []


def test_ctrl_c_ends_a_download_that_waits_for_the_network(hub: SmallHub) -> None:
    hub.stall_after = 70_000
    partial = Path(os.environ["HF_HOME"], "hub/models--org--tiny/blobs", f"{etag_of(WEIGHTS, 'x.bin')}.incomplete")
    command = [sys.executable, "-P", "-m", "launchyard", "download", REPO]
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}

    def heed() -> None:  # the tests may run in the background of a shell, whose children ignore it
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size > 60_000) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from there" in err, err
    assert partial.stat().st_size > 60_000


def test_the_command_in_a_process_of_its_own(hub: SmallHub, tmp_path: Path) -> None:
    """Without a terminal its progress is plain lines, and its output the folder."""
    command = [sys.executable, "-P", "-m", "launchyard", "download", REPO]
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip(), "model.safetensors").read_bytes() == WEIGHTS
    assert "\r" not in done.stderr and "4 of 4 files" in done.stderr
