"""The composition root: everything that the loop works with, put together from a run's recipe and plan."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from launchyard.model.adapt.forms import form_of
from launchyard.model.adapter import Adapter
from launchyard.model.layout import frozen_names
from launchyard.model.precision import PRECISIONS
from launchyard.run import events, layout
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.training.batching import count_steps, cut_batch, shares_of
from launchyard.training.distributed import World
from launchyard.training.recipe import Recipe
from launchyard.training.sections.preference import PreferenceConfig
from launchyard.training.sections.stability import StabilityConfig
from launchyard.training.sections.validation import MAIN
from launchyard.training.spec import Workload
from launchyard.training.stop import StopFlag
from launchyard.training.telemetry.events import OnEvent, ReadingEvents, SaveEvents
from launchyard.training.telemetry.instruments import Instruments, Rows, open_rows

if TYPE_CHECKING:
    import torch
    from torch import nn

    from launchyard.model.weights.load import OnProgress
    from launchyard.training.batching import Context
    from launchyard.training.checkpoint.checkpointer import Checkpointer
    from launchyard.training.data.reader import Reader
    from launchyard.training.loop.parts import Data, Learner, Parts
    from launchyard.training.objectives.objective import Objective
    from launchyard.training.optim.base import Optimizer
    from launchyard.training.optim.grad_norms import GradNorms
    from launchyard.training.own.load import OwnCode
    from launchyard.training.profile.profiler import Profiler
    from launchyard.training.stability.guard import Guard
    from launchyard.training.telemetry.telemetry import Harm, Telemetry
    from launchyard.training.validation.asking import Point


DECIDING = {"model", "adapter", "code", "data", "preference", "train", "optimizer", "schedule", "stability"}
# Keys of `train` that are younger than the first hashes, with their defaults.
NEWER = {
    "max_time": None,
    "overfit_batches": None,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "max_grad_value": None,
    "ema_decay": None,
    "bf16_rounding": None,
}


def recipe_hash(recipe: Recipe) -> str:
    """Changes with the keys that decide the weights, and not with the device or the micro batch size."""
    deciding = recipe.model_dump(mode="json", include=DECIDING)
    for where in ("micro_batch_size", "device"):
        deciding["train"].pop(where)
    for section in ("optimizer", "schedule"):  # as the hash of recipes that are older than most of their keys
        deciding[section] = {key: value for key, value in deciding[section].items() if value not in (None, [])}
    for section, key in (("train", "batch_size_ramp"), ("data", "seq_len_ramp")):
        if not deciding[section][key]:
            deciding[section].pop(key)
    if recipe.schedule.by == "steps":
        deciding["schedule"].pop("by")
    for key, default in NEWER.items():  # as the hash of recipes that are older than the key
        if deciding["train"][key] == default:
            deciding["train"].pop(key)
    if recipe.adapter == Adapter():  # as the hash of recipes that are older than the section
        deciding.pop("adapter")
    for section in ("preference", "code"):
        if deciding[section] is None:
            deciding.pop(section)
    if recipe.stability == StabilityConfig():
        deciding.pop("stability")
    if recipe.data.mask_prompt:
        deciding["data"].pop("mask_prompt")
    if recipe.data.mixture_schedule is None:
        deciding["data"].pop("mixture_schedule")
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def compose(
    run: RunDir, world: World, recipe: Recipe, workload: Workload, flag: StopFlag, instruments: Instruments
) -> tuple[Parts, str | None]:
    """Everything the loop needs, with the newest intact state loaded; and from where, or None if there was none."""
    from launchyard.training.loop.parts import Parts
    from launchyard.training.own.frozen import open_own_code
    from launchyard.training.own.hooks import Hooks
    from launchyard.training.parallel import needs_sharding, time_collectives
    from launchyard.training.telemetry.telemetry import open_telemetry

    context = open_context(world, recipe, workload)
    rows = open_rows(run, world)
    checkpointer = open_checkpointer(run, context, instruments, rows)
    code = open_own_code(run, recipe.code)
    learner, source = load_learner(context, checkpointer, instruments, code)
    data = open_readers(context, instruments.events, run, code)
    if needs_sharding(recipe, world.world_size, workload.adapter) and context.device.type == "cpu":
        time_collectives(learner.model, instruments.clock.waits)
    telemetry = open_telemetry(run, context, instruments, rows, cache=data.reader.cache, start_step=learner.state.step)
    checkpointer.cleaner.best = lambda: [step for step, _ in learner.state.best]
    parts = Parts(
        context,
        learner,
        data,
        checkpointer,
        telemetry,
        flag,
        choose_objective(recipe, code),
        open_profiler(run, context, learner, instruments),
        points=list(open_points(run, context, telemetry, start_step=learner.state.step)),
        guard=open_guard(context, learner, data, telemetry.update_skipped),
        hooks=Hooks(code) if code is not None and world.is_main else None,
        grad_norms=open_grad_norms(context, learner),
    )
    return parts, source


def open_context(world: World, recipe: Recipe, workload: Workload) -> Context:
    """The facts of this worker, checked; it is connected with the others where the model is cut among them."""
    import torch

    from launchyard.training.batching import Context
    from launchyard.training.data.dataset_spec import check_unchanged
    from launchyard.training.distributed import connect
    from launchyard.training.parallel import needs_sharding

    context = Context(
        world=world,
        recipe=recipe,
        workload=workload,
        sizes=cut_batch(recipe.train, world.world_size // shares_of(recipe.parallel)),
        max_steps=count_steps(recipe, workload.data),
        device=choose_device(recipe, world),
    )
    if world.is_main:
        check_unchanged(workload.data)
    torch.manual_seed(recipe.train.seed)
    if needs_sharding(recipe, world.world_size, workload.adapter):
        connect(world, context.device)
    return context


def open_points(run: RunDir, context: Context, telemetry: Telemetry, *, start_step: int) -> Iterator[Point]:
    """What the recipe has checkpoints asked."""
    from launchyard.training.validation.samples import open_sample_point
    from launchyard.training.validation.tasks import open_task_point

    config = context.recipe.validation
    if config.tasks:
        yield open_task_point(run, context.world, config, telemetry, step=start_step)
    if config.sample is not None:
        yield open_sample_point(run, context.world, config.sample, seed=context.recipe.train.seed, step=start_step)


def open_guard(context: Context, learner: Learner, data: Data, on_skip: Callable[[Harm], None]) -> Guard | None:
    """The judge of updates; None where the recipe wants none, and no step waits for its numbers."""
    from launchyard.training.loop.numbers import named_samples
    from launchyard.training.stability.guard import Guard

    if not context.recipe.stability.acts:
        return None
    return Guard(context.recipe.stability, learner.state, on_skip, lambda step: named_samples(context, data, step - 1))


def open_grad_norms(context: Context, learner: Learner) -> GradNorms | None:
    """The measure of the gradient by part; None where the recipe wants none."""
    from launchyard.training.optim.grad_norms import GradNorms
    from launchyard.training.parallel import mesh_shape

    recipe = context.recipe
    every = recipe.metrics.grad_norms
    if every is None:
        return None
    copies, _ = mesh_shape(recipe.parallel, context.world.world_size)
    return GradNorms(learner.model, recipe.optimizer.groups, every=every, copies=copies)


def open_profiler(run: RunDir, context: Context, learner: Learner, instruments: Instruments) -> Profiler:
    """For the steps that the recipe names, and those that somebody asks for."""
    from launchyard.training.profile.profiler import Profiler
    from launchyard.training.profile.requests import Requests, windows_of
    from launchyard.training.profile.trace import Traced
    from launchyard.training.profile.writing import TraceWriter

    world = context.world
    compiled = context.recipe.parallel.compile
    return Profiler(
        Traced(learner.model, instruments.clock, context.device, compiled=compiled),
        windows_of(context.recipe.profile, world.rank),
        Requests(world.scratch, world.rank),
        TraceWriter(run, world, instruments.events),
    )


def choose_objective(recipe: Recipe, code: OwnCode | None = None) -> Objective:
    """What the steps make smaller: the user's own loss; of pairs their preference, of anything else that of the next
    token."""
    from launchyard.training.loss import Regularisers
    from launchyard.training.objectives.next_token import NextToken
    from launchyard.training.objectives.own import OwnLoss

    if code is not None and code.has("loss"):
        return OwnLoss(code)
    if recipe.data.kind != "preference":
        return NextToken(Regularisers(recipe.train.label_smoothing, recipe.train.z_loss))
    from launchyard.training.objectives.preference import PreferenceLoss

    wanted = recipe.preference or PreferenceConfig()
    is_simpo = wanted.loss == "simpo"
    return PreferenceLoss(
        wanted.loss,
        beta=wanted.beta or (2.0 if is_simpo else 0.1),
        label_smoothing=wanted.label_smoothing,
        target_margin=(1.0 if wanted.target_margin is None else wanted.target_margin) if is_simpo else 0.0,
    )


def open_checkpointer(run: RunDir, context: Context, instruments: Instruments, rows: Rows) -> Checkpointer:
    import torch

    from launchyard.training.checkpoint.checkpointer import Checkpointer
    from launchyard.training.checkpoint.commit import Identity

    recipe = context.recipe
    workload = context.workload

    def before_commit() -> None:  # rows first: a checkpoint must never be ahead of the history
        for appender in rows.appenders:
            appender.flush(sync=True)
        instruments.events.flush(sync=True)

    frozen = frozen_names(workload.model, workload.adapter)
    identity = Identity(
        model=workload.model.model_dump(mode="json"),
        data_digest=workload.data.digest,
        recipe_hash=recipe_hash(recipe),
        versions={"torch": torch.__version__, "python": sys.version.split()[0]},
        frozen=frozen,
        run_id=workload.run_id,
        base=base_of(recipe, workload) if frozen else {},
    )
    checkpointer = Checkpointer(
        run,
        context.world,
        identity,
        keep=recipe.checkpoint.keep,
        background=recipe.checkpoint.async_save,
        on_event=SaveEvents(instruments.events, instruments.exporter),
        before_commit=before_commit,
        rows=rows.entries,
    )
    checkpointer.cleaner.reach = recipe.stability.reach
    checkpointer.unwritten = lambda: instruments.events.unwritten() | rows.unwritten()
    return checkpointer


def base_of(recipe: Recipe, workload: Workload) -> JsonObject:
    """Where the parameters that do not train come from, and the form that they have."""
    base: JsonObject = {"init_from": recipe.model.init_from, "seed": recipe.train.seed}
    if recipe.model.init_from:
        from launchyard.model.weights.load import sampled_digest
        from launchyard.training.build import open_initial_weights

        base["digest"] = sampled_digest(open_initial_weights(recipe.model.init_from, workload.model))
    if workload.adapter is None:
        return base
    form = form_of(workload.adapter)
    adapter = workload.adapter.model_dump(mode="json", exclude_defaults=True)
    computed = PRECISIONS[recipe.train.precision].computed
    if computed != "float32":
        base["frozen_dtype"] = {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}[computed]
    return base | {"adapter": adapter} | ({} if form is None else {"quantize": form})


def choose_device(recipe: Recipe, world: World) -> torch.device:
    """This worker's device; asking for a GPU that is not there is an error, never a quiet CPU."""
    import torch

    requested = recipe.train.device
    if requested == "cuda" or (requested == "auto" and torch.cuda.is_available()):
        if world.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"worker {world.local_rank} of {world.host} found {torch.cuda.device_count()} GPUs; "
                "ask for fewer with --gpus-per-node, or for the CPU with train.device=cpu"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    if requested == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"torch finds no GPU of Apple on {world.host}; use train.device=cpu")
        return torch.device("mps")
    return torch.device("cpu")


