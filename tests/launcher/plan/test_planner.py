"""The plan: pure, its arithmetic adds up for any number of workers, and every mistake is named at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launchyard.launcher.backends.cluster import Cluster
from launchyard.launcher.backends.hardware import Gpu, HostFacts, probe_host
from launchyard.launcher.plan.plan import Plan, PlanError, PlannedData
from launchyard.launcher.plan.planner import make_plan
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.submit.code import CodeSnapshot
from launchyard.launcher.submit.plan_text import brief, full
from launchyard.model.zoo import BY_TYPE, preset, presets
from launchyard.training.recipe import Recipe
from launchyard.training.sections.duration import seconds_of
from launchyard.training.spec import DataSpec, RowFacts, TokenSource, Workload

GOLDEN = Path(__file__).parent / "golden"
SMALL = str(GOLDEN / "small.yaml")  # not the quickstart, whose numbers are tuned
LOCAL = Cluster(name="local", scheduler="local")
FLAGS = ("--shutdown-timeout", "--signals-to-handle")
CPU = HostFacts(cpus=8, memory=32 * 10**9, python="/venv/bin/python", torchrun_flags=FLAGS)
H100 = Gpu(name="NVIDIA H100", memory=80 * 10**9, capability=(9, 0))
GPUS = CPU.model_copy(update={"gpus": (H100,) * 8, "cpus": 64})
DATA = DataSpec(
    train=(TokenSource(folder="/data/train", n_tokens=400_000),),
    validation=(TokenSource(folder="/data/validation", n_tokens=20_000),),
    tokenizer="/data/tokenizer/tokenizer.json",
    digest="d",
)

_FACTS = RowFacts(rows=4000, labels=100_000, longest=500, packs=(900, 900, 900))
ROWS = DATA.model_copy(update={"train": (DATA.train[0].model_copy(update={"instruct": _FACTS}),)})


def plan_of(recipe: Recipe | str = SMALL, host: HostFacts = CPU, **changes: Any) -> Plan:
    """A plan; keyword arguments with __ are keys of the recipe, the others arguments of make_plan."""
    keys = {key.replace("__", "."): value for key, value in changes.items() if "__" in key}
    parts = {key: value for key, value in changes.items() if "__" not in key}
    loaded = load_recipe(recipe, keys).recipe if isinstance(recipe, str) else recipe
    given = {"cluster": LOCAL, "run_id": "small-ab12", "run_url": "/runs/small-ab12", "host": host}
    return make_plan(loaded, **{**given, "data": PlannedData(spec=DATA, vocab_size=2048), **parts})


def problems_of(*args: Any, **changes: Any) -> dict[str, str]:
    with pytest.raises(PlanError) as caught:
        plan_of(*args, **changes)
    return dict(caught.value.problems)


def test_a_disk_that_will_be_full_is_noted() -> None:
    """Permanent checkpoints, the newest, and the one being written; `keep` bounds the first."""
    one = plan_of().checkpoint_bytes

    def note(room: float, **changes: Any) -> str:
        host = CPU.model_copy(update={"free_bytes": int(room * one)})
        notes = plan_of(host=host, train__max_steps=100, **changes).notes
        return next((note for note in notes if "there is room for" in note), "")

    assert not note(3, checkpoint__every_steps=None)
    assert "up to 3 checkpoints" in note(2.9, checkpoint__every_steps=None)
    assert not note(12, checkpoint__every_steps=10)
    assert "checkpoint.keep=9 would fit" in note(11.5, checkpoint__every_steps=10)
    assert not note(11.5, checkpoint__every_steps=10, checkpoint__keep=9)
    assert "make room there" in note(2, checkpoint__every_steps=10)


def test_processes_that_differ_in_their_node_alone_are_shown_once() -> None:
    def text(nodes: int) -> list[str]:
        cluster = Cluster(name="x", scheduler="slurm", storage="/runs")
        plan = plan_of(cluster=cluster, resources__nodes=nodes, train__global_batch_size=2 * nodes)
        assert len({process.node_rank for process in plan.processes}) == nodes
        loaded = load_recipe(SMALL)
        code = CodeSnapshot(folder="/x", launchyard="1", python="3", platform="p", packages={})
        lines = full(plan, loaded.recipe, loaded.raw, code, "small.yaml")
        return lines[lines.index("processes") :]

    assert len(text(3)) == len(text(20))
    assert "  worker on each of 20 nodes, 0 to 19; that of node 0:" in text(20)


# -- golden ----------------------------------------------------------------------------------------------------------
CASES: dict[str, dict[str, Any]] = {
    "small-cpu": {},
    "pythia-160m-8-gpus": {"recipe": "pretrain/pythia-160m", "host": GPUS, "parallel__dp_replicate": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    """Every number, every word of every argv. To renew: delete the file, run the test, read the difference."""
    text = json.dumps(plan_of(**CASES[name]).model_dump(mode="json"), indent=1) + "\n"
    path = GOLDEN / f"{name}.json"
    if not path.exists():
        path.write_text(text)
        pytest.fail(f"{path} was missing and has been written; read it and run again")
    assert json.loads(text) == json.loads(path.read_text())
    assert text == path.read_text()


@pytest.mark.parametrize("scheduler", ["local", "slurm", "ray"])
def test_no_process_looks_into_the_working_directory_first(scheduler: str) -> None:
    """Each has the word, or has it from its parent: torchrun starts its workers itself."""
    plan = plan_of(cluster=Cluster(name="x", scheduler=scheduler, storage="/runs"))
    safe: dict[int, bool] = {}
    for process in plan.processes:
        if process.role != "worker":
            assert process.argv[process.argv.index(CPU.python) + 1] == "-P", process
            safe[process.node_rank] = "PYTHONSAFEPATH" in process.env
        else:
            assert safe[process.node_rank], "its torchrun hands it on"
    if plan.script is not None:
        assert f"exec {CPU.python} -P " in plan.script and "PYTHONSAFEPATH" in plan.script


def test_a_worker_reads_its_part_of_the_plan() -> None:
    plan = plan_of()
    work = Workload.model_validate_json(plan.model_dump_json())
    assert (work.run_id, work.name, work.model, work.data) == (plan.run_id, plan.name, plan.model, plan.data)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


# -- arithmetic ------------------------------------------------------------------------------------------------------
@given(
    workers=st.integers(1, 8),
    accumulate=st.integers(1, 4),
    micro=st.integers(1, 4),
    replicate=st.sampled_from([1, 2, 4]),
    cpus=st.integers(1, 64),
)
def test_the_batch_and_the_mesh_add_up(workers: int, accumulate: int, micro: int, replicate: int, cpus: int) -> None:
    size = workers * accumulate * micro
    keys = {
        "train__global_batch_size": size,
        "train__micro_batch_size": micro,
        "resources__nproc_per_node": workers,
        "parallel__dp_replicate": replicate,
    }
    host = CPU.model_copy(update={"cpus": cpus})
    if workers % replicate:
        assert list(problems_of(host=host, **keys)) == ["parallel.dp_replicate"]
        return
    plan = plan_of(host=host, **keys)
    batch = plan.batch
    assert batch.global_batch_size == plan.world_size * batch.grad_accum_steps * batch.micro_batch_size == size
    assert plan.mesh.dp_replicate * plan.mesh.dp_shard == plan.world_size == workers
    assert plan.total_tokens == plan.max_steps * size * batch.seq_len
    threads = int(plan.environment["OMP_NUM_THREADS"])
    assert threads >= 1
    assert threads * workers <= cpus or threads == 1


def test_steps_follow_the_length_that_is_given() -> None:
    assert plan_of(train__max_tokens=1_000_000).max_steps == 489  # of 16 x 128 tokens, rounded up
    epochs = plan_of(train__max_epochs=2)
    assert epochs.max_steps == 391
    assert epochs.epochs[0] >= 2


def mixed(*sources: tuple[str, int, float], held: tuple[str, ...] = ()) -> PlannedData:
    train = tuple(TokenSource(folder=f"/{name}/train", n_tokens=n, weight=weight) for name, n, weight in sources)
    validation = tuple(TokenSource(folder=f"/{name}/validation", n_tokens=999) for name in held)
    return PlannedData(spec=DATA.model_copy(update={"train": train, "validation": validation}), vocab_size=2048)


def test_a_mixture_says_what_each_source_gives() -> None:
    data = mixed(("web", 400_000, 3), ("books", 20_000, 1), held=("web",))
    plan = plan_of(data=data, train__max_steps=100)  # of 16 x 128 tokens
    assert plan.epochs == pytest.approx([1600 * 0.75 / 3125, 1600 * 0.25 / 157], abs=1e-3)
    assert "validation sees nothing of /books/train" in plan.notes
    assert not any("times over" in note for note in plan.notes)
    repeated = [note for note in plan_of(data=data, train__max_steps=200).notes if "times over" in note]
    assert repeated == ["/books/train is read 5.1 times over; more than 4 seldom help"]
    both = plan_of(data=mixed(("web", 9000, 1), ("books", 9000, 1), held=("web", "books")), validation__max_batches=1)
    assert [note for note in both.notes if "validation" in note] == [
        "validation.max_batches measures the first batches only: those of the first sources"
    ]


def test_a_mixture_in_words() -> None:
    """By the names that the recipe gives: a text lies in the cache under a name that says nothing."""
    mixture = [{"source": "/a/web", "weight": 3}, {"source": ["/t/x.txt", "/t/y.txt"], "weight": 1}]
    recipe = load_recipe(SMALL, {"data.mixture": mixture, "train.max_steps": 200}).recipe
    plan = plan_of(recipe, data=mixed(("a/web", 400_000, 3), ("cache/d3b0", 20_000, 1), held=("a/web",)))
    code = CodeSnapshot(folder="/x", launchyard="1", python="3", platform="p", packages={})
    lines = brief(plan, recipe, code)
    assert [line.strip() for line in lines if "%" in line] == [
        "75.00% /a/web · 400k tokens · 0.768 epochs",
        "25.00% /t/x.txt and 1 more · 20k tokens · 5.1 epochs",
    ]
    assert plan.notes[-2:] == [
        "/t/x.txt and 1 more is read 5.1 times over; more than 4 seldom help",
        "validation sees nothing of /t/x.txt and 1 more",
    ]


def test_an_epoch_of_a_mixture_means_nothing() -> None:
    data = mixed(("web", 400_000, 3), ("books", 20_000, 1))
    assert "use max_steps or max_tokens" in problems_of(data=data, train__max_epochs=2)["train.max_epochs"]
    assert plan_of(data=mixed(("web", 400_000, 3), held=("web",)), train__max_epochs=2).max_steps == 391


def test_the_plan_is_pure(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(SMALL).recipe
    plan_of(recipe)  # the code of its backend is loaded once

    def forbidden(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a plan opens nothing and starts nothing")

    monkeypatch.setattr("builtins.open", forbidden)
    monkeypatch.setattr("os.stat", forbidden)
    monkeypatch.setattr("subprocess.Popen", forbidden)
    assert plan_of(recipe) == plan_of(recipe)


# -- devices ---------------------------------------------------------------------------------------------------------
def test_without_a_gpu_it_says_that_it_trains_on_the_cpu() -> None:
    plan = plan_of()
    assert (plan.device, plan.nproc_per_node) == ("cpu", 1)
    assert any("no GPU on this machine: training on the CPU" in note for note in plan.notes)
    asked = plan_of(train__device="cpu")
    assert not any("no GPU" in note for note in asked.notes), "it was asked for"


def test_all_gpus_or_those_asked_for() -> None:
    assert (plan_of("pretrain/pythia-14m", GPUS).device, plan_of("pretrain/pythia-14m", GPUS).world_size) == ("cuda", 8)
    assert plan_of("pretrain/pythia-14m", GPUS, resources__gpus_per_node=4).world_size == 4
    assert plan_of("pretrain/pythia-14m", GPUS, resources__gpus_per_node=0).device == "cpu"
    one = plan_of(SMALL, GPUS)
    assert (one.device, one.world_size) == ("cuda", 1)
    assert any("using 1 of 8 GPUs" in note for note in one.notes)


def test_never_a_quiet_cpu() -> None:
    assert "this machine has none" in problems_of(resources__gpus_per_node=1)["resources.gpus_per_node"]
    assert "this machine has no GPU" in problems_of(train__device="cuda")["train.device"]
    more = problems_of("pretrain/pythia-14m", GPUS, resources__gpus_per_node=9)
    assert "9 GPUs, but this machine has 8; use --gpus-per-node 8" in more["resources.gpus_per_node"]
    both = problems_of(SMALL, GPUS, resources__gpus_per_node=1, train__device="cpu")
    assert "leave out one of them" in both["train.device"]
    idle = problems_of(SMALL, GPUS, resources__gpus_per_node=2)
    assert "would leave 1 of 2 GPUs idle" in idle["resources.nproc_per_node"]
    crowded = problems_of(SMALL, GPUS, resources__gpus_per_node=2, resources__nproc_per_node=4)
    assert "4 workers for 2 GPUs" in crowded["resources.nproc_per_node"]


def test_a_cpu_plan_hides_gpus_from_its_workers() -> None:
    env = {process.role: process.env for process in plan_of().processes}
    assert env["torchrun"]["CUDA_VISIBLE_DEVICES"] == ""
    gpu = {process.role: process.env for process in plan_of("pretrain/pythia-14m", GPUS).processes}
    assert "CUDA_VISIBLE_DEVICES" not in gpu["torchrun"]


# -- mistakes --------------------------------------------------------------------------------------------------------
def test_all_mistakes_at_once() -> None:
    found = problems_of(
        resources__nodes=3,
        resources__gpus_per_node=2,
        resources__nproc_per_node=3,
        resources__time_limit="soon",
        train__global_batch_size=7,
        parallel__dp_shard=2,
        data__seq_len=5000,
        schedule__min_lr=1.0,
        data=PlannedData(spec=DATA.model_copy(update={"validation": (), "tokenizer": None}), vocab_size=2048),
    )
    assert set(found) == {
        "resources.nodes",
        "resources.gpus_per_node",
        "resources.time_limit",
        "train.global_batch_size",
        "parallel.dp_shard",
        "data.seq_len",
        "schedule.min_lr",
        "validation.every_steps",
        "validation.sample",
    }
    assert "use a multiple of 9, or one of these numbers of workers: 1, 7" in found["train.global_batch_size"]


def test_a_vocabulary_larger_than_the_models() -> None:
    data = PlannedData(spec=DATA, vocab_size=60_000)
    found = problems_of(model__preset="pythia-14m", data=data)["model.vocab_size"]
    assert "60,000 ids, but the model (pythia-14m) has 50,304 rows" in found
    assert found.endswith("or model.vocab_size=60000")
    weights = problems_of(model__init_from="/weights", init=preset("pythia-70m"), data=data)["model.vocab_size"]
    assert weights.endswith("or model.vocab_size=60000, and its tables grow")
    grown = plan_of(model__init_from="/weights", init=preset("pythia-70m"), data=data, model__vocab_size=60_000).model
    assert (grown.vocab_size, grown.padded_vocab_size) == (60_000, 60_032)
    said = problems_of(model__preset="pythia-14m", model__vocab_size=50_000, data=data)["model.vocab_size"]
    assert "(pythia-14m) has ids for 50,000" in said
    assert plan_of(data=data).model.vocab_size == 60_000, "a vocabulary that nothing names follows the data"
    assert plan_of(model__preset="pythia-14m").model == preset("pythia-14m")


@pytest.mark.parametrize(("name", "rows"), [("pythia-14m", 50_304), ("pythia-6.9b", 50_432), ("pythia-12b", 50_688)])
def test_data_with_more_ids_than_the_model_but_not_than_its_rows(name: str, rows: int) -> None:
    """Rows stay as they were published; the data's ids are all that may be written."""
    plan = plan_of(model__preset=name, data=PlannedData(spec=DATA, vocab_size=50_300))
    assert (plan.model.vocab_size, plan.model.padded_vocab_size) == (50_300, rows)
    assert any("model.vocab_size: 50,300" in note for note in plan.notes)
    own = plan_of(model__preset=name, data=PlannedData(spec=DATA, vocab_size=50_277))
    assert own.model == preset(name)


