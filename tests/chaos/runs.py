"""The run that all of this happens to, its data, and the same run undisturbed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from launchyard.model.adapter import Adapter
from launchyard.run.rundir import RunDir
from launchyard.training.data.chunks import Array
from launchyard.training.data.prepare.writer import SplitWriter
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec, Storage, TokenSource, Workload
from tests.chaos.plan import BATCH, EVERY, KEEP, STEPS, Method, Size
from tests.support.small_runs import MODEL, VOCAB, final_weights, pair, row, run_workers, write_groups

SEQ_LEN = 16
N_TOKENS, CHUNK_TOKENS, HELD_OUT = 6001, 160, 501  # the run reads its 38 chunks about one and a half times
CACHE_BYTES = 20 * 420  # some twenty of them
RETRY_SECONDS = 60.0
CLUSTER = "one-thread"
SIZES: dict[Size, dict[str, Any]] = {"small": MODEL, "large": {**MODEL, "dim": 160, "n_layers": 3, "ffn_dim": 640}}
RECIPE: dict[str, Any] = {
    "name": "chaos",
    "resources": {"max_failures": 50},
    "data": {"source": "x", "seq_len": SEQ_LEN, "seed": 3},
    "train": {"max_steps": STEPS, "global_batch_size": BATCH, "seed": 1, "device": "cpu"},
    "optimizer": {"lr": 2e-3},
    "schedule": {"warmup_steps": 4},
    "checkpoint": {"every_steps": EVERY, "keep": KEEP, "every_minutes": None},
    "validation": {"every_steps": 20},
    "metrics": {"prometheus": False},
}
ROWS, PAIRS, PAIR_LEN, EPOCHS = 180, 130, 24, 6  # 48 steps are more than four epochs of either
ADAPTERS: dict[Method, Adapter] = {
    "lora": Adapter(kind="lora", r=4, dropout=0.1),
    "qlora": Adapter(kind="qlora", r=4),
    "dpo": Adapter(kind="lora", r=4, dropout=0.1),
}
KEYS: dict[Method, dict[str, Any]] = {
    "lora": {"data.kind": "instruct"},
    "qlora": {"data.kind": "instruct"},
    "dpo": {"data.kind": "preference", "data.seq_len": PAIR_LEN, "preference.loss": "dpo"},
}


@cache
def tokens() -> tuple[Array, Array]:
    """With some structure to learn; and what is held out."""
    rng = np.random.default_rng(7)
    walk = (np.cumsum(rng.integers(0, 3, N_TOKENS + HELD_OUT)) % VOCAB).astype(np.uint16)
    return walk[:N_TOKENS], walk[N_TOKENS:]


def write_data(url: str, method: Method = "full") -> DataSpec:
    """As `launch prepare` writes it, with digests, at a path or URL."""
    if method == "dpo":
        return write_groups(url, map(pair, range(PAIRS)), seq_len=PAIR_LEN, epochs=EPOCHS, together=2)
    if method != "full":
        return write_groups(url, map(row, range(ROWS)), seq_len=SEQ_LEN, epochs=EPOCHS)
    parts = zip(("train", "validation"), tokens(), strict=True)
    sources = {name: write_split(f"{url}/{name}", part) for name, part in parts}
    return DataSpec(train=(sources["train"],), validation=(sources["validation"],), tokenizer=None, digest="chaos")


def write_split(folder: str, part: Array) -> TokenSource:
    writer = SplitWriter(folder, chunk_tokens=CHUNK_TOKENS, dtype="uint16", eos_id=VOCAB - 1)
    writer.add(part)
    writer.finish()
    return TokenSource(folder=folder, n_tokens=len(part))


def write_run(url: str, data: DataSpec, size: Size, method: Method = "full") -> RunDir:
    """A run directory as the launcher leaves it before the first attempt."""
    recipe = Recipe.model_validate(apply_overrides({**RECIPE, "model": SIZES[size]}, KEYS.get(method, {})))
    fields = recipe.model.model_dump(exclude_none=True)
    storage = Storage(retry_seconds=RETRY_SECONDS, cache_bytes=CACHE_BYTES)
    adapter = ADAPTERS.get(method, Adapter())
    workload = Workload(run_id="chaos-run", name="chaos", model=fields, data=data, storage=storage, adapter=adapter)
    run = RunDir(url)
    run.write_text("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    run.write_json("plan.json", {**workload.model_dump(mode="json"), "cluster": CLUSTER, "scheduler": "local"})
    return run


def write_cluster(folder: Path) -> None:
    """This machine with one thread a worker, as the undisturbed run had: sums on more are rounded differently."""
    folder.mkdir(parents=True)
    about = {"name": CLUSTER, "scheduler": "local", "environment": {"OMP_NUM_THREADS": "1"}}
    (folder / f"{CLUSTER}.yaml").write_text(yaml.safe_dump(about))


@dataclass(frozen=True)
class Undisturbed:
    """What a run must come to."""

    rows: dict[int, dict[str, Any]]
    validation: dict[int, float]
    weights: dict[str, torch.Tensor]


class References:
    """Undisturbed runs, each made once, with everything on this disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[Size, Method, int], Undisturbed] = {}

    def get(self, size: Size, method: Method, nproc: int) -> Undisturbed:
        if (size, method, nproc) not in self._made:
            place = self._folder / f"{size}-{method}-{nproc}"
            run = write_run(str(place / "run"), write_data(str(place / "data"), method), size, method)
            run_workers(run, nproc)
            self._made[size, method, nproc] = Undisturbed(
                rows={row["step"]: row for row in run.rows("steps")},
                validation={row["step"]: row["loss"] for row in run.rows("validation")},
                weights=final_weights(run),
            )
        return self._made[size, method, nproc]