def load_learner(
    context: Context, checkpointer: Checkpointer, instruments: Instruments, code: OwnCode | None = None
) -> tuple[Learner, str | None]:
    """Model, optimizer and counters: of the newest state there is, and its source; else first weights, and None."""
    from launchyard.training.build import fill_weights
    from launchyard.training.checkpoint.state import TrainState, shards
    from launchyard.training.loop.parts import Learner

    began = time.perf_counter()
    model, optimizer = _unfilled(context, code)
    reading = ReadingEvents(instruments.events, instruments.clock)
    held = shards(model, optimizer)
    if (every := context.recipe.checkpoint.snapshot_steps) is not None:
        checkpointer.keep_in_memory(held, every)
    found = checkpointer.restore(held)
    if found is None:
        return _with_first_weights(context, model, optimizer, reading), None
    adapter = context.workload.adapter
    fill_weights(model, context.workload.model, context.recipe, adapter=adapter, only_frozen=True, on_progress=reading)
    optimizer.begin(resumed=True)
    instruments.exporter.set("trainer_checkpoint_restore_duration_seconds", time.perf_counter() - began)
    instruments.exporter.add("trainer_restores_total", source=found.source)
    return Learner(model, optimizer, TrainState.from_json(found.train_state)), found.source


def first_learner(context: Context, code: OwnCode | None = None) -> Learner:
    """Model, optimizer and counters before the first step; no checkpoint is looked for."""
    return _with_first_weights(context, *_unfilled(context, code), None)


