"""`launch finetune`: the recipe that it makes, shown as a file of one's own can hold it, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launchyard import finetune as finetune_here
from launchyard import load
from launchyard.errors import UserError
from launchyard.launcher.backends.local import backend
from launchyard.launcher.cli.main import main
from launchyard.launcher.data.rows_shown import rows_left_out
from launchyard.launcher.submit.finetune import METHODS
from launchyard.model.weights.hf_export import save_hf
from tests.support.tiny_models import byte_tokenizer, llama, random_model, weights_of

KINDS = {"full": "none", "dpo": "lora", "adapter": "llama-adapter", "adapter-v2": "llama-adapter-v2"}
CONFIG = llama(vocab_size=300, padded_vocab_size=300, max_seq_len=1024)
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(folder))
    byte_tokenizer(folder / "tokenizer.json")
    settings = {"eos_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return str(folder)


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    content = [{"instruction": f"say {n}", "output": f"{n}, as you said"} for n in range(40)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, content)))
    pairs = [{"prompt": f"say {n}", "chosen": f"{n}, as you said", "rejected": "no"} for n in range(40)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    silent = [{"instruction": f"say {n}", "output": ""} for n in range(120)]
    Path("silent.jsonl").write_text("\n".join(map(json.dumps, silent)))
    return "rows.jsonl"


def finetune(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["finetune", *words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


@pytest.mark.parametrize("method", METHODS)
def test_what_is_shown_is_a_recipe_of_the_same_plan(
    method: str, model: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "pairs.jsonl" if method == "dpo" else rows
    words = (model, "--data", rows, "--method", method, "train.max_epochs=1")
    code, out, err = finetune(capsys, *words, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)["plan"]
    assert plan.get("adapter", {}).get("kind", "none") == KINDS.get(method, method)
    _, _, err = finetune(capsys, *words, "--dry-run")
    shown = err[err.index("  extends:") :]
    lines = [line[2:] for line in shown.splitlines() if line.startswith("  ")]
    Path("mine.yaml").write_text("\n".join(lines))
    assert yaml.safe_load("\n".join(lines))["extends"] == f"finetune/{method}"
    with pytest.raises(SystemExit):
        main(["mine.yaml", "--dry-run", "--json"])
    again = json.loads(capsys.readouterr().out)["plan"]
    for key in ("name", "model", "data", "max_steps", "memory", "n_params_trained"):
        assert again[key] == plan[key], key


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{model}",), "--data"),
        (("{model}", "rows.jsonl", "--data", "rows.jsonl"), "rows.jsonl is no KEY=VALUE; rows are named with --data"),
        (("{model}", "--data", "none.jsonl", "--dry-run"), "none.jsonl does not exist"),
        (
            ("{model}", "--data", "rows.jsonl", "adapter.targets=[c_proj]", "--dry-run"),
            "no projection c_proj; there are",
        ),
        (("nowhere", "--data", "rows.jsonl"), "nowhere"),
        (("{model}", "--data", "silent.jsonl"), "none of the first 100 conversations has a token to train for"),
    ],
)
def test_a_mistake_is_one_clear_error(
    words: tuple[str, ...], said: str, model: str, rows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = finetune(capsys, *(word.format(model=model) for word in words))
    assert (code, said in err) == (2, True), err
    assert not Path("runs").exists()


def test_what_was_left_out_is_told(model: str, rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where rows are prepared, and wherever they are looked at."""
    with open(rows, "a") as file:
        file.write("\n" + json.dumps({"instruction": "say all", "output": "and so on " * 400}))
        file.write("\n" + json.dumps({"instruction": "say nothing", "output": ""}))
    for words in (("prepare", rows, "--kind", "instruct", "--tokenizer", model, "--out", "made"), ("inspect", "made")):
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out = capsys.readouterr().out
        assert not ended.value.code
        assert "left out: 1 conversations, too long" in out and "left out: 1 conversations, no turn to train for" in out
    said = "2 of 42 conversations are left out: too long (1); no turn to train for (1)"
    assert rows_left_out("made/train") == said


@pytest.mark.parametrize("method", ["lora", "dpo"])
def test_a_launch_tells_what_was_left_out(
    method: str, model: str, rows: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first, which prepares the rows, and one that finds them prepared."""
    data = "pairs.jsonl" if method == "dpo" else rows
    long = {"prompt": "say all", "chosen": "and so on " * 400, "rejected": "no"}
    if method == "lora":
        long = {"instruction": "say all", "output": "and so on " * 400}
    with open(data, "a") as file:
        file.write("\n" + json.dumps(long))

    def refuse(*_: object) -> None:
        raise UserError("nothing is started here")

    monkeypatch.setattr(backend, "submit", refuse)
    what = "pairs" if method == "dpo" else "conversations"
    for _ in range(2):
        code, out, err = finetune(capsys, model, "--data", data, "--method", method, "train.max_steps=1")
        assert code == 2 and "nothing is started here" in err
        assert f"! note     1 of 41 {what} are left out: too long (1); `launch inspect`" in out


@pytest.mark.slow
def test_a_model_whose_padding_is_its_end_learns_to_end(model: str, tmp_path: Path, rows: str) -> None:
    """Masks come from lengths, never from ids: the end token of each answer is learned, though it pads as well."""
    path = Path(model) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<|endoftext|>"}))
    answers = [{"instruction": f"say {n}", "output": "as you said"} for n in range(40)]
    Path(rows).write_text("\n".join(map(json.dumps, answers)))
    length = {"train.max_epochs": None, "train.max_steps": 80, "data.seq_len": 256, "schedule.warmup_steps": 0}
    run = finetune_here(model, rows, method="full", keys={**length, "optimizer.lr": 1e-2})
    written = load(run).generate("<user>say 7<|endoftext|><assistant>", max_new_tokens=60, temperature=0)
    assert written == "as you said"
