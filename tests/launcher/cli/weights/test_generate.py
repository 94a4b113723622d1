"""`launch generate` as people type it: files of prompts, samples, beams, guesses, colours and chats."""

from __future__ import annotations

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launchyard.launcher.cli.main import main
from launchyard.launcher.cli.weights.certainty import colour_of, coloured
from launchyard.launcher.cli.weights.generate import in_order
from launchyard.launcher.watch.texts import plain_texts
from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.engine import Engine
from launchyard.model.serve.requests import TokenOdds
from launchyard.model.weights.load import load
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of, write_checkpoint

CONFIG = neox(vocab_size=300, padded_vocab_size=384)
PROMPTS = ["the cat", "the end of the tale: the", "äöü", "d", "the dog and the cat and the dog and the"]
CHATML = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_run(folder: Path, **options: Any) -> str:
    byte_tokenizer(folder / "tokenizer/tokenizer.json")
    model = random_model(options.pop("config", CONFIG), **options)
    write_checkpoint(folder / "checkpoints/step-00000005", model.config, weights_of(model), step=5)
    (folder / "plan.json").write_text("{}")
    return str(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_run(tmp_path_factory.mktemp("runs") / "tale")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model of the same tokenizer."""
    return make_run(tmp_path_factory.mktemp("runs") / "small", config=CONFIG.model_copy(update={"n_layers": 1}))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "chatty"
    make_run(folder)
    (folder / "tokenizer/chat_template.jinja").write_text(CHATML)
    return str(folder)


@pytest.fixture(scope="module")
def model(run: str) -> LoadedModel:
    return load(run)


@pytest.fixture
def launch(capsys: pytest.CaptureFixture[str]) -> Any:
    def launched(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["generate", *words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(ended.value.code or 0), out, err

    return launched


def facts(launch: Any, *words: str) -> dict[str, Any]:
    code, out, err = launch(*words, "--json")
    assert code == 0, err
    return dict(json.loads(out))


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def write_rows(path: Path, *some: object) -> str:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in some))
    return str(path)


# -- a file of prompts -----------------------------------------------------------------------------------------------
def test_a_file_is_answered_as_its_prompts_one_by_one(run: str, launch: Any, tmp_path: Path) -> None:
    own = [{}, {"max_new_tokens": 3, "id": "b"}, {"seed": 99, "temperature": 1.2, "top_k": 0},
           {"temperature": 0, "repeat_penalty": 0.3, "penalty_window": 5}, {"stop": ["the", "e"], "id": 7}]  # fmt: skip
    path = write_rows(tmp_path / "p.jsonl", *({"prompt": p, **more} for p, more in zip(PROMPTS, own, strict=True)))
    words = (run, "--max-new-tokens", "25", "--min-p", "0.01")
    code, out, err = launch(*words, "--prompts", path, "--slots", "2", "--seed", "3")
    assert code == 0, err
    told = rows(out)
    assert [row["prompt"] for row in told] == PROMPTS
    assert [row["seed"] for row in told] == [3, 4, 99, 6, 7]
    assert [row.get("id") for row in told] == [None, "b", None, None, 7]
    assert told[3]["repeat_penalty"] == 0.3
    assert told[0]["n_new"] > told[1]["n_new"] > 0, "the second ends first"
    for row, more in zip(told, own, strict=True):
        typed = [word for key, value in more.items() if key not in ("id", "seed", "stop")
                 for word in (f"--{key.replace('_', '-')}", str(value))]  # fmt: skip
        stops = [word for stop in more.get("stop", ()) for word in ("--stop", stop)]
        alone = facts(launch, *words, "--prompt", row["prompt"], "--seed", str(row["seed"]), *typed, *stops)
        for key in ("text", "ended", "n_prompt", "n_new"):
            assert row[key] == alone[key]


def test_a_file_comes_from_standard_input_too(run: str, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "the"}\n\n{"prompt": "d"}'))
    code, out, _ = launch(run, "--prompts", "-", "--max-new-tokens", "4", "--temperature", "0")
    assert (code, [row["prompt"] for row in rows(out)]) == (0, ["the", "d"])
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"prompt": "the"}\n{"Prompt": "d"}'))
    assert "standard input:2: 'Prompt' is no field of a prompt" in launch(run, "--prompts", "-")[2]


def test_all_that_is_wrong_with_a_file_is_said_at_once_and_first(run: str, launch: Any, tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "p.jsonl", {"prompt": "the"}, {"prompt": "x", "max_tokens": 3}, "", {"prompt": 3}, "nonsense", "[1]",
        {"max_new_tokens": 0}, {"prompt": "a", "top_p": 1.5}, {"prompt": "a", "seed": 1.5},
    )  # fmt: skip
    code, out, err = launch("/no/such/model", "--prompts", path)
    assert (code, out) == (2, "")
    for said in (
        ":2: 'max_tokens' is no field of a prompt; there are prompt, id, max_new_tokens,",
        ":4: prompt is 3: input should be a valid string",
        ":5: no JSON: Expecting value at character 1",
        ":6: a line is an object",
        ":7: prompt is missing",
        ":7: max_new_tokens is 0: input should be greater than or equal to 1",
        ":8: top_p is 1.5; it must lie in (0, 1]",
        ":9: seed is 1.5",
    ):
        assert f"error: {path}{said}" in err
    assert f"{path}:1:" not in err


def test_a_file_of_prompts_is_text(run: str, launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "the"}\r\n')  # as an editor of Windows writes it
    code, out, _ = launch(run, "--prompts", str(path), "--max-new-tokens", "4", "--temperature", "0")
    assert (code, [row["prompt"] for row in rows(out)]) == (0, ["the"])
    path.write_bytes(b'{"prompt": "the"}\n{"prompt": "caf\xe9"}\n')
    assert launch(run, "--prompts", str(path))[::2] == (2, f"error: {path}:2 is not UTF-8\n")
    path.write_bytes(b'{"prompt": "the"}\n{"prompt": "\\ud800"}\n')
    assert f"error: {path}:2: the text is not Unicode at character 1" in launch(run, "--prompts", str(path))[2]
    code, _, err = launch(run, "--prompts", str(tmp_path))
    assert (code, err) == (2, f"error: this is a folder, where a file is needed: {tmp_path}\n")
    for option in ("--prompts", "--prompt"):
        latin = io.BytesIO(b'{"prompt": "caf\xe9"}')
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(latin, "utf-8", "surrogateescape"))
        assert launch(run, option, "-")[::2] == (2, "error: standard input is not UTF-8\n")


def test_a_seed_that_is_too_large_is_named(run: str, launch: Any) -> None:
    code, out, err = launch(run, "--prompt", "the", "--seed", "9" * 25)
    assert (code, out) == (2, "")
    assert "it must lie within 2^63" in err


def test_prompts_that_the_model_cannot_take_are_all_named(run: str, launch: Any, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "a"}, {"prompt": "x " * 99}, {"prompt": "y " * 99})
    code, out, err = launch(run, "--prompts", path)
    assert (code, out) == (2, "")
    assert f"error: {path}:2: the prompt has 198 tokens; this model has max_seq_len 64" in err
    assert f"error: {path}:3: the prompt has 198 tokens" in err
    assert "holds no prompt" in launch(run, "--prompts", write_rows(tmp_path / "none.jsonl"))[2]
    assert "no such file or folder" in launch(run, "--prompts", str(tmp_path / "nowhere"))[2]


def test_a_text_is_given_as_soon_as_all_before_it_are_done() -> None:
    texts = [SimpleNamespace(ended=None) for _ in range(4)]
    given: list[tuple[int, str, bool]] = []

    def write(number: int, piece: str, *, ends: bool = False) -> tuple[int, str, Any]:
        texts[number].ended = "stop" if ends else None
        return number, piece, texts[number]

    def written() -> Iterator[tuple[int, str, Any]]:
        yield write(1, "b")
        yield write(1, "c")
        assert given == []
        yield write(0, "a")
        assert given == [(0, "a", False)]
        yield write(2, "", ends=True)
        yield write(1, "d", ends=True)
        yield write(0, "", ends=True)
        assert given[1:] == [(0, "", True), (1, "bcd", True), (2, "", True)]
        yield write(3, "e")
        assert given[-1] == (3, "e", False)
        yield write(3, "", ends=True)

    for number, piece, text in in_order(written()):
        given.append((number, piece, text.ended is not None))
    assert given[-1] == (3, "", True)


def test_progress_says_rate_and_time_left() -> None:
    now = [0.0]
    out = io.StringIO()
    report = plain_texts(40, out, lambda: now[0])
    for second, done in ((1.0, 1), (6.0, 10), (7.0, 11), (12.0, 20)):
        now[0] = second
        report(done, done * 30)
    assert out.getvalue().splitlines() == [
        "write: 10 of 40 (25%)  50 tokens/s  ETA 18s",
        "write: 20 of 40 (50%)  50 tokens/s  ETA 12s",
    ]


# -- one prompt ------------------------------------------------------------------------------------------------------
def test_a_prompt_comes_from_standard_input(run: str, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" the cat\n\n"))
    words = (run, "--temperature", "0", "--max-new-tokens", "5")
    assert launch(*words, "--prompt", "-")[1] == launch(*words, "--prompt", " the cat\n")[1]


def test_samples_are_the_texts_of_following_seeds(run: str, launch: Any) -> None:
    words = (run, "--prompt", "the ", "--max-new-tokens", "9")
    told = facts(launch, *words, "--seed", "5", "--num-samples", "3", "--slots", "2")
    alone = [facts(launch, *words, "--seed", str(seed)) for seed in (5, 6, 7)]
    keys = ("text", "ended", "n_new", "seed")
    assert told["samples"] == [{key: one[key] for key in keys} for one in alone]
    assert len({one["text"] for one in alone}) == 3
    assert told["n_new"] == sum(one["n_new"] for one in alone)
    code, out, err = launch(*words, "--seed", "5", "--num-samples", "3")
    assert (code, out) == (0, "".join(f"the {one['text']}\n" for one in alone))
    assert "sample 2 of 3, seed 6" in err


@pytest.mark.parametrize(
    "option",
    ["top_p=0.5", "min_p=0.6", "repetition_penalty=3.0", "repeat_penalty=0.7", "presence_penalty=2.0",
     "frequency_penalty=2.0", "penalty_window=3"],
)  # fmt: skip
def test_an_option_does_what_it_does_in_python(run: str, model: LoadedModel, launch: Any, option: str) -> None:
    name, value = option.split("=")
    base = {"repetition_penalty": 3.0} if name == "penalty_window" else {}
    both: dict[str, Any] = {**base, name: float(value) if "." in value else int(value)}
    typed = [word for key, each in both.items() for word in (f"--{key.replace('_', '-')}", str(each))]
    told = facts(launch, run, "--prompt", "the ", "--seed", "3", "--max-new-tokens", "30", *typed)["text"]
    assert told == model.generate("the ", seed=3, max_new_tokens=30, **both)
    assert told != model.generate("the ", seed=3, max_new_tokens=30, **base)


def test_a_context_ends_or_slides(run: str, launch: Any) -> None:
    words = (run, "--prompt", "the ", "--temperature", "0", "--context-length", "20", "--max-new-tokens", "50")
    cut = facts(launch, *words)
    assert (cut["ended"], cut["n_prompt"] + cut["n_new"]) == ("context", 20)
    slid = facts(launch, *words, "--slide")
    assert (slid["ended"], slid["n_new"]) == ("length", 50)
    assert slid["text"].startswith(cut["text"])


def test_guesses_change_no_text(run: str, small: str, launch: Any, tmp_path: Path) -> None:
    words = (run, "--prompt", "the ", "--seed", "3", "--max-new-tokens", "40", "--guesses", "3")
    plain = facts(launch, *words[:-2])
    assert "n_guessed" not in plain
    itself = facts(launch, *words, "--draft", run)
    assert itself["n_guessed"] == itself["n_guessed_right"] > 20
    assert facts(launch, *words[:-1], "1", "--draft", run)["n_guessed"] < itself["n_guessed"]
    for how in (("--draft", small), ("--lookup",)):
        assert facts(launch, *words, *how)["text"] == plain["text"] == itself["text"]
    assert "guesses right" in launch(*words, "--draft", run)[2]
    path = write_rows(tmp_path / "p.jsonl", *({"prompt": prompt} for prompt in PROMPTS))
    many = (run, "--prompts", path, "--seed", "1", "--max-new-tokens", "20", "--slots", "3")
    assert launch(*many, "--draft", small)[1] == launch(*many, "--lookup")[1] == launch(*many)[1]


def test_a_draft_with_another_tokenizer_is_refused(run: str, launch: Any, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", config=neox(vocab_size=280, padded_vocab_size=280))
    code, _, err = launch(run, "--prompt", "the", "--draft", other)
    assert code == 2
    assert "vocabulary of 280 tokens" in err
    raw = json.loads((tmp_path / "other/tokenizer/tokenizer.json").read_text())
    twin = make_run(tmp_path / "twin")
    raw["model"]["vocab"] = dict(zip(raw["model"]["vocab"], reversed(raw["model"]["vocab"].values()), strict=True))
    (tmp_path / "twin/tokenizer/tokenizer.json").write_text(json.dumps(raw))
    code, _, err = launch(run, "--prompt", "the", "--draft", twin)
    assert code == 2
    assert "has other tokens than" in err


# -- beams -----------------------------------------------------------------------------------------------------------
def test_beams_are_those_of_python(run: str, model: LoadedModel, launch: Any) -> None:
    words = (run, "--prompt", "the ", "--max-new-tokens", "8")
    found = model.beam_search("the ", width=5, n=3, max_new_tokens=8, length_penalty=0.5)
    told = facts(launch, *words, "--beam-width", "5", "--candidates", "3", "--length-penalty", "0.5")
    assert [one["text"] for one in told["candidates"]] == [text for text, _ in found]
    assert [one["score"] for one in told["candidates"]] == pytest.approx([score for _, score in found], abs=1e-5)
    assert sorted((score for _, score in found), reverse=True) == [score for _, score in found]
    code, out, err = launch(*words, "--beam-width", "5", "--candidates", "3", "--length-penalty", "0.5")
    assert (code, out) == (0, "".join(f"the {text}\n" for text, _ in found))
    assert f"candidate 2 of 3, score {found[1][1]:.4f}" in err
    short = facts(launch, *words, "--beam-width", "5", "--context-length", str(told["n_prompt"] + 2))
    (best,) = model.beam_search("the ", width=5, max_new_tokens=2)
    assert [one["text"] for one in short["candidates"]] == [best[0]]
    code, _, err = launch(*words, "--beam-width", "5", "--context-length", str(told["n_prompt"]))
    assert code == 2 and f"the context has {told['n_prompt']}" in err
    greedy = facts(launch, *words, "--temperature", "0")["text"]
    assert facts(launch, *words, "--beam-width", "1")["candidates"][0]["text"] == greedy
    stop = ("--stop", greedy[2:5])
    cut = facts(launch, *words, *stop, "--temperature", "0")["text"]
    assert facts(launch, *words, *stop, "--beam-width", "1")["candidates"][0]["text"] == cut == greedy[:2]


def test_beams_end_before_a_string(model: LoadedModel) -> None:
    """And their score is that of the tokens up to it."""
    free = model.beam_search("the ", width=6, n=6, max_new_tokens=6)
    held = model.beam_search("the ", width=6, n=6, max_new_tokens=6, stop=[free[0][0][1:3], "never there"])
    assert all(free[0][0][1:3] not in text for text, _ in held)
    assert model.beam_search("the ", width=6, n=6, max_new_tokens=6, stop="never there") == free
    greedy = [model.beam_search("the ", width=1, max_new_tokens=n)[0] for n in range(1, 9)]
    stop = greedy[-1][0][2:4]
    n_tokens = next(n for n, (text, _) in enumerate(greedy, 1) if stop in text)
    assert n_tokens < 8, "choose another prompt"
    ((text, score),) = model.beam_search("the ", width=1, max_new_tokens=8, stop=stop)
    assert (text, score) == (greedy[-1][0].partition(stop)[0], pytest.approx(greedy[n_tokens - 1][1], abs=1e-5))


# -- chats -----------------------------------------------------------------------------------------------------------
def test_a_chat_is_asked_by_its_template_and_answers_only(run: str, chatty: str, launch: Any, tmp_path: Path) -> None:
    words = ("--temperature", "0", "--max-new-tokens", "6")
    asked = "<system>be brief\n<user>the cat\n<assistant>"
    answer = facts(launch, run, "--prompt", asked, *words)["text"]
    chat = (chatty, "--prompt", "the cat", "--system", "be brief", *words)
    assert launch(*chat)[1] == f"{answer}\n"
    assert facts(launch, *chat, "--chat")["text"] == answer
    unled = facts(launch, run, "--prompt", "<user>the cat\n<assistant>", *words)["text"]
    assert launch(chatty, "--prompt", "the cat", "--chat", *words)[1] == f"{unled}\n"
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "the cat"})
    (row,) = rows(launch(chatty, "--prompts", path, "--chat", *words)[1])
    assert (row["prompt"], row["text"]) == ("the cat", unled)
    code, out, err = launch(run, "--prompt", "x", "--chat")
    assert (code, out) == (2, "")
    assert f"{run} has no chat template, by which --chat would ask" in err


# -- colours ---------------------------------------------------------------------------------------------------------
def test_colours_are_on_a_terminal_only(run: str, launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (run, "--prompt", "the ä", "--seed", "6", "--max-new-tokens", "40")
    plain = launch(*words)[1]
    assert launch(*words, "--colorize-tokens")[1] == plain
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    colored = launch(*words, "--colorize-tokens")[1]
    assert re.sub(r"\x1b\[[\d;]*m", "", colored) == plain
    assert colored.endswith("\x1b[0m")
    assert "\x1b[38;5;196m" in colored


def test_a_piece_has_the_colour_of_its_least_certain_token() -> None:
    odds = [TokenOdds(0, math.log(share), ()) for share in (0.95, 0.5, 0.85, 0.02)]
    text = SimpleNamespace(generation=SimpleNamespace(odds=odds), n_new=0, ended=None)

    def written() -> Iterator[tuple[int, str, Any]]:
        for n_new, piece in ((1, "sure"), (2, ""), (3, " or"), (4, " not"), (4, "")):
            text.n_new = n_new
            yield 0, piece, text

    pieces = [piece for _, piece, _ in coloured(written())]
    shown = [("sure", 0.95), (" or", 0.5), (" not", 0.02)]
    styled = [f"\x1b[38;5;{colour_of(share)}m{piece}\x1b[0m" for piece, share in shown]
    assert pieces == [styled[0], "", styled[1], styled[2], ""]


def test_a_colour_goes_from_red_to_green() -> None:
    assert [colour_of(odds) for odds in (0.0, 0.05, 0.999, 1.0)] == [196, 196, 46, 46]
    assert len({colour_of(place / 10 + 0.01) for place in range(10)}) == 10


# -- what cannot be ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give --prompt TEXT, or --prompts FILE for many"),
        (("--prompt", "a", "--prompts", "f"), "--prompt cannot go with --prompts"),
        (("--prompts", "f", "--json"), "--prompts cannot go with --json"),
        (("--prompts", "f", "--num-samples", "2"), "--prompts cannot go with --num-samples"),
        (("--prompts", "f", "--beam-width", "2"), "--prompts cannot go with --beam-width"),
        (("--prompt", "a", "--draft", "m", "--lookup"), "--draft cannot go with --lookup"),
        (("--prompt", "a", "--colorize-tokens", "--json"), "--colorize-tokens cannot go with --json"),
        (("--prompt", "a", "--beam-width", "2", "--min-p", "0.1"), "--beam-width cannot go with --min-p"),
        (("--prompt", "a", "--beam-width", "2", "--seed", "1"), "--beam-width cannot go with --seed"),
        (("--prompt", "a", "--beam-width", "2", "--candidates", "3"), "--candidates 3 is more than --beam-width 2"),
        (("--prompt", "a", "--candidates", "3"), "--candidates is of use with --beam-width only"),
        (("--prompt", "a", "--guesses", "3"), "--guesses is of use with --draft or --lookup only"),
        (("--prompt", "a", "--slots", "3"), "--slots is of use with --prompts or --num-samples only"),
        (("--prompt", "a", "--min-p", "2"), "min_p is 2.0; it must lie in (0, 1]"),
        (("--prompt", "a", "--repetition-penalty", "0"), "repetition_penalty is 0.0"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_a_model_is_read(
    words: tuple[str, ...], said: str, launch: Any
) -> None:
    code, out, err = launch("/no/such/model", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_ctrl_c_ends_quietly(run: str, launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(engine: Engine) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    path = write_rows(tmp_path / "p.jsonl", {"prompt": "the"})
    for words, printed in ((("--prompt", "the"), "the"), (("--prompts", path), "")):
        code, out, err = launch(run, *words)
        assert (code, out, err.split()) == (130, printed, ["interrupted"])


def test_a_pipe_that_breaks_ends_quietly(run: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "p.jsonl", *({"prompt": "the", "max_new_tokens": 50} for _ in range(40)))
    code = "from launchyard.launcher.cli.main import main; main()"
    words = [sys.executable, "-c", code, "generate", run, "--prompts", path, "--slots", "1"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[3], text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert json.loads(first)["prompt"] == "the"
    assert process.wait() != 0
    assert said == ""
    process.stderr.close()