def test_models_that_cannot_be_made() -> None:
    assert "did you mean" in problems_of(model__preset="pythia-15m")["model"]
    assert "give a preset" in problems_of(SMALL, **{"model__preset": None, **_without_knobs()})["model"]
    unknown = PlannedData(spec=DATA, vocab_size=None)
    assert "the size of the data's vocabulary is unknown" in problems_of(data=unknown)["model.vocab_size"]
    assert "n_heads" in problems_of(model__n_heads=6, model__n_kv_heads=4)["model"]


def _without_knobs() -> dict[str, None]:
    return {f"model__{key}": None for key in load_recipe(SMALL).raw["model"]}


def test_weights_do_not_start_another_model_nor_a_longer_context_without_a_rule() -> None:
    init = preset("pythia-70m")
    assert "another model: dim" in problems_of(model__init_from="/weights", init=init, model__dim=64)["model.init_from"]
    said = problems_of(model__init_from="/weights", init=init, model__max_seq_len=4096)["model.init_from"]
    assert "model.rope_scaling" in said and "keep model.max_seq_len=2048" in said


def test_what_has_no_experts_has_none_to_balance() -> None:
    assert "no experts" in problems_of(train__load_balancing_loss=0.01)["train.load_balancing_loss"]


def test_a_model_without_positions_takes_any_length() -> None:
    assert plan_of(model__preset="nope-gpt-small", data__seq_len=2048).model.max_seq_len == 1024


