"""Training pythia-14m on one CPU thread: our worker, beside a hand-written loop and transformers, in alternating runs.

    python benchmarks/train.py [--rounds 3] [--steps 12] [--peers hand,transformers,litgpt]

4 sequences of 512 tokens, fp32, AdamW, clipping. `hand` is one file of plain PyTorch with a chunked linear + cross
entropy, hand_written.py: what a careful person gets without any framework. Ours is the whole
worker, as `launch` starts it: data from chunks, hashes, metrics rows, Prometheus endpoint; and with the environment
that `launch` gives its workers. Peers run as they are, and with that environment (+env). Prints tokens per second of
the median step, tokens per CPU-second and peak memory; the medians over the rounds, and their ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import over, tell

BATCH, SEQ_LEN, VOCAB, DIM, LAYERS, HEADS = 4, 512, 50304, 128, 6, 4
WARM = 3  # steps not counted


# -- peers -----------------------------------------------------------------------------------------------------------
def hand(steps: int) -> None:
    from hand_written import Model  # beside this file

    loop(Model(), steps)


def peer_transformers(steps: int) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=4 * DIM, max_position_embeddings=2048, use_cache=False,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config)
    forward = model.forward

    def with_loss(ids, y):
        import torch.nn.functional as F

        return F.cross_entropy(forward(ids).logits.view(-1, VOCAB), y.reshape(-1))

    model.forward = with_loss
    loop(model, steps)


def peer_litgpt(steps: int) -> None:
    """Its model, and the loss of its own training in chunks."""
    import warnings

    warnings.filterwarnings("ignore")
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    model = GPT(Config.from_name("pythia-14m"))
    forward = model.forward
    model.forward = lambda ids, y: chunked_cross_entropy(forward(ids), y)
    loop(model, steps)


def loop(model, steps: int) -> None:
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = torch.randint(0, VOCAB, (steps, BATCH, SEQ_LEN + 1))
    walls, cpus = [], []
    for step in range(steps):
        wall, cpu = time.perf_counter(), time.process_time()
        loss = model(data[step, :, :-1], data[step, :, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    report(walls, cpus)


def report(walls: list[float], cpus: list[float]) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"wall": statistics.median(walls[WARM:]), "cpu": statistics.median(cpus[WARM:]), "peak": peak}))


# -- ours ------------------------------------------------------------------------------------------------------------
def ours(steps: int) -> None:
    """The worker's own composition and loop, with a clock around each step."""
    import launchyard.training.loop.numbers as loop_module
    from launchyard.training.worker import main

    walls: list[float] = []
    cpus: list[float] = []
    step = loop_module.train_step
    last = [0.0, 0.0]

    def watched(*args, **kwargs):
        now = (time.perf_counter(), time.process_time())
        if last[0]:
            walls.append(now[0] - last[0])
            cpus.append(now[1] - last[1])
        last[:] = now
        return step(*args, **kwargs)

    loop_module.train_step = watched  # from one step's beginning to the next: all that the loop does is inside
    out = os.dup(1)
    code = main(["worker", os.environ["BENCH_RUN"]])
    os.dup2(out, 1)
    assert code == 0, "the worker failed; see its log"
    report(walls, cpus)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--peers", default="hand,transformers")
    parser.add_argument("--only", default=None, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        import torch

        torch.set_num_threads(1)
        {"hand": hand, "transformers": peer_transformers, "litgpt": peer_litgpt, "ours": ours}[given.only](given.steps)
        return
    peers = [name for name in given.peers.split(",") if name]
    names = ["ours", *peers, *(f"{name}+env" for name in peers)]
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in names:
            results[name].append(run_one(name, given.steps))
    tokens = BATCH * SEQ_LEN
    print(f"pythia-14m, {BATCH} x {SEQ_LEN} tokens, fp32, 1 thread, {given.rounds} rounds of {given.steps} steps")
    for name in names:
        cpu = [tokens / r["cpu"] for r in results[name]]
        wall = [tokens / r["wall"] for r in results[name]]
        peak = statistics.median(r["peak"] for r in results[name])
        print(
            f"{name:16} {statistics.median(cpu):7.0f} tokens/CPU-s ({min(cpu):.0f} to {max(cpu):.0f})  "
            f"{statistics.median(wall):7.0f} tokens/s  peak {peak / 1e9:.2f} GB"
        )
    for name in names[1:]:
        pairs = [other["cpu"] / mine["cpu"] for mine, other in zip(results["ours"], results[name], strict=True)]
        print(f"ours / {name:12} {statistics.median(pairs):.3f}  ({min(pairs):.3f} to {max(pairs):.3f})")
    tell(
        {f"tokens per CPU second, {name}": [tokens / r["cpu"] for r in found] for name, found in results.items()}
        | {f"ours / {name}": over(cpu_of(results[name]), cpu_of(results["ours"])) for name in names[1:]}
        | {f"peak bytes, {name}": [r["peak"] for r in found] for name, found in results.items()}
    )


def cpu_of(rounds: list[dict[str, float]]) -> list[float]:
    return [found["cpu"] for found in rounds]


def run_one(name: str, steps: int) -> dict[str, float]:
    from launchyard.launcher.plan.planner import CPU_ENVIRONMENT, WORKER_ENVIRONMENT

    name, _, ours = name.partition("+")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if name == "ours" or ours:
        env |= {**WORKER_ENVIRONMENT, **CPU_ENVIRONMENT}
    with tempfile.TemporaryDirectory() as folder:
        if name == "ours":
            env["BENCH_RUN"] = str(make_run(Path(folder), steps))
        argv = [sys.executable, __file__, "--only", name, "--steps", str(steps)]
        done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def make_run(folder: Path, steps: int) -> Path:
    """A run directory as `launch` writes it, over random tokens."""
    import numpy as np
    import yaml

    from launchyard.model.zoo import preset
    from launchyard.training.recipe import Recipe
    from launchyard.training.sections.checkpoint import CheckpointConfig
    from launchyard.training.sections.data import DataConfig
    from launchyard.training.sections.train import TrainConfig
    from launchyard.training.spec import DataSpec, TokenSource, Workload

    sys.path.insert(0, str(Path(__file__).parent))
    from chunks import write_chunks

    tokens = np.random.default_rng(0).integers(0, 50277, BATCH * SEQ_LEN * steps + 1, dtype=np.uint16)
    write_chunks(folder / "data", tokens)
    data = DataSpec(
        train=(TokenSource(folder=str(folder / "data"), n_tokens=len(tokens)),),
        validation=(),
        tokenizer=None,
        digest="x",
    )
    recipe = Recipe(
        name="bench",
        model={"preset": "pythia-14m"},
        data=DataConfig(source="x", seq_len=SEQ_LEN),
        train=TrainConfig(max_steps=steps, global_batch_size=BATCH, device="cpu"),
        checkpoint=CheckpointConfig(every_minutes=None),
    )
    run = folder / "run"
    run.mkdir()
    workload = Workload(run_id="bench", name="bench", model=preset("pythia-14m"), data=data)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True)))
    (run / "plan.json").write_text(workload.model_dump_json())
    return run


if __name__ == "__main__":
    main()
