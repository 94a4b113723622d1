"""The plan: a pure function of recipe, cluster, data and host. All arithmetic, all argv, all environment.

The dry run IS this value printed. Reads no file and asks no machine; all inputs are passed in.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from launchyard.host.devices import Device
from launchyard.launcher.backends.base import Traits, load_backend
from launchyard.launcher.backends.cluster import Cluster, store_environment
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.backends.request import AFTER_NOTHING, After, Ask
from launchyard.launcher.plan.draft import PlanDraft
from launchyard.launcher.plan.optimizer import optimizer_problems, planned_checkpoint, with_optimizer, with_staging
from launchyard.launcher.plan.plan import Mesh, Plan, PlanError, PlannedBatch, PlannedData
from launchyard.launcher.plan.precision import parallel_problems, precision_notes, precision_problems
from launchyard.launcher.plan.processes import plan_processes
from launchyard.launcher.plan.profile import profile_problems
from launchyard.launcher.plan.regularised import misfits, with_regularisers
from launchyard.launcher.plan.speed import planned_speed
from launchyard.launcher.plan.validation import validation_problems
from launchyard.launcher.plan.warnings import surprises
from launchyard.launcher.plan.workers import choose_workers
from launchyard.model import cost, memory, zoo
from launchyard.model.adapter import PROMPTED, Adapter
from launchyard.model.config import ModelConfig
from launchyard.model.initial import check_start, over_weights
from launchyard.model.layout import Parameter, parameters
from launchyard.model.parallel.share import share_config
from launchyard.run.records import Shape
from launchyard.storage.redact import redact
from launchyard.training.batching import count_steps, cut_batch, samples_of, sequences_before, shares_of, shares_over
from launchyard.training.optim.groups import check_rules
from launchyard.training.recipe import Recipe
from launchyard.training.sections.duration import seconds_of
from launchyard.training.sections.preference import PreferenceConfig
from launchyard.training.spec import DataSpec

# Variables of every worker that no recipe decides. Threads that wait must not spin: on a machine with other work a
# step of the quickstart took 6 times as long when they did.
WORKER_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# On a CPU, memory that was freed stays with the process: glibc else returns large blocks to the kernel and gets them
# back page by page, many times per step (1.14 times as fast: linear + cross entropy of pythia-14m).
CPU_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}


def make_plan(
    recipe: Recipe,
    *,
    cluster: Cluster,
    run_id: str,
    run_url: str,
    data: PlannedData,
    host: HostFacts,
    init: ModelConfig | None = None,
    after: After = AFTER_NOTHING,
) -> Plan:
    """The plan of a run; PlanError with all problems at once.

    host: the machine that launches; it is the node itself where the scheduler is local.
    init: shape of the weights that model.init_from names.
    after: the scheduler's job of the run that recipe.after names, if there is one, and the one before it in a sweep.
    """
    draft = PlanDraft(notes=[host.note] if host.note else [])
    cluster = _with_cpus(cluster, host)
    device, nproc = choose_workers(recipe, cluster, host, draft)
    nnodes = recipe.resources.nodes
    model = resolve_model(recipe, data.vocab_size, init, draft)
    adapter = _adapter(recipe, model, draft)
    batch = _batch(recipe, nnodes * nproc, draft)
    mesh = _mesh(recipe, nnodes * nproc, draft)
    _check_secrets(recipe, run_url, draft)
    _check(recipe, cluster, data, model, device, host, nnodes * nproc, draft)
    sizes = _sizes(recipe, nproc, cluster, draft)
    if draft.problems or model is None or batch is None or mesh is None:
        raise PlanError(draft.problems)
    max_steps = count_steps(recipe, data.spec)
    shape = Shape(nnodes=nnodes, nproc_per_node=nproc, device=device)
    asked = {"environment": _environment(cluster, host, nproc, device), "after": after, **_asked(recipe, cluster, host)}
    ask = Ask(run_id=run_id, run_url=run_url, shape=shape, sizes=sizes, **asked)
    plan = Plan(
        run_id=run_id,
        name=recipe.name,
        run_url=run_url,
        **_place(cluster),
        **ask.shape.model_dump(),
        world_size=ask.shape.world_size,
        model=model,
        adapter=adapter,
        data=data.spec,
        data_prepared=data.prepared,
        batch=batch,
        mesh=mesh,
        precision=recipe.train.precision,
        max_steps=max_steps,
        total_tokens=sequences_before(recipe.train, max_steps) * recipe.data.seq_len,
        epochs=[] if data.missing else _epochs(data.spec, recipe, max_steps),
        **_costs(recipe, model, adapter),
        memory=_memory(recipe, model, adapter, batch, mesh, device),
        memory_available=_available(cluster, host, device, nproc),
        speed=planned_speed(recipe, model, adapter, batch, cluster=cluster, host=host, ask=ask),
        environment=ask.environment,
        **_started(cluster, ask, host),
        notes=draft.notes,
    )
    return plan.model_copy(update={"notes": [*plan.notes, *surprises(plan, recipe, free_bytes=host.free_bytes)]})


def _costs(recipe: Recipe, model: ModelConfig, adapter: Adapter | None) -> dict[str, int]:
    return {
        "n_params": cost.n_params(model),
        "n_params_trained": cost.n_params_trained(model, adapter),
        "flops_per_token": cost.flops_per_token(model, recipe.data.seq_len, adapter),
        "checkpoint_bytes": planned_checkpoint(recipe, model, adapter),
    }


def _asked(recipe: Recipe, cluster: Cluster, host: HostFacts) -> dict[str, Any]:
    """The rest of an Ask: resources, and values of this machine."""
    limit = recipe.resources.time_limit
    spares = recipe.resources.spare_nodes
    gpus = _gpus(recipe, cluster)
    return {"gpus": gpus, "spares": spares, "time_limit": limit, "python": host.python, "logs": host.logs}


def _started(cluster: Cluster, ask: Ask, host: HostFacts) -> dict[str, Any]:
    """The request to the scheduler, and the processes that follow from it."""
    request = load_backend(cluster.scheduler).request(cluster, ask)
    script = request.text if request is not None else None
    processes = plan_processes(cluster, ask, flags=host.torchrun_flags)
    return {"script": script, "request": request, "processes": processes}


def _mesh(recipe: Recipe, world: int, draft: PlanDraft) -> Mesh | None:
    replicate = recipe.parallel.dp_replicate
    shard = recipe.parallel.dp_shard
    alike = {"tp": recipe.parallel.tp, "cp": recipe.parallel.cp}
    for key, count in alike.items():
        if world % (count * (1 if key == "tp" else alike["tp"])):
            draft.wrong(f"parallel.{key}", f"{count} workers cannot share what they do, as there are {world} in all")
            return None
    world //= alike["tp"]
    if recipe.parallel.shard_level == 0:
        if shard > 1 or replicate not in (1, world):
            what = f"0 gives each of {world} workers a whole copy, but dp_replicate is {replicate} and dp_shard {shard}"
            draft.wrong("parallel.shard_level", f"{what}; leave these out")
            return None
        return Mesh(dp_replicate=world, dp_shard=1, **alike)
    if shard == 0:
        draft.wrong("parallel.dp_shard", "0; use a number of workers, or -1 for all that remain")
        return None
    if shard == -1 and world % replicate:
        draft.wrong("parallel.dp_replicate", f"{replicate} copies cannot share {world} workers evenly")
        return None
    shard = world // replicate if shard == -1 else shard
    if replicate * shard != world:
        product = f"dp_replicate {replicate} x dp_shard {shard} = {replicate * shard}"
        draft.wrong("parallel.dp_shard", f"{product}, but there are {world} workers; dp_shard: -1 takes the rest")
        return None
    return Mesh(dp_replicate=replicate, dp_shard=shard, **alike)


def _adapter(recipe: Recipe, model: ModelConfig | None, draft: PlanDraft) -> Adapter | None:
    """The recipe's adapter, None if it changes nothing; problems where it does not fit the model, nor the rules of the
    optimizer what trains."""
    adapter = recipe.adapter
    if model is None:
        return None
    layout: dict[str, Parameter] = draft.attempt("adapter", lambda: parameters(model, adapter)) or {}
    trained = [name for name, parameter in layout.items() if parameter.trained]
    if trained:
        draft.attempt("optimizer.groups", lambda: check_rules(recipe.optimizer.groups, trained))
    if adapter == Adapter():
        return None
    if adapter.kind in PROMPTED and recipe.checkpoint.export:
        why = f"a Hugging Face folder has no place for the prompts of adapter.kind={adapter.kind}"
        draft.wrong("checkpoint.export", f"{why}; leave it out, and take the run itself as a MODEL")
    if adapter.kind != "none" and recipe.model.init_from is None:
        draft.notes.append(f"adapter.kind is {adapter.kind}, over random weights: model.init_from names no others")
    return adapter


def _check_preference(recipe: Recipe, draft: PlanDraft) -> None:
    """Pairs of answers: their loss, and what it is beside."""
    if recipe.data.kind != "preference":
        if recipe.preference is not None:
            draft.wrong("preference", f"for pairs of answers, but data.kind is {recipe.data.kind}; leave it out")
        return
    adapter = recipe.adapter
    if (recipe.preference or PreferenceConfig()).loss == "dpo" and not adapter.keeps_base:
        trains = adapter.trained[0] if adapter.trained else f"adapter.kind {adapter.kind}"
        draft.wrong(
            "preference.loss",
            f"dpo looks back at the model as it began, which is not kept where it trains itself ({trains}); use "
            "adapter.kind lora, qlora, dora or llama-adapter without adapter.trained, or preference.loss=simpo, which "
            "looks back at nothing",
        )


def _batch(recipe: Recipe, world: int, draft: PlanDraft) -> PlannedBatch | None:
    cut = draft.attempt(
        "train.global_batch_size", lambda: cut_batch(recipe.train, max(1, world // shares_of(recipe.parallel)))
    )
    if cut is None:
        return None
    return PlannedBatch(
        global_batch_size=cut.global_batch_size,
        micro_batch_size=cut.micro_batch_size,
        grad_accum_steps=cut.grad_accum_steps,
        seq_len=recipe.data.seq_len,
        tokens_per_step=cut.global_batch_size * recipe.data.seq_len,
    )


def _with_cpus(cluster: Cluster, host: HostFacts) -> Cluster:
    """The cluster with the CPUs of its nodes, as far as they are known."""
    cpus = cluster.node.cpus if host.node_cpus is None else host.node_cpus
    return cluster.model_copy(update={"node": cluster.node.model_copy(update={"cpus": cpus})})


def _sizes(recipe: Recipe, nproc: int, cluster: Cluster, draft: PlanDraft) -> tuple[int, ...]:
    """Numbers of nodes on which the same steps can be made, the number asked for first; see resources.min_nodes."""
    asked = recipe.resources.nodes
    least = recipe.resources.min_nodes
    if least is None or least >= asked:
        return (asked,)
    if not _traits(cluster).can_shrink:
        draft.notes.append(f"resources.min_nodes: {cluster.name} gives all {asked} nodes or none")
        return (asked,)
    smaller = [nodes for nodes in range(asked - 1, least - 1, -1) if _can_make_steps(recipe, nodes * nproc)]
    if not smaller:
        what = f"{least}, but no number of nodes from there to {asked - 1} can make the same steps"
        draft.wrong("resources.min_nodes", f"{what}; see train.global_batch_size and parallel")
    return (asked, *smaller)


def _can_make_steps(recipe: Recipe, world: int) -> bool:
    trial = PlanDraft()
    return _batch(recipe, world, trial) is not None and _mesh(recipe, world, trial) is not None


def _gpus(recipe: Recipe, cluster: Cluster) -> int:
    """Of each node, asked of a scheduler."""
    asked = recipe.resources.gpus_per_node
    if recipe.train.device == "cpu":
        return 0
    return (cluster.node.gpus or 0) if asked is None else asked


def _memory(
    recipe: Recipe,
    model: ModelConfig,
    adapter: Adapter | None,
    batch: PlannedBatch,
    mesh: Mesh,
    device: Device,
) -> dict[str, int]:
    share = model if mesh.tp == 1 else share_config(model, 0, mesh.tp)
    found = memory.training_memory(
        share,
        micro_batch_size=batch.micro_batch_size,
        seq_len=batch.seq_len,
        shards=mesh.dp_shard,
        precision=recipe.train.precision,
        device=device,
        savings=dataclasses.replace(_savings(recipe), replicas=mesh.dp_replicate),
        grad_accum_steps=batch.grad_accum_steps,
        adapter=adapter,
    )
    found = with_optimizer(found, recipe, share, adapter, shards=mesh.dp_shard)
    found = with_regularisers(found, recipe, model, adapter, batch, shards=mesh.dp_shard)
    return with_staging(found, recipe, model, adapter, shards=mesh.dp_shard) if device == "cpu" else found


def _savings(recipe: Recipe) -> memory.Savings:
    return memory.Savings(
        activation_checkpointing=recipe.parallel.activation_checkpointing,
        every=recipe.parallel.activation_checkpointing_every,
        shard_level=recipe.parallel.shard_level,
        cpu_offload=recipe.parallel.cpu_offload,
        spans=recipe.parallel.cp,
        compensated=recipe.train.bf16_rounding == "compensated",
    )


def _environment(cluster: Cluster, host: HostFacts, nproc: int, device: str) -> dict[str, str]:
    """Variables of all processes of the run; the cluster's own come last."""
    cpus = cluster.node.cpus or host.cpus
    own = {**WORKER_ENVIRONMENT, **(CPU_ENVIRONMENT if device == "cpu" else {})}
    own |= store_environment(cluster.storage.options)
    return {"OMP_NUM_THREADS": str(max(1, cpus // nproc)), **own, **cluster.environment}


def _place(cluster: Cluster) -> dict[str, Any]:
    """Values of a cluster that the plan holds unchanged."""
    storage = cluster.storage
    return {
        "cluster": cluster.name,
        "scheduler": cluster.scheduler,
        "storage": storage.in_training,
        "store": storage.options,
    }


def _available(cluster: Cluster, host: HostFacts, device: str, nproc: int) -> int | None:
    if _traits(cluster).scheduled:
        return None
    return min((gpu.memory for gpu in host.gpus), default=None) if device == "cuda" else host.memory // nproc


def _traits(cluster: Cluster) -> Traits:
    return load_backend(cluster.scheduler).TRAITS


# -- model and data --------------------------------------------------------------------------------------------------
def resolve_model(
    recipe: Recipe, data_vocab: int | None, init: ModelConfig | None, draft: PlanDraft | None = None
) -> ModelConfig | None:
    """The model's knobs. An unset vocabulary size follows the data; one smaller than the data's is an error."""
    draft = draft or PlanDraft()
    fields = recipe.model.model_dump(exclude_none=True)
    preset = fields.pop("preset", None)
    init_from = fields.pop("init_from", None)
    if preset is None and init is None and not fields:
        draft.wrong("model", "empty; give a preset (see `launch models`), init_from, or family, dim, n_layers …")
        return None
    if init is not None and preset is None:
        fields = over_weights(init, fields)
    elif preset is None and "vocab_size" not in fields:
        if data_vocab is None:
            draft.wrong("model.vocab_size", "missing, and the size of the data's vocabulary is unknown")
            return None
        fields["vocab_size"] = data_vocab
    model: ModelConfig | None = draft.attempt("model", lambda: zoo.make_config(preset=preset, fields=fields, hf=None))
    if model is None:
        return None
    if init is not None and init_from is not None:
        draft.attempt("model.init_from", partial(check_start, model, init, init_from))
    if recipe.train.load_balancing_loss and model.moe is None:
        draft.wrong("train.load_balancing_loss", "this model has no experts; leave it out")
    if data_vocab is not None and data_vocab > model.vocab_size:
        model = _with_ids_of_data(model, data_vocab, recipe, init_from or preset or "the recipe", draft)
    if recipe.checkpoint.export:  # now, and not when the run has ended
        draft.attempt("checkpoint.export", lambda: zoo.config_to_hf(model))
    if model.position_limit is not None and recipe.data.seq_len > model.position_limit:
        draft.wrong(
            "data.seq_len", f"{recipe.data.seq_len} is longer than the model's max_seq_len of {model.max_seq_len}"
        )
    return model


def _with_ids_of_data(
    model: ModelConfig, data_vocab: int, recipe: Recipe, source: str, draft: PlanDraft
) -> ModelConfig:
    """The model with the data's ids, if its tables have a row for each and the recipe does not say fewer."""
    said = recipe.model.model_dump()["vocab_size"] is not None
    if not said and data_vocab <= model.padded_vocab_size:
        rows = f"{model.padded_vocab_size:,} rows"
        draft.notes.append(f"model.vocab_size: {data_vocab:,}, as many as the data has, of {rows} ({source})")
        return model.model_copy(update={"vocab_size": data_vocab})
    has = f"ids for {model.vocab_size:,}" if said else f"{model.padded_vocab_size:,} rows"
    more = ", and its tables grow" if recipe.model.init_from else ""
    draft.wrong(
        "model.vocab_size",
        f"the data's vocabulary has {data_vocab:,} ids, but the model ({source}) has {has}; use data made with the "
        f"model's tokenizer, or model.vocab_size={data_vocab}{more}",
    )
    return model


def _check(
    recipe: Recipe,
    cluster: Cluster,
    data: PlannedData,
    model: ModelConfig | None,
    device: str,
    host: HostFacts,
    workers: int,
    draft: PlanDraft,
) -> None:
    train = recipe.train
    spec = data.spec
    traits = _traits(cluster)
    _check_preference(recipe, draft)
    draft.problems.extend([*optimizer_problems(recipe), *misfits(recipe), *profile_problems(recipe, spec, workers)])
    if recipe.after and not traits.waits_for_jobs:
        draft.wrong("after", f"{cluster.name} has no queue in which to wait for {recipe.after}; leave it out")
    if train.max_epochs is not None and len(spec.train) > 1:
        draft.wrong("train.max_epochs", "each source of a mixture has its own epochs; use max_steps or max_tokens")
    draft.problems.extend(validation_problems(recipe, spec))
    if recipe.validation.sample and spec.tokenizer is None:
        draft.wrong("validation.sample", "needs a tokenizer; set tokenizer")
    if recipe.resources.time_limit is not None and seconds_of(recipe.resources.time_limit) is None:
        draft.wrong("resources.time_limit", f"{recipe.resources.time_limit} is no time; write HH:MM:SS or D-HH:MM:SS")
    for key, what in load_backend(cluster.scheduler).check(recipe, cluster):
        draft.wrong(key, what)
    if recipe.resources.spare_nodes and not traits.has_spares:
        draft.wrong("resources.spare_nodes", f"{cluster.name} keeps no nodes aside; leave it out")
    if recipe.resources.time_limit is not None and not traits.has_time_limit:
        draft.notes.append(f"resources.time_limit is not enforced on {traits.title}")
    draft.problems.extend(precision_problems(recipe, model, device, host))
    draft.problems.extend(parallel_problems(recipe, model, device, workers, host))
    draft.notes.extend(precision_notes(recipe, device, host))
    if data.missing:
        draft.notes.append(f"planned without the data, which is not there yet: {data.missing}")
        if train.max_epochs is not None:
            draft.wrong("train.max_epochs", "the length follows from the data, which is not there yet; use max_steps")
    elif not data.prepared:
        draft.notes.append("the text is not tokenized yet: token counts are estimates")


def _check_secrets(recipe: Recipe, run_url: str, draft: PlanDraft) -> None:
    """Plans and recipes are stored in plain text: no passwords in their URLs."""
    given: list[tuple[str, object]] = [("data.source", recipe.data.source)]
    given += [(f"data.mixture.{number}", one.source) for number, one in enumerate(recipe.data.mixture or ())]
    given += [(f"validation.sets.{name}", source) for name, source in recipe.validation.sets.items()]
    urls = [(key, url) for key, source in given for url in (source if isinstance(source, list) else [source])]
    urls += [("data.validation", recipe.data.validation), ("tokenizer", recipe.tokenizer), ("--run-url", run_url)]
    for key, url in [*urls, ("model.init_from", recipe.model.init_from)]:
        if isinstance(url, str) and redact(url) != url:
            problem = "the URL holds a password or a key, which would be stored in plain text"
            draft.wrong(key, f"{problem}; use the credentials file of its service")


def _epochs(spec: DataSpec, recipe: Recipe, max_steps: int) -> list[float]:
    """Passes over each source."""
    read = sequences_before(recipe.train, min(max_steps, recipe.train.overfit_batches or max_steps))
    length = recipe.data.seq_len
    if recipe.train.max_epochs is not None and spec.train[0].instruct is not None:
        return [recipe.train.max_epochs]  # packs of the last step may be missing
    return [
        round(read * share / max(1, samples_of(source, length)), 4)
        for source, share in zip(spec.train, shares_over(spec, recipe, max_steps), strict=True)
    ]