def test_weights_to_start_from_bring_their_shape() -> None:
    init = preset("pythia-70m")
    plan = plan_of(model__init_from="/weights", init=init)
    assert plan.model == init


def test_prompts_of_layers_are_not_exported() -> None:
    found = problems_of(adapter__kind="llama-adapter", checkpoint__export=True)
    assert "no place for the prompts of adapter.kind=llama-adapter" in found["checkpoint.export"]
    plan = plan_of(adapter__kind="llama-adapter", adapter__prompt_layers=1, checkpoint__export=False)
    assert plan.adapter is not None
    more = problems_of(adapter__kind="llama-adapter", adapter__prompt_layers=99)
    assert "prompt_layers: 99, and the model has" in more["adapter"]


def test_passwords_do_not_enter_a_plan() -> None:
    found = problems_of(run_url="s3://me:s3cret@bucket/run", data__source="s3://me:s3cret@bucket/data")
    assert set(found) == {"--run-url", "data.source"}
    assert "s3cret" not in str(found)
    mixture = [{"source": "a", "weight": 1}, {"source": ["s3://me:s3cret@b/c", "d"], "weight": 1}]
    assert set(problems_of(data__mixture=mixture)) == {"data.mixture.1"}


def test_bf16_on_a_cpu() -> None:
    assert any("no bf16 units" in note for note in plan_of(train__precision="bf16").notes)
    assert "does not work in bf16" in problems_of(train__precision="bf16", parallel__compile=True)["parallel.compile"]
    amx = CPU.model_copy(update={"cpu_bf16": True})
    assert not any("bf16" in note for note in plan_of(host=amx, train__precision="bf16").notes)


