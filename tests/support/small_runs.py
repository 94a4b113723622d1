"""Small runs: a run directory as the launcher writes it, and workers started as the agent starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from launchyard.run.checkpoints import committed_steps
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage.shards import read_manifest, read_tensor
from launchyard.training.data.instruct.conversation import Row
from launchyard.training.data.packs import count_packs
from launchyard.training.data.prepare.rows import write_rows
from launchyard.training.data.row_store import group_lengths
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec, RowFacts, TokenSource, Workload
from tests.support.ranks import ForkedProcess, free_port

WORKER = "launchyard.training.worker"
VOCAB = 97
MODEL = {
    "family": "gpt_neox", "dim": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 64, "vocab_size": VOCAB, "max_seq_len": 64,
    "rope_fraction": 0.25, "norm": "layernorm", "activation": "gelu", "gated_mlp": False, "parallel_residual": True,
    "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
RECIPE = {
    "name": "small",
    "model": MODEL,
    "data": {"source": "x", "seq_len": 16, "seed": 3},
    "train": {"max_steps": 24, "global_batch_size": 12, "seed": 1, "device": "cpu"},
    "optimizer": {"lr": 3e-3},
    "schedule": {"warmup_steps": 4},
    "checkpoint": {"every_steps": 5},
    "metrics": {"prometheus": False},
}


def write_chunks(folder: Path, parts: list[Any]) -> None:
    """litdata's layout, without digests."""
    folder.mkdir(parents=True)
    chunks = []
    for i, tokens in enumerate(parts):
        header = np.array([1, 12, 12 + tokens.nbytes], dtype="<u4").tobytes()
        (folder / f"chunk-0-{i}.bin").write_bytes(header + tokens.astype("<u2").tobytes())
        chunks.append(
            {"filename": f"chunk-0-{i}.bin", "chunk_bytes": tokens.nbytes, "chunk_size": 1, "dim": len(tokens)}
        )
    config = {"data_format": ["no_header_numpy:5"], "item_loader": "TokensLoader", "compression": None}
    (folder / "index.json").write_text(json.dumps({"chunks": chunks, "config": config}))


def write_data(folder: Path, n_tokens: int = 2501, n_validation_tokens: int = 333, seed: int = 0) -> DataSpec:
    """Tokens with some structure to learn, over three chunks, and a tail that fills no sample."""
    rng = np.random.default_rng(seed)
    tokens = (np.cumsum(rng.integers(0, 3, n_tokens)) % VOCAB).astype(np.uint16)
    write_chunks(folder / "train", np.split(tokens, [n_tokens * 9 // 25 + 1, n_tokens * 7 // 10 + 27]))
    write_chunks(folder / "validation", [np.resize(tokens, n_validation_tokens)])
    return DataSpec(
        train=(TokenSource(folder=str(folder / "train"), n_tokens=n_tokens),),
        validation=(TokenSource(folder=str(folder / "validation"), n_tokens=n_validation_tokens),),
        tokenizer=None,
        digest=f"d{seed}",
    )


def row(number: int, longest: int = 17) -> list[Row]:
    """3 to `longest` tokens, with labels in the second half."""
    length = 3 + number * 7 % (longest - 2)
    return [Row((np.arange(length) * 3 + number) % VOCAB, np.arange(length) >= length // 2, f"row {number}")]


def pair(number: int) -> list[Row]:
    """One question; the better answer counts up from it, the worse one down."""
    prompt = (np.arange(2 + number % 4) + number) % VOCAB
    sides = [(prompt[-1] + step * np.arange(1, 3 + number % k)) % VOCAB for step, k in ((1, 5), (-1, 7))]
    rows = [np.concatenate([prompt, side]) for side in sides]
    return [Row(ids, np.arange(len(ids)) >= len(prompt), f"pair {number}") for ids in rows]


def write_groups(
    folder: str, groups: Iterable[list[Row]], *, seq_len: int, epochs: int, together: int = 1, validation: float = 0.1
) -> DataSpec:
    """Rows that are read `together`, at a path or URL, for packs of recipes with data.seed 3."""
    splits = write_rows(groups, folder, chunk_tokens=100, validation=validation, seed=1)
    sources = {}
    for name, entry in splits.items():
        assert entry.labels and entry.longest
        where = f"{folder}/{name}"
        packs = count_packs(group_lengths(where, together), epochs=epochs, capacity=seq_len, seed=3)
        facts = RowFacts(
            rows=entry.documents, labels=entry.labels, longest=entry.longest, packs=packs, together=together
        )
        sources[name] = TokenSource(folder=where, n_tokens=entry.tokens, digest=entry.digest, instruct=facts)
    return DataSpec(train=(sources["train"],), validation=(sources["validation"],), tokenizer=None, digest="rows")


def make_run(folder: Path | str, data: DataSpec, overrides: dict[str, Any] | None = None) -> RunDir:
    recipe = Recipe.model_validate(apply_overrides(RECIPE, overrides or {}))
    fields = recipe.model.model_dump(exclude_none=True)
    run = RunDir(str(folder))
    run.write_text("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    run.write_json("plan.json", Workload(run_id="small", name="small", model=fields, data=data).model_dump(mode="json"))
    return run


def claim(run: RunDir, nproc: int, overrides: dict[str, Any], device: str = "cpu", created: float = 0.0) -> int:
    """The next attempt, as a job owner claims it."""
    attempt = len(run.attempts())
    run.claim_attempt(
        Job(
            attempt=attempt, backend="local", job_id="t", host="h", pid=os.getpid(), pid_started=0.0, created=created,
            nnodes=1, nproc_per_node=nproc, device=device, overrides=overrides,
        )
    )  # fmt: skip
    return attempt


def start_workers(
    run: RunDir, nproc: int, overrides: dict[str, Any] | None = None, device: str = "cpu", created: float = 0.0
) -> list[ForkedProcess]:
    """Worker processes of a new attempt, without torchrun. Settings of an interpreter itself do not reach them."""
    attempt = claim(run, nproc, overrides or {}, device, created)
    return [ForkedProcess(WORKER, [run.url], env=env) for env in _environments(attempt, nproc)]


def fresh_worker(run: RunDir) -> subprocess.Popen[bytes]:
    """The one worker of a new attempt, in an interpreter of its own."""
    (env,) = _environments(claim(run, 1, {}), 1)
    return subprocess.Popen([sys.executable, "-m", WORKER, run.url], env=env, start_new_session=True)


def _environments(attempt: int, nproc: int) -> list[dict[str, str]]:
    """Of each rank."""
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(nproc),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "LAUNCHYARD_ATTEMPT": str(attempt),
    }
    return [{**env, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(nproc)]


def run_workers(
    run: RunDir, nproc: int, overrides: dict[str, Any] | None = None, device: str = "cpu", created: float = 0.0
) -> None:
    """Train until the workers end; AssertionError with what they wrote if one failed."""
    processes = start_workers(run, nproc, overrides, device, created)
    try:
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
    errors = [error["traceback"] for error in run.errors(run.attempts()[-1])]
    assert codes == [0] * nproc, "\n".join(errors)


def final_weights(run: RunDir) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, moments included."""
    folder = run.path(run.checkpoint_dir(committed_steps(run)[-1]))
    manifest = read_manifest(folder)
    return {key: read_tensor(folder, manifest, key) for key in manifest.tensors}


EXACT = ("step", "loss", "grad_norm", "lr", "tokens_seen", "data_hash")


def history(run: RunDir, keys: tuple[str, ...] = EXACT) -> list[tuple[Any, ...]]:
    return [tuple(row[key] for key in keys) for row in run.rows("steps")]
