"""Bundled recipes: each fits the hardware that its first line names, on every bundled cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from launchyard.launcher.backends.cluster import load_cluster
from launchyard.launcher.backends.hardware import Gpu
from launchyard.launcher.plan.plan import Plan, PlannedData
from launchyard.launcher.recipe.bundled import bundled_recipes, recipe_folder
from launchyard.launcher.recipe.load import load_recipe
from launchyard.model.zoo import preset
from tests.launcher.plan.test_planner import CPU, DATA, H100, ROWS, plan_of

# The shapes of the weights that bundled recipes start from.
SHAPES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": "smollm2-135m",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
    "meta-llama/Llama-3.2-1B": "llama-3.2-1b",
    "meta-llama/Llama-3.2-1B-Instruct": "llama-3.2-1b",
    "meta-llama/Meta-Llama-3-8B": "llama-3-8b",
    "microsoft/phi-2": "phi-2",
}
# Size, millions of parameters, billions of tokens, rows of the table: as LightGPT's authors have them.
LIGHTGPT = [
    ("small", 353, 7, 50_257),
    ("medium", 1_714, 34, 50_257),
    ("large", 6_853, 132, 100_275),
    ("xl", 13_296, 262, 100_275),
    ("xxl", 53_179, 1_000, 200_017),
    ("xxxl", 104_720, 2_000, 200_017),
]


@dataclass(frozen=True)
class Promise:
    """The least hardware that a first line names; no GPU is two CPU cores."""

    nodes: int = 1
    gpus: int = 0
    gigabytes: int = 0


def promise_of(name: str) -> Promise:
    first = (recipe_folder() / f"{name}.yaml").read_text().partition("\n")[0]
    found = re.search(r"(?:(\d+) nodes of )?(one|one or more|\d+) GPUs? (?:of|with) (\d+) GB", first)
    if found is None:
        assert "CPU" in first, f"{name} names no hardware: {first}"
        return Promise()
    nodes, gpus, gigabytes = found.groups()
    return Promise(int(nodes or 1), 1 if gpus.startswith("one") else int(gpus), int(gigabytes))


def planned(name: str, place: str, *, nodes: int = 1, gpus: int = 0, **changes: Any) -> Plan:
    """A plan without data or weights at hand."""
    keys: dict[str, Any] = {"resources.nodes": nodes, **({"resources.gpus_per_node": gpus} if gpus else {})}
    recipe = load_recipe(name, keys).recipe
    spec = DATA if recipe.data.kind == "tokens" else ROWS
    parts: dict[str, Any] = {"data": PlannedData(spec=spec, vocab_size=2048), "host": CPU}
    if recipe.model.init_from is not None:
        parts["init"] = preset(SHAPES[recipe.model.init_from])
    cluster = load_cluster(place)
    if gpus and place == "ray":  # as it stands it is this machine, and says nothing of nodes
        cluster = cluster.model_copy(update={"node": cluster.node.model_copy(update={"gpus": 8})})
    return plan_of(recipe, cluster=cluster, **{**parts, **changes})


@pytest.mark.parametrize("name", bundled_recipes())
@pytest.mark.parametrize("place", ["local", "slurm", "ray"])
def test_every_recipe_plans_on_every_cluster(name: str, place: str) -> None:
    """With as many machines as it asks for; on this one with one of them, and there without a GPU too."""
    promise = promise_of(name)
    gpu = Gpu(name=H100.name, memory=promise.gigabytes * 10**9, capability=(9, 0))
    host = CPU.model_copy(update={"gpus": (gpu,) * (promise.gpus if place == "local" else 8)})
    nodes = promise.nodes if place != "local" else 1
    plan = planned(name, place, nodes=nodes, gpus=promise.gpus, host=host)
    assert plan.n_params > 1_000_000 and plan.max_steps > 0
    assert plan.nnodes == nodes
    if promise.gpus:
        assert plan.device == "cuda"
    if promise.gpus and nodes == promise.nodes:
        assert plan.memory["total"] < promise.gigabytes * 10**9
        assert not [note for note in plan.notes if "not fit" in note]
    if place == "local":
        assert planned(name, place).device == "cpu"


@pytest.mark.parametrize(("size", "millions", "tokens", "rows"), LIGHTGPT, ids=[row[0] for row in LIGHTGPT])
def test_a_size_of_lightgpt_reads_the_tokens_that_its_authors_recommend(
    size: str, millions: int, tokens: int, rows: int
) -> None:
    recipe = load_recipe(f"pretrain/nope-gpt-{size}").recipe
    plan = planned(f"pretrain/nope-gpt-{size}", "slurm", nodes=promise_of(f"pretrain/nope-gpt-{size}").nodes)
    assert plan.n_params == pytest.approx(millions * 10**6, rel=2e-3)
    assert plan.model.vocab_size == rows
    assert 0 <= plan.total_tokens - tokens * 10**9 < plan.batch.tokens_per_step
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.beta2_decay) == ("adafactor", 0.01, -0.8)


def test_other_data_change_nothing_but_what_is_read() -> None:
    """One key, and neither the model nor the way of training is another."""
    other = DATA.model_copy(update={"train": (DATA.train[0].model_copy(update={"folder": "/else"}),), "digest": "e"})
    mine, theirs = (
        plan_of("pretrain/pythia-14m", data=PlannedData(spec=spec, vocab_size=2048), data__source=source)
        for spec, source in ((DATA, "/data"), (other, "/else"))
    )
    assert mine.data != theirs.data
    assert mine.model_copy(update={"data": other, "epochs": theirs.epochs}) == theirs