def test_too_little_memory_is_said() -> None:
    small = CPU.model_copy(update={"memory": 10**8})
    assert any("it may not fit" in note for note in plan_of(host=small).notes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12:00:00", 43_200), ("2-00:00:00", 172_800), ("30:00", 1800), ("90", 5400), ("soon", None), ("1:2:3:4", None)],
)
def test_time_limits(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data.kind": "preference"}, "adapter.kind none); use adapter.kind lora"),
        ({"data.kind": "preference", "adapter.kind": "bitfit"}, "adapter.kind bitfit); use"),
        ({"data.kind": "preference", "adapter.kind": "lora", "adapter.trained": ["norm.weight"]}, "(norm.weight)"),
        ({"preference.loss": "simpo"}, "data.kind is tokens; leave it out"),
        ({"data.kind": "preference", "preference.loss": "simpo"}, None),
        ({"data.kind": "preference", "adapter.kind": "dora"}, None),
        ({"data.kind": "preference", "adapter.kind": "llama-adapter", "checkpoint.export": False}, None),
        ({"data.kind": "preference", "adapter.kind": "llama-adapter-v2"}, "adapter.kind llama-adapter-v2); use"),
    ],
)
def test_the_loss_of_pairs_fits_what_trains(changes: dict[str, Any], said: str | None) -> None:
    recipe = load_recipe("quickstart", {**changes, "train.max_steps": 5}).recipe
    parts = {"data": PlannedData(spec=ROWS, vocab_size=2048)}
    if said is None:
        plan_of(recipe, **parts)
        return
    with pytest.raises(PlanError) as refused:
        plan_of(recipe, **parts)
    assert any(said in what for _, what in refused.value.problems), refused.value.problems


