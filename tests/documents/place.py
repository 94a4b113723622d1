"""A clean folder for a document: a hub with tiny models under the names that it uses, and texts.

Knows no document.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow
import pyarrow.parquet

from launchyard.model.text.companions import companions_beside
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.zoo import make_config, preset
from tests.launcher.hub.hub_server import small_hub
from tests.model.evaluate.conftest import write_tasks
from tests.support.shell import Shell
from tests.support.texts import QUICKSTART
from tests.support.tiny_models import byte_tokenizer, random_model, weights_of

RECIPES = QUICKSTART.parent
# Name at the hub, and the preset of which it is a tiny sister.
MODELS = {
    "google/gemma-2b": "gemma-2b",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "microsoft/phi-2": "phi-2",
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": "tinyllama-1.1b",
}
ROWS = 320
DIM = 160  # of four heads, of which phi-2 rotates 0.4: a whole number of pairs, as files have it
# What keeps a run small; a document's own keys are typed before it.
TINY = "train.max_steps=2 train.device=cpu data.seq_len=64 train.global_batch_size=2 train.micro_batch_size=1"
SHAPE = (
    "model.dim=64 model.n_layers=2 model.n_heads=4 model.ffn_dim=96 "
    f"model.vocab_size={ROWS} model.padded_vocab_size={ROWS}"
)


def tiny_model(folder: Path, shape: str) -> None:
    """A random model of a family, with a tokenizer, as a Hugging Face folder."""
    large = preset(shape)
    knobs: dict[str, object] = {"dim": DIM, "n_layers": 2, "n_heads": 4, "head_dim": DIM // 4, "ffn_dim": 96}
    knobs |= {"n_kv_heads": 4 if large.n_kv_heads == large.n_heads else 1}
    knobs |= {"vocab_size": ROWS, "padded_vocab_size": ROWS}
    if large.embed_scale is not None:
        knobs["embed_scale"] = math.sqrt(DIM)
    config = make_config(preset=shape, fields=knobs, hf=None)
    tokenizer = byte_tokenizer(folder / "tokenizer" / "tokenizer.json", vocab_size=ROWS)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    Path(tokenizer).with_name("tokenizer_config.json").write_text(json.dumps(settings))
    save_hf(
        weights_of(random_model(config, std=0.05)), config, str(folder / "hf"), companions=companions_beside(tokenizer)
    )


def parquet(rows: list[dict[str, str]]) -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def repositories(folder: Path) -> dict[str, dict[str, bytes]]:
    """What the hub has: models, and sets of data."""
    novel = (QUICKSTART / "emma.txt").read_text()
    asked = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}, as you said."} for n in range(60)]
    texts = [{"text": novel[start : start + 2000]} for start in range(0, 40_000, 2000)]
    found = {
        "datasets/tatsu-lab/alpaca": {"data/train-00000.parquet": parquet(asked)},
        "datasets/Skylion007/openwebtext": {"plain_text/train-00000.parquet": parquet(texts)},
        "datasets/HuggingFaceFW/fineweb": {"sample/10BT/000.parquet": parquet(texts)},
    }
    for name, shape in MODELS.items():
        tiny_model(folder / name, shape)
        files = (path for path in (folder / name / "hf").iterdir() if path.is_file())
        found[name] = {path.name: path.read_bytes() for path in files}
    return found


@contextmanager
def clean_folder(root: Path) -> Iterator[Shell]:
    """A shell in an empty folder, with a hub of its own and the bundled recipes beside it."""
    shell = Shell(root / "home")
    with small_hub(repositories(root / "made")) as hub:
        for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "WANDB_API_KEY"):
            shell.env.pop(name, None)
        shell.env |= {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(root / "hf"),
            "TINY": TINY,
            "SHAPE": SHAPE,
            "RECIPES": str(RECIPES),
        }
        (shell.here / "tasks").mkdir()
        write_tasks(shell.here / "tasks")
        (shell.here / "data").mkdir()
        (shell.here / "data" / "my_corpus.txt").write_text((QUICKSTART / "emma.txt").read_text()[:60_000])
        yield shell
