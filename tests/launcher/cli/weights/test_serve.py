"""`launch serve` as a process: it listens, answers, follows a run, ends by Ctrl-C, and says what is wrong at once."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from launchyard.launcher.cli.main import main
from tests.model.serve.served import chat_model
from tests.support.tiny_models import llama, random_model, weights_of, write_checkpoint

CONFIG = llama(vocab_size=320, padded_vocab_size=320, max_seq_len=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("served") / "tiny", context=512)


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, and the URL that it prints."""
    argv = [sys.executable, "-P", "-m", "launchyard", "serve", *words, "--port", "0", "--json"]
    child = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stderr is not None
        line = child.stdout.readline()
        assert line, child.stderr.read()
        yield child, str(json.loads(line)["url"])
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_and_ends_by_a_signal(folder: Path, number: signal.Signals) -> None:
    with serving(str(folder), "--name", "mine", "--context-length", "128", "--weights", "int8") as (child, url):
        assert httpx.get(f"{url}/v1/models").json()["data"][0]["max_model_len"] == 128
        body = {"model": "mine", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] <= 5
        child.send_signal(number)
        _, err = child.communicate(timeout=20)
    assert "Traceback" not in err
    assert child.returncode in (0, 130, -number)


def test_it_follows_a_run(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "tale-abcd"
    shutil.copytree(folder, run / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    write_checkpoint(run / "checkpoints/step-00000005", CONFIG, weights_of(random_model(CONFIG)), step=5)
    (run / "plan.json").write_text("{}")
    with serving(str(run), "--follow", "--follow-every", "0.2") as (_, url):
        body = {"prompt": "the tale", "max_tokens": 20, "temperature": 0}
        first = httpx.post(f"{url}/v1/completions", json=body).json()
        assert first["system_fingerprint"] == "step-00000005"
        write_checkpoint(run / "checkpoints/step-00000009", CONFIG, weights_of(random_model(CONFIG, seed=1)), step=9)
        end = time.monotonic() + 20
        while httpx.get(f"{url}/v1/models").json()["data"][0]["version"] != "step-00000009":
            assert time.monotonic() < end, "the newer checkpoint is not served"
            time.sleep(0.1)
        second = httpx.post(f"{url}/v1/completions", json=body).json()
        assert second["choices"][0]["text"] != first["choices"][0]["text"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *words])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_mistakes_are_said_before_anything_is_served(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in said(capsys, str(folder), "--port", port)
    (tmp_path / "keys").write_text("# none\n\n")
    assert "holds no key; write one a line" in said(capsys, str(folder), "--api-keys", str(tmp_path / "keys"))
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    for option in ("--api-keys", "--template"):
        assert "latin:1 is not UTF-8" in said(capsys, str(folder), option, str(tmp_path / "latin"))
    assert "No such file" in said(capsys, str(folder), "--api-keys", str(tmp_path / "nix"))
    assert "--follow needs a run" in said(capsys, str(folder), "--follow", "--port", "0")
    assert "nix" in said(capsys, "nix", "--port", "0")
    plain = chat_model(tmp_path / "plain", template=None, context=64)
    assert "prompt style" in said(capsys, str(plain), "--style", "nix", "--port", "0")
    assert "neither a file nor a known cluster" in said(capsys, str(folder), "--cluster", "nix")
    assert "runs no servers" in said(capsys, str(folder), "--cluster", "local")
