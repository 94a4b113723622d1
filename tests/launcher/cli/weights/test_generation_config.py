"""What generation_config.json says of drawing counts in generate, chat, serve and Python, unless somebody says more."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from launchyard import load
from launchyard.launcher.cli.main import main
from launchyard.model.serve.defaults import sampling_rules
from tests.model.serve.served import chat_model, served

RULES = {"temperature": 0.4, "top_k": 7, "top_p": 0.9, "repetition_penalty": 1.4}
TYPED = [word for key, value in RULES.items() for word in (f"--{key.replace('_', '-')}", str(value))]
SAID = "drawn with temperature 0.4, top_k 7, top_p 0.9, repetition_penalty 1.4, of its generation_config.json"


def model_of(folder: Path, **config: object) -> str:
    made = chat_model(folder)
    path = made / "generation_config.json"
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **config}))
    return str(made)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_of(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory) -> str:
    return model_of(tmp_path_factory.mktemp("models") / "ruled", **RULES)


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str]) -> Any:
    def launched(*words: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == 0, err
        return out, err

    return launched


COMMANDS = {
    "generate": ("--prompt", "the cat", "--max-new-tokens", "30", "--seed", "3"),
    "chat": ("--message", "the cat", "--max-new-tokens", "30", "--seed", "3"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_text_is_that_of_its_rules_typed(launch: Any, plain: str, ruled: str, command: str) -> None:
    words = COMMANDS[command]
    own, said = launch(command, ruled, *words)
    assert own == launch(command, plain, *words, *TYPED)[0]
    assert own != launch(command, plain, *words)[0]
    assert SAID in said
    without, nothing = launch(command, ruled, *words, "--generation-config", "none")
    assert without == launch(command, plain, *words)[0]
    assert "generation_config" not in nothing


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_typed_counts_more(launch: Any, plain: str, ruled: str, command: str) -> None:
    more = ("--temperature", "1.5", "--top-k", "0")
    own, said = launch(command, ruled, *COMMANDS[command], *more)
    assert own == launch(command, plain, *COMMANDS[command], *TYPED, *more)[0]
    assert "drawn with top_p 0.9, repetition_penalty 1.4, of its" in said


def test_what_cannot_count_is_not_told(launch: Any, ruled: str) -> None:
    _, said = launch("generate", ruled, *COMMANDS["generate"], "--temperature", "0")
    assert "drawn with repetition_penalty 1.4, of its" in said


def test_a_chat_shows_them(launch: Any, ruled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/set top_k=3\n/set\n/set top_k=none\n"))
    _, said = launch("chat", ruled)
    shown = [line for line in said.splitlines() if line.startswith("temperature=")]
    assert ["temperature=default (0.4)" in line for line in shown] == [True] * 3
    assert ["top_k=default (7)" in line for line in shown] == [False, False, True]


def test_rows_of_a_file_and_facts_in_json(launch: Any, plain: str, ruled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = '{"prompt": "the cat"}\n{"prompt": "the dog", "top_k": 3}\n'
    told = []
    for words in ((ruled,), (plain, *TYPED)):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        told.append(launch("generate", *words, "--prompts", "-", "--seed", "3")[0])
    assert told[0] == told[1]
    facts = json.loads(launch("generate", ruled, *COMMANDS["generate"], "--top-p", "1", "--json")[0])
    assert facts["generation_config"] == {key: value for key, value in RULES.items() if key != "top_p"}


def test_in_python(plain: str, ruled: str) -> None:
    own = load(ruled)
    assert own.generate("the cat", seed=3) == load(plain).generate("the cat", seed=3, **RULES)
    assert own.request([1], top_k=None).sampling.top_k is None


def test_a_server_draws_by_them(plain: str, ruled: str) -> None:
    body = {"prompt": "the cat", "max_tokens": 30, "seed": 3}
    with served(Path(ruled)) as own, served(Path(plain)) as other:
        text = own.post("/v1/completions", body).json()["choices"][0]["text"]
        assert text == other.post("/v1/completions", {**body, **RULES}).json()["choices"][0]["text"]
        assert text != other.post("/v1/completions", body).json()["choices"][0]["text"]


@pytest.mark.parametrize("option", ["auto", "none"])
def test_a_server_says_so(ruled: str, option: str) -> None:
    words = [sys.executable, "-m", "launchyard", "serve", ruled, "--port", "0", "--generation-config", option]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if "Ctrl-C" in line:
                break
        url = next(line.split()[0] for line in said if "/v1 " in line)
        assert httpx.get(f"{url}/models").status_code == 200
        process.send_signal(signal.SIGTERM)
    assert (f"where a request leaves it open: {SAID}" in "".join(said)) is (option == "auto")


@pytest.mark.parametrize(
    ("config", "rules"),
    [
        ({}, {}),
        ({"do_sample": True, **RULES}, RULES),
        ({"do_sample": False, **RULES}, {"repetition_penalty": 1.4}),
        ({"temperature": None, "top_k": 0, "min_p": 0, "top_p": 1.0}, {"top_p": 1.0}),
        ({"max_new_tokens": 5, "num_beams": 4}, {}),
    ],
)
def test_what_a_file_says(config: dict[str, object], rules: dict[str, object]) -> None:
    assert sampling_rules({"generation_config.json": json.dumps(config).encode()}) == rules


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"temperature": "warm"}, "generation_config.json: temperature is 'warm', no number"),
        ({"top_k": 2.5}, "generation_config.json: top_k is 2.5, no whole number"),
        ({"top_p": True}, "generation_config.json: top_p is True, no number"),
        ({"top_p": 7}, r"generation_config.json: top_p is 7; it must lie in \(0, 1\]"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(config: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sampling_rules({"generation_config.json": json.dumps(config).encode()})


def test_such_a_file_stops_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_of(tmp_path / "m", top_p=7)
    with pytest.raises(SystemExit) as ended:
        main(["generate", model, "--prompt", "a"])
    assert ended.value.code == 2
    assert "top_p is 7" in capsys.readouterr().err