def _unfilled(context: Context, code: OwnCode | None) -> tuple[nn.Module, Optimizer]:
    from launchyard.training.build import build_model
    from launchyard.training.optim.averaged import with_average
    from launchyard.training.optim.own.optimizer import OwnOptimizer
    from launchyard.training.precision.rounded import open_optimizer

    recipe = context.recipe
    workload = context.workload
    world_size = context.world.world_size
    model = build_model(
        workload.model, recipe, world_size=world_size, device=context.device, fill=False, adapter=workload.adapter
    )
    if code is not None and code.has("optimizer"):
        optimizer: Optimizer = OwnOptimizer(model, recipe.optimizer, code)
    else:
        optimizer = open_optimizer(model, recipe)
    return model, with_average(optimizer, model, recipe.train.ema_decay)


def _with_first_weights(
    context: Context, model: nn.Module, optimizer: Optimizer, on_progress: OnProgress | None
) -> Learner:
    from launchyard.training.build import fill_weights
    from launchyard.training.checkpoint.state import first_state
    from launchyard.training.loop.parts import Learner

    recipe = context.recipe
    fill_weights(model, context.workload.model, recipe, adapter=context.workload.adapter, on_progress=on_progress)
    optimizer.begin(resumed=False)
    return Learner(model, optimizer, first_state(recipe.train.precision))


