"""`launch generate` and `export` as people type them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launchyard.launcher.cli.main import main
from launchyard.launcher.cli.weights.export import dtype_of
from launchyard.launcher.runs.registry import register
from launchyard.model.text.companions import read_companions, write_companions
from launchyard.model.weights.hf_export import save_hf
from tests.support.tiny_models import byte_tokenizer, neox, random_model, weights_of, write_checkpoint

CONFIG = neox(vocab_size=300, padded_vocab_size=384)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "tale-abcd"
    byte_tokenizer(folder / "tokenizer/tokenizer.json")
    write_checkpoint(folder / "checkpoints/step-00000005", CONFIG, weights_of(random_model(CONFIG)), step=5)
    (folder / "plan.json").write_text("{}")
    return folder


def launch(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def written(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, object]:
    code, out, err = launch(capsys, "generate", *words, "--json", "--seed", "7", "--max-new-tokens", "12")
    assert code == 0, err
    return dict(json.loads(out))


def test_a_run_a_checkpoint_and_an_export_write_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = launch(capsys, "export", str(run), "--out", str(tmp_path / "out"), "--json")
    assert code == 0, err
    assert json.loads(out)["files"] == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    register("tale-abcd", "tale", str(run))
    places = [
        str(run),
        str(run / "checkpoints/step-00000005"),
        f"file://{run}",
        "tale-abcd",
        "tale",
        str(tmp_path / "out"),
    ]
    texts = [written(capsys, place, "--prompt", "the ") for place in places]
    assert len({str(text["text"]) for text in texts}) == 1
    assert (texts[0]["n_prompt"], texts[0]["seed"], texts[0]["device"]) == (2, 7, "cpu")


def test_weights_in_fewer_bits_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(capsys, str(run), "--prompt", "the ", "--weights", "int8")["weights"] == "int8"
    assert written(capsys, str(run), "--prompt", "the ")["weights"] == "fp32"
    words = ("generate", str(run), "--prompt", "the", "--max-new-tokens", "3")
    assert "weights fp32: stored so" in launch(capsys, *words)[2]
    assert "'int3' is not one of 'auto', 'fp32'" in launch(capsys, *words, "--weights", "int3")[2]


def test_text_goes_to_stdout_and_all_else_to_stderr(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--prompt", "the ", "--seed", "7", "--max-new-tokens", "12")
    code, out, err = launch(capsys, "generate", str(run), *options)
    assert code == 0
    assert out == f"the {written(capsys, str(run), '--prompt', 'the ')['text']}\n"
    assert "on cpu" in err
    assert "seed 7" in err


def test_stop_and_greedy(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = str(written(capsys, str(run), "--prompt", "the ", "--temperature", "0")["text"])
    cut = written(capsys, str(run), "--prompt", "the ", "--temperature", "0", "--stop", free[2:4], "--stop", "never")
    assert cut["text"] == free[: free.index(free[2:4])]
    assert cut["ended"] == "stop"


def test_another_element_type_halves_the_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for dtype in ("float32", "bf16"):
        assert launch(capsys, "export", str(run), "--out", str(tmp_path / dtype), "--dtype", dtype)[0] == 0
    sizes = [(tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("float32", "bf16")]
    assert 1.9 < sizes[0] / sizes[1] < 2.1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "none-such", "--prompt", "x"), "none-such: no such run"),
        (("generate", "{tmp}/none", "--prompt", "x"), "no such folder"),
        (("generate", "{tmp}", "--prompt", "x"), "holds no model: looked for config.json"),
        (("generate", "{run}", "--prompt", "x", "--temperature", "-1"), "temperature is -1.0"),
        (("generate", "{run}", "--prompt", "x", "--top-k", "-1"), "top_k is -1"),
        (("generate", "{run}", "--prompt", "x", "--device", "tpu9"), "use auto, cpu, cuda"),
        (("generate", "{run}", "--prompt", "x " * 99), "this model has max_seq_len 64"),
        (("export", "{run}", "--out", "{run}"), "is not empty"),
        (("export", "{run}", "--out", "{tmp}/o", "--to", "onnx"), "'onnx' is not one of 'hf', 'gguf'"),
        (("export", "{run}", "--out", "{tmp}/o", "--dtype", "Q8_0"), "float32, bfloat16, float16"),
        (("export", "{run}", "--out", "{tmp}/o", "--to", "gguf", "--dtype", "Q4_K"), "Q8_0"),
    ],
)
def test_a_mistake_is_one_clear_error(
    words: tuple[str, ...], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = launch(capsys, *(word.format(tmp=tmp_path, run=run) for word in words))
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before, "nothing may be created"


def test_a_damaged_checkpoint_is_named_and_not_used(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints/step-00000005/a.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    code, out, err = launch(capsys, "generate", str(run), "--prompt", "the")
    assert (code, out) == (1, "")
    assert "a.safetensors is changed" in err
    assert "launch checkpoints RUN --verify" in err


def test_a_model_without_tokenizer_is_exported_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "in"))
    code, _, err = launch(capsys, "export", str(tmp_path / "in"), "--out", str(tmp_path / "out"))
    assert code == 0
    assert "no tokenizer" in err
    assert launch(capsys, "generate", str(tmp_path / "out"), "--prompt", "x")[0] == 2


def test_text_is_printed_while_it_is_made(run: Path) -> None:
    """The first words must be readable in a pipe before the last are written."""
    code = "from launchyard.launcher.cli.main import main; main()"
    words = ["generate", str(run), "--prompt", "the", "--max-new-tokens", "55", "--seed", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[3],
    )
    try:
        assert process.stdout is not None
        reads = [os.read(process.stdout.fileno(), 1 << 16) for _ in range(3)]
        assert reads[0].startswith(b"the")
        assert all(reads)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_an_export_of_an_export_keeps_what_stands_beside_the_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = {
        "generation_config.json": b'{"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 2, "temperature": 0.2}',
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/rag.jinja": b"{{ documents }}",
        "LICENSE": b"free",
    }
    write_companions(beside, str(run / "tokenizer"))
    places = [str(run), str(tmp_path / "once"), str(tmp_path / "twice")]
    for source, out in itertools.pairwise(places):
        assert launch(capsys, "export", source, "--out", out)[0] == 0
    once, twice = (read_companions(place) for place in places[1:])
    assert once == twice
    assert {name: once[name] for name in beside} == beside
    config = json.loads((tmp_path / "twice/config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, [2, 0], 2)
    facts = [json.loads(launch(capsys, "inspect", place, "--json")[1]) for place in places]
    assert [sorted(found["ends"]) for found in facts] == [["0", "2"]] * 3
    assert [found["contradictions"] for found in facts] == [[]] * 3


def test_inspect_tells_a_model_from_tokens(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register("tale-abcd", "tale", str(run))
    for place in (str(run), f"file://{run}", "tale"):
        code, out, _ = launch(capsys, "inspect", place)
        assert code == 0
        assert "gpt_neox (GPTNeoXForCausalLM)" in out
        assert "ends at     0 <|endoftext|>" in out
    code, _, err = launch(capsys, "inspect", str(run), "--verify")
    assert code == 2
    assert "launch checkpoints RUN --verify" in err
    assert "holds no tokens" in launch(capsys, "inspect", str(tmp_path))[2]
    assert "no such run" in launch(capsys, "inspect", "nothing-of-this-name")[2]


@pytest.mark.parametrize(
    ("form", "typed", "own"), [("gguf", "q8_0", "Q8_0"), ("gguf", "bfloat16", "BF16"), ("hf", "F16", "float16")]
)
def test_each_form_knows_a_type_by_the_names_of_both(form: str, typed: str, own: str) -> None:
    assert dtype_of(form, typed) == own
