"""The composition root: everything that the loop works with, put together from a run's recipe and plan."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import TYPE_CHECKING, Any

from launchyard.run import layout
from launchyard.run.append import Appender
from launchyard.run.events import DATA_TROUBLE
from launchyard.run.rundir import RunDir
from launchyard.storage import retry
from launchyard.training.batching import count_steps, cut_batch
from launchyard.training.distributed import World
from launchyard.training.recipe import Recipe
from launchyard.training.spec import Workload
from launchyard.training.stop import StopFlag
from launchyard.training.telemetry.events import SaveEvents, StoreEvents
from launchyard.training.telemetry.phases import PhaseClock
from launchyard.training.telemetry.telemetry import serve_metrics

if TYPE_CHECKING:
    from launchyard.training.loop import Parts


def recipe_hash(recipe: Recipe) -> str:
    """Changes with what decides the weights, and not with where or in how many pieces a run is made."""
    deciding = recipe.model_dump(mode="json", include={"model", "data", "train", "optimizer", "schedule"})
    for where in ("micro_batch_size", "device"):
        deciding["train"].pop(where)
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def compose(
    run: RunDir,
    world: World,
    recipe: Recipe,
    workload: Workload,
    flag: StopFlag,
    on_event: Any,
    clock: PhaseClock,
) -> tuple[Parts, bool]:
    """Everything the loop needs, with the newest whole checkpoint loaded; and whether there was one."""
    exporter = serve_metrics(run, world, recipe)
    import torch

    from launchyard.training.distributed import connect
    from launchyard.training.loop import Meter, Parts
    from launchyard.training.parallel import needs_sharding, time_collectives
    from launchyard.training.telemetry.telemetry import introduce, make_recorder

    device = choose_device(recipe, world)
    torch.manual_seed(recipe.train.seed)
    if needs_sharding(recipe.train, world.world_size):
        connect(world, device)
    retry.subscribe(StoreEvents(run, on_event, exporter))
    rows, validation_rows = open_rows(run, world)
    checkpointer = open_checkpointer(
        run, world, recipe, workload, SaveEvents(on_event, exporter), rows, validation_rows, on_event
    )
    model, optimizer, state, resumed = load_state(recipe, workload, world, device, checkpointer, exporter)
    reader, held_out = open_readers(recipe, workload, world, on_event)
    if device.type == "cpu":
        time_collectives(model, clock.waits)
    max_steps = count_steps(recipe, workload.data.n_tokens)
    introduce(exporter, run, world, recipe, workload, max_steps=max_steps)
    recorder = make_recorder(
        run, world, recipe, workload, clock=clock, exporter=exporter, on_event=on_event, device=device, rows=rows,
        cache=reader.cache, start_step=state.step,
    )  # fmt: skip
    parts = Parts(
        world=world,
        recipe=recipe,
        workload=workload,
        batch=cut_batch(recipe.train, world.world_size),
        max_steps=max_steps,
        device=device,
        model=model,
        optimizer=optimizer,
        state=state,
        reader=reader,
        held_out=held_out,
        checkpointer=checkpointer,
        flag=flag,
        clock=clock,
        exporter=exporter,
        rows=rows,
        validation_rows=validation_rows,
        on_event=on_event,
        meter=Meter(),
        recorder=recorder,
    )
    return parts, resumed


def open_rows(run: RunDir, world: World) -> tuple[Appender | None, Appender | None]:
    """Where rank 0 writes its rows: of steps, and of validations."""
    if not world.leads:
        return None, None
    every = 0.0 if run.local else 10.0
    steps = Appender(run, layout.rows(layout.STEPS, world.attempt), flush_seconds=every)
    validation = Appender(run, layout.rows(layout.VALIDATION, world.attempt), flush_seconds=every)
    return steps, validation


def open_checkpointer(
    run: RunDir, world: World, recipe: Recipe, workload: Workload, on_event: Any, *appenders: Any
) -> Any:
    import torch

    from launchyard.training.checkpoint.checkpointer import Checkpointer
    from launchyard.training.checkpoint.commit import Identity

    def before_commit() -> None:  # rows first: a checkpoint must never be ahead of the history
        for appender in appenders:
            if appender is not None:
                appender.flush(sync=True)

    identity = Identity(
        model=workload.model.model_dump(mode="json"),
        data_digest=workload.data.digest,
        recipe_hash=recipe_hash(recipe),
        versions={"torch": torch.__version__, "python": sys.version.split()[0]},
    )
    return Checkpointer(
        run,
        world,
        identity,
        keep=recipe.checkpoint.keep,
        background=recipe.checkpoint.async_save,
        on_event=on_event,
        before_commit=before_commit,
    )


def choose_device(recipe: Recipe, world: World) -> Any:
    """This worker's device; asking for a GPU that is not there is an error, never a quiet CPU."""
    import torch

    wanted = recipe.train.device
    if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()):
        if world.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"worker {world.local_rank} of {world.host} found {torch.cuda.device_count()} GPUs; "
                "ask for fewer with --gpus-per-node, or for the CPU with train.device=cpu"
            )
        torch.cuda.set_device(world.local_rank)
        return torch.device("cuda", world.local_rank)
    return torch.device("cpu")


def load_state(
    recipe: Recipe, workload: Workload, world: World, device: Any, checkpointer: Any, exporter: Any
) -> tuple[Any, Any, Any, bool]:
    """Model, optimizer and counters: of the newest checkpoint, or first weights if there is none."""
    from launchyard.training.build import build_model, fill_weights
    from launchyard.training.checkpoint.state import TrainState, shards
    from launchyard.training.optim.adamw import make_optimizer

    began = time.perf_counter()
    model = build_model(workload.model, recipe, world_size=world.world_size, device=device, fill=False)
    optimizer = make_optimizer(model, recipe.optimizer)
    manifest = checkpointer.load_newest(shards(model, optimizer))
    if manifest is None:
        fill_weights(model, workload.model, recipe)
        return model, optimizer, TrainState(), False
    exporter.set("trainer_checkpoint_restore_duration_seconds", time.perf_counter() - began)
    return model, optimizer, TrainState.from_json(manifest.train_state), True


def open_readers(recipe: Recipe, workload: Workload, world: World, on_event: Any) -> tuple[Any, Any]:
    from launchyard.training.data.cache.chunk_cache import ChunkCache
    from launchyard.training.data.reader import TokenReader
    from launchyard.training.data.token_store import TokenStore

    size, data = recipe.train.global_batch_size, recipe.data
    common: dict[str, Any] = {"seq_len": data.seq_len, "global_batch_size": size, "seed": data.seed}
    train, held = workload.data.train, workload.data.validation
    weights = [source.weight for source in train]
    cache = ChunkCache(
        workload.storage.cache,
        quota=workload.storage.cache_bytes,
        share=world.local_world_size,
        say=lambda text: on_event(DATA_TROUBLE, message=text),
    )
    stores = [TokenStore(source.folder, cache=cache) for source in train]
    for found in stores:
        if not found.verifiable:
            text = f"{found.folder} has no digests.json: only the sizes and headers of its chunks can be verified"
            on_event(DATA_TROUBLE, message=text)
    reader = TokenReader(stores, weights=weights, shuffle=data.shuffle, **common)
    if not held:
        return reader, None
    return reader, TokenReader([TokenStore(source.folder, cache=cache) for source in held], shuffle=False, **common)