def open_readers(context: Context, on_event: OnEvent, run: RunDir | None = None, code: OwnCode | None = None) -> Data:
    """Readers of the data's kinds: of the training data, and of each set of held-out data.

    run: has the tokenizer by which the bytes of held-out tokens are counted; None: they are not. code: may make the
    training data itself.
    """
    from launchyard.training.data.cache.chunk_cache import ChunkCache
    from launchyard.training.data.open_reader import open_reader
    from launchyard.training.loop.parts import Data

    workload = context.workload
    chunks = ChunkCache(
        workload.storage.cache,
        quota=workload.storage.cache_bytes,
        share=context.world.local_world_size,
        warn=partial(_warn, on_event),
    )
    size = context.sizes.global_batch_size
    opened = partial(open_reader, recipe=context.recipe, global_batch_size=size, cache=chunks)
    if code is not None and code.has("batches"):
        reader = open_own_reader(context, code)
    else:
        reader = opened(workload.data.train, training=True, warn=partial(_warn, on_event))
    main = {MAIN: workload.data.validation} if workload.data.validation else {}
    held_out = {name: opened(sources, training=False) for name, sources in {**main, **workload.data.sets}.items()}
    if run is None or not held_out:
        return Data(reader, held_out)
    return Data(reader, held_out, cache(partial(open_byte_lengths, run, context, on_event)))


def _warn(on_event: OnEvent, text: str) -> None:
    on_event(events.DATA_TROUBLE, message=text)


def open_own_reader(context: Context, code: OwnCode) -> Reader:
    """Of the samples that the user's own code makes."""
    from launchyard.training.batching import ramp_unit, samples_of
    from launchyard.training.data.mixed_reader import RampedReader
    from launchyard.training.data.own.reader import OwnReader

    recipe = context.recipe
    ramped = bool(recipe.train.batch_size_ramp)
    reader = OwnReader(
        code,
        n_samples=samples_of(context.workload.data.train[0], recipe.data.seq_len),
        global_batch_size=ramp_unit(recipe.train) if ramped else context.sizes.global_batch_size,
        seq_len=recipe.data.seq_len,
        seed=recipe.data.seed,
        vocab_size=context.workload.model.vocab_size,
    )
    return RampedReader(reader, recipe.train) if ramped else reader


def open_byte_lengths(run: RunDir, context: Context, on_event: OnEvent) -> torch.Tensor | None:
    """Bytes of the text of each token, (V,) int64; None of pairs, and where the tokenizer does not tell."""
    import torch

    from launchyard.training.distributed import from_rank_zero

    workload = context.workload
    if context.recipe.data.kind == "preference" or workload.data.tokenizer is None:
        return None
    lengths: list[int] | None = None
    if context.world.is_main:
        from launchyard.model.text.tokenizer import Tokenizer

        try:
            lengths = Tokenizer.load(run.path(layout.TOKENIZER_FOLDER)).byte_lengths(workload.model.padded_vocab_size)
        except (OSError, ValueError, ImportError) as error:
            on_event(events.DATA_TROUBLE, message=f"bits per byte are not measured: {error}")
    lengths = from_rank_zero(lengths)
    return None if lengths is None else torch.tensor(lengths, device=context.device)