# -- what is bundled -------------------------------------------------------------------------------------------------
def test_this_machine_can_be_asked() -> None:
    host = probe_host()
    assert host.cpus >= 1
    assert host.memory > 10**8
    assert set(host.torchrun_flags) <= set(FLAGS)


@pytest.mark.parametrize("number", range(3), ids=["local", "slurm", "ray"])
def test_every_preset_plans_without_torch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest of each family on all three; of the others each third."""
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it is an error
    scheduler = ("local", "slurm", "ray")[number]
    node = {} if scheduler == "local" else {"storage": "/runs", "node": {"gpus": 8}}
    cluster = Cluster.model_validate({"name": "here", "scheduler": scheduler, **node})
    recipe = load_recipe("pretrain/pythia-160m", {"data.seq_len": 512}).recipe
    smallest = {next(iter(family.presets)) for family in BY_TYPE.values() if family.presets}
    for index, (name, config) in enumerate(presets().items()):
        if name in smallest or index % 3 == number:
            model = recipe.model.model_copy(update={"preset": name})
            plan = plan_of(recipe.model_copy(update={"model": model}), GPUS, cluster=cluster)
            assert plan.model == config, name


MAC = CPU.model_copy(update={"has_mps": True})


def test_apples_gpu_trains_one_worker_and_is_marked_untried() -> None:
    plan = plan_of(host=MAC, train__device="mps")
    assert (plan.device, plan.world_size) == ("mps", 1)
    assert any("untried" in note for note in plan.notes)


def test_a_mac_trains_on_its_cpu_unasked() -> None:
    plan = plan_of(host=MAC)
    assert plan.device == "cpu" and any("train.device=mps" in note for note in plan.notes)
    assert not any("mps" in note for note in plan_of().notes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"host": CPU}, "train.device"),
        ({"resources__nproc_per_node": 2}, "resources.nproc_per_node"),
        ({"train__precision": "fp64"}, "train.precision"),
        ({"train__precision": "fp8"}, "train.precision"),
        ({"parallel__cpu_offload": True}, "parallel.cpu_offload"),
    ],
)
def test_what_apples_gpu_cannot_do_is_refused(changes: dict[str, Any], key: str) -> None:
    assert key in problems_of(**{"host": MAC, "train__device": "mps"} | changes)
