"""From wishes and a place to the keys of a recipe, sized by the plan: model, batch, precision, checkpointing.

Writes nothing. Each choice has a reason, for the one who goes on with the file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launchyard.errors import UserError, user_errors
from launchyard.launcher.backends.hardware import HostFacts
from launchyard.launcher.format import count, size
from launchyard.launcher.new.place import Spot
from launchyard.launcher.new.wishes import Budget, Wishes, clock_time, usual_tokenizer
from launchyard.launcher.plan.plan import Plan, PlanError
from launchyard.launcher.plan.planner import make_plan
from launchyard.launcher.recipe.load import check_recipe, read_recipe
from launchyard.launcher.runs.models import find_model
from launchyard.launcher.submit.code import take_snapshot
from launchyard.launcher.submit.launch import Ready, new_place, planned, ready_at
from launchyard.model import cost, zoo
from launchyard.model.weights.source import read_config
from launchyard.storage.damage import JsonObject
from launchyard.training.data.dataset_spec import vocab_size_of
from launchyard.training.data.index import is_prepared
from launchyard.training.recipe import apply_overrides

SOURCE = "launch new"
MOST_PASSES = 16  # Muennighoff et al. 2023: four are nearly as good as new text, and beyond 16 little is left to learn
UNKNOWN_BYTES = 8 << 30  # of a worker of which nothing is known
FILLED = 0.85  # of a worker's memory; the rest is for what no plan sees
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022: about as many make the most of a budget
_UPDATES = 1000  # about as many updates, unless they would be tiny or huge
MOST_TOKENS_PER_STEP = 1 << 19
MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
# The shape of the quickstart: below the smallest preset, whose tables of 50,277 ids alone take 13 million parameters.
TINY: JsonObject = {
    "family": "gpt_neox", "dim": 192, "n_layers": 4, "n_heads": 6, "ffn_dim": 768, "max_seq_len": 512,
    "rope_fraction": 0.25, "norm": "layernorm", "activation": "gelu", "gated_mlp": False, "parallel_residual": True,
    "attention_bias": True, "mlp_bias": True,
}  # fmt: skip
LADDER = ("pythia-14m", "pythia-70m", "pythia-160m", "pythia-410m", "pythia-1b", "pythia-2.8b", "pythia-6.9b")
# Learning rates by the largest number of parameters for which each serves, after GPT-3 and Pythia.
RATES = ((20e6, 1e-3), (250e6, 6e-4), (700e6, 3e-4), (math.inf, 2e-4))
KEEP = "makes tokens of the text; keep it with the model"
QUICKSTARTS = "2,048 pairs of bytes, from the quickstart, for any text"


@dataclass(frozen=True)
class Draft:
    """The keys of a recipe, and the reason of some. `plan`: what follows from them in the place."""

    raw: JsonObject
    reasons: dict[str, str]
    plan: Plan


@dataclass
class _Keys:
    """A recipe in the making."""

    raw: JsonObject = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: object, reason: str = "") -> None:
        self.raw = apply_overrides(self.raw, {key: value})
        if reason:
            self.reasons[key] = reason


def draft_recipe(wishes: Wishes, spot: Spot) -> Draft:
    """The recipe that fits. UserError or RecipeErrors for wishes that cannot be had there, with what can."""
    problem = None
    for model in _models(wishes, spot):
        keys = _first_keys(wishes, spot, model)
        ready = _ready(keys, spot, wishes.budget)
        if wishes.task == "pretrain" and _with_vocabulary(keys, ready):
            ready = _ready(keys, spot, wishes.budget)
        fitted = _fit(keys, ready, wishes, spot)
        if fitted is not None:
            return fitted
        problem = problem or _too_large(ready, wishes, spot)
    assert problem is not None
    raise problem


def _too_large(ready: Ready, wishes: Wishes, spot: Spot) -> UserError:
    need = ready.plan.memory["total"]
    has = size(_memory(ready.plan, spot))
    what = f"{wishes.model or 'the model'} does not fit: a worker needs about {size(need)}, and has {has}"
    if wishes.task == "finetune":
        return UserError(f"--model: {what}", hint="--method qlora needs the least; or a smaller model, or more GPUs")
    return UserError(f"--model: {what}", hint="a smaller preset (launch models), more GPUs, or another --cluster")


# -- the model -------------------------------------------------------------------------------------------------------
def _models(wishes: Wishes, spot: Spot) -> Iterator[str | None]:
    """What to try, the largest first that budget and data feed. None: the tiny shape, or the weights to finetune."""
    if wishes.task == "finetune" or wishes.model is not None:
        yield wishes.model
        return
    if any(is_prepared(path) and vocab_size_of(path) is None for path in wishes.data):
        raise UserError(
            "--model is missing: the data does not say how many ids its vocabulary has",
            hint="name the preset with whose tokenizer it was made: launch models",
        )
    tiny = _ready(_first_keys(wishes, spot, None), spot, wishes.budget)
    fed = _parameters_fed(wishes.budget, _speed(wishes, spot), spot)
    if wishes.budget.unit != "tokens":
        fed = min(fed, tiny.plan.data.n_tokens * MOST_PASSES / TOKENS_PER_PARAMETER)
    fields = {"vocab_size": tiny.data.vocab_size} if tiny.data.vocab_size else {}
    for name in reversed(LADDER):
        whole = zoo.make_config(preset=name, fields={}, hf=None)
        fits = fields if fields.get("vocab_size", 0) <= whole.vocab_size else {}
        if tiny.plan.n_params < cost.n_params(zoo.make_config(preset=name, fields=fits, hf=None)) <= fed:
            yield name
    yield None


def _speed(wishes: Wishes, spot: Spot) -> float:
    from launchyard.launcher.backends.hardware import probe_host

    cpus = spot.cluster.node.cpus or probe_host(gpus=False).cpus
    return spot.flops(wishes.nodes, cpus)


def _parameters_fed(budget: Budget, speed: float, spot: Spot) -> float:
    """Parameters for which a budget has tokens enough; a budget of steps or epochs counts as a day, or 30 minutes."""
    if budget.unit == "tokens":
        return budget.amount / TOKENS_PER_PARAMETER
    seconds = budget.amount if budget.unit == "seconds" else (86400 if spot.has_gpus else 1800)
    return math.sqrt(seconds * speed / (6 * TOKENS_PER_PARAMETER))


# -- keys ------------------------------------------------------------------------------------------------------------
def _first_keys(wishes: Wishes, spot: Spot, model: str | None) -> _Keys:
    """All keys but those that the plan decides."""
    keys = _Keys()
    keys.put("name", wishes.name, "of its runs: launch status")
    if spot.scheduled:
        keys.put("resources.nodes", wishes.nodes, _each(spot))
    if wishes.time_limit:
        keys.put("resources.time_limit", wishes.time_limit, "of one attempt; the run goes on in the next")
    if wishes.task == "pretrain":
        _pretraining(keys, wishes, spot, model)
    else:
        _finetuning(keys, wishes, spot)
    keys.put("checkpoint.every_minutes", 10 if spot.has_gpus else 5, "what a crash can cost")
    keys.put("checkpoint.export", True, "at the end the weights are written as a Hugging Face folder, too")
    return keys


def _each(spot: Spot) -> str:
    kind = "GPU" if spot.has_gpus else "CPU worker"
    return f"each with {spot.workers} {kind}{'s' if spot.workers > 1 else ''}"


def _pretraining(keys: _Keys, wishes: Wishes, spot: Spot, model: str | None) -> None:
    if model is None:
        keys.put("model", dict(TINY), "a few million parameters, as many as the budget feeds")
        keys.put("data", {})
    else:
        why = "chosen by --model" if wishes.model else "the largest that the budget has tokens for (20 a parameter)"
        keys.put("model.preset", model, why)
    if wishes.tokenizer:
        why = f"{QUICKSTARTS}; a larger one serves much text better" if wishes.tokenizer == usual_tokenizer() else KEEP
        keys.put("tokenizer", wishes.tokenizer, why)
    keys.put("data.source", wishes.sources, "text, which is tokenized once and cached, or a folder of launch prepare")
    keys.put("data.seq_len", _seq_len(spot, model), "tokens of a sequence: what the model sees at once")
    if wishes.tokenizer:
        keys.put("data.validation", 0.02, "share of the text that is held out and never trained on")


def _seq_len(spot: Spot, model: str | None) -> int:
    most = zoo.make_config(preset=model, fields={}, hf=None).max_seq_len if model else int(TINY["max_seq_len"])
    return min(most, 2048 if spot.has_gpus else 256)


def _row_len(wishes: Wishes, spot: Spot) -> int:
    wanted = 1024 if spot.has_gpus else 512
    with user_errors("--model"):
        limit = read_config(find_model(str(wishes.model))).position_limit
    return wanted if limit is None else min(wanted, limit)


def _finetuning(keys: _Keys, wishes: Wishes, spot: Spot) -> None:
    """As the bundled recipe of the method has it."""
    like = read_recipe(f"finetune/{wishes.method}").document.value
    keys.put("model.init_from", wishes.model, "the weights to start from; its tokenizer and chat template come along")
    if "adapter" in like:
        keys.put("adapter", like["adapter"], "what trains beside the frozen weights: launch keys adapter")
    keys.put("data.kind", "instruct", "rows with prompt and answer, or messages; only answers are trained for")
    keys.put("data.source", wishes.sources, "JSON lines, JSON, parquet or a folder of them")
    keys.put("data.seq_len", _row_len(wishes, spot), "tokens of a sequence; no row may be longer")
    keys.put("data.validation", 0.05, "share of the rows that is held out")
    keys.put("optimizer", like["optimizer"], f"of the bundled recipe finetune/{wishes.method}")
    keys.put("schedule", like["schedule"], "rises in the first part, falls from there on")


def _ready(keys: _Keys, spot: Spot, budget: Budget) -> Ready:
    """The launch of a draft with the smallest steps: finds data, weights and machine."""
    world = spot.workers * int(keys.raw.get("resources", {}).get("nodes", 1))
    length = {"train.max_epochs": budget.amount} if budget.unit == "epochs" else {"train.max_steps": 1}
    least = {"train.global_batch_size": world, "train.micro_batch_size": 1, **length}
    loaded = check_recipe(apply_overrides(keys.raw, least), {}, source=SOURCE)
    run = new_place(spot.cluster, None, "new")
    return ready_at(run, loaded, spot.cluster, run_id="new", code=take_snapshot(Path.cwd()))


# -- sizes -----------------------------------------------------------------------------------------------------------
def _fit(keys: _Keys, ready: Ready, wishes: Wishes, spot: Spot) -> Draft | None:
    """The draft with its length, batch and savings; None if no savings make it fit."""
    if wishes.task == "pretrain":
        _rates(keys, ready.plan.n_params)
    tokens = _length(keys, wishes, ready, spot)
    _batch(keys, ready, wishes, tokens)
    if spot.has_gpus and spot.bf16:
        keys.put("train.precision", "bf16", "16 bits to compute with, weights and optimizer in 32")
    elif spot.has_gpus:
        keys.put("train.precision", "fp16-mixed", "this GPU knows no bf16; the loss is scaled")
    _validations(keys, ready, wishes)
    for checkpointing in ("none", "full"):
        if checkpointing != "none":
            keys.put("parallel.activation_checkpointing", checkpointing, "a third slower, and fits into the memory")
        for micro in _micro_batches(keys, ready):
            plan = _planned(keys, {"train.micro_batch_size": micro}, ready)
            memory = _memory(plan, spot)
            if plan.memory["total"] <= FILLED * memory:
                takes = f"sequences at once: ~{size(plan.memory['total'])} of {size(memory)} a worker"
                keys.put("train.micro_batch_size", micro, takes)
                return Draft(_ordered(keys.raw), keys.reasons, plan)
    return None


def _memory(plan: Plan, spot: Spot) -> int:
    """Bytes that a worker has."""
    return plan.memory_available or spot.memory or UNKNOWN_BYTES


def _with_vocabulary(keys: _Keys, ready: Ready) -> bool:
    """A preset for many ids has a table row for each: none that the tokenizer never uses. Returns True if it had."""
    has = ready.data.vocab_size
    if has is None or "preset" not in keys.raw["model"] or has >= ready.plan.model.vocab_size:
        return False
    keys.put("model.vocab_size", has, "as many ids as the tokenizer has")
    return True


def _rates(keys: _Keys, n_params: int) -> None:
    rate = next(rate for most, rate in RATES if n_params <= most)
    keys.put("optimizer.lr", rate, f"usual for {count(n_params)} parameters; the first to tune: launch sweep")
    keys.put("optimizer.betas", [0.9, 0.95])
    keys.put("optimizer.weight_decay", 0.1)
    keys.put("schedule.warmup_steps", 0.02, "share of the steps in which the learning rate rises")
    keys.put("schedule.min_lr", rate / 10, "where its cosine ends")


def _length(keys: _Keys, wishes: Wishes, ready: Ready, spot: Spot) -> float:
    """Puts the length; about the tokens of it."""
    budget = wishes.budget
    data = ready.plan.data.n_tokens
    if budget.unit == "steps":
        keys.put("train.max_steps", int(budget.amount), "optimizer steps")
        return math.nan
    if budget.unit == "epochs":
        keys.put("train.max_epochs", budget.amount, "passes over the data")
        return budget.amount * data
    if budget.unit == "tokens":
        tokens = budget.amount
        keys.put("train.max_tokens", int(tokens), f"{tokens / data:.2g} passes over the data")
        return tokens
    keys.put("train.max_time", clock_time(budget.amount), "of training: then it ends, saved, though steps are left")
    speed = _speed(wishes, spot) / ready.plan.flops_per_token
    could = _rounded(budget.amount * speed)
    tokens = max(min(could, MOST_PASSES * data), ready.plan.batch.tokens_per_step)
    if tokens < could:
        keys.put("train.max_tokens", int(tokens), f"{MOST_PASSES} passes: more teach little, in {budget.text} or not")
        return tokens
    guess = f"{budget.text} at a guess of {count(speed)} tokens/s, {tokens / data:.2g} passes; a run shows its ETA"
    keys.put("train.max_tokens", int(tokens), guess)
    return tokens


def _rounded(number: float) -> float:
    """Two digits."""
    digits = 10.0 ** (math.floor(math.log10(max(1.0, number))) - 1)
    return max(1.0, math.floor(number / digits) * digits)


def _batch(keys: _Keys, ready: Ready, wishes: Wishes, tokens: float) -> None:
    """The global batch: a power of two for each worker."""
    world = ready.plan.world_size
    if wishes.task == "finetune":
        wanted = 32 if ready.plan.device == "cuda" else 4
    else:
        usual = min(1 << (18 if ready.plan.device == "cuda" else 14), ready.plan.data.n_tokens / 20)
        of_step = min(MOST_TOKENS_PER_STEP, tokens / _UPDATES) if math.isfinite(tokens) else usual
        wanted = max(8, int(of_step / ready.plan.batch.seq_len))
    per_worker = 1 << max(0, math.floor(math.log2(max(1, wanted / world))))
    keys.put("train.global_batch_size", world * per_worker, "sequences a step, over all workers; it decides the result")


def _micro_batches(keys: _Keys, ready: Ready) -> list[int]:
    each = int(keys.raw["train"]["global_batch_size"]) // ready.plan.world_size
    return [size for size in MICRO_BATCHES if size <= each and each % size == 0]


def _validations(keys: _Keys, ready: Ready, wishes: Wishes) -> None:
    if not ready.plan.data.validation and "validation" not in keys.raw["data"]:
        return
    if wishes.task == "finetune":
        keys.put("validation.at_start", True, "the loss before anything is trained, to compare with")
    steps = _planned(keys, {"train.micro_batch_size": 1}, ready).max_steps
    keys.put("validation.every_steps", max(5, steps // 20), "the curve that tells when to stop")


def _planned(keys: _Keys, changes: JsonObject, ready: Ready) -> Plan:
    loaded = check_recipe(apply_overrides(keys.raw, changes), {}, source=SOURCE)
    recipe = loaded.recipe.model_copy(update={"model": _found_weights(loaded.recipe.model, ready)})
    host: HostFacts = ready.host
    try:
        return make_plan(
            recipe,
            cluster=ready.cluster,
            run_id="new",
            run_url=ready.run.url,
            data=planned(ready.data),
            host=host,
            init=ready.init,
        )
    except PlanError as error:
        raise UserError(str(error)) from error


def _found_weights(model: object, ready: Ready) -> object:
    """The section with the place of the weights, which the first draft has found."""
    found = ready.loaded.recipe.model.init_from
    return model if found is None else ready.loaded.recipe.model


_ORDER = (
    *("name", "resources", "model", "adapter", "tokenizer", "data", "train", "optimizer", "schedule", "parallel"),
    *("checkpoint", "validation"),
)


def _ordered(raw: JsonObject) -> JsonObject:
    first = ("global_batch_size", "micro_batch_size", "max_steps", "max_tokens", "max_epochs", "max_time", "precision")
    train = {key: raw["train"][key] for key in first if key in raw["train"]}
    return {key: train if key == "train" else raw[key] for key in _ORDER if key in raw and raw[key] != {}}
