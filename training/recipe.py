"""The recipe: every key a user may write, with its type, default and meaning. Light: pydantic and stdlib only.

Files, `extends`, overrides and line numbers belong to the launcher. The division of a step among workers follows from
the recipe and the world size, see training/batching.py.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.run import layout
from launchyard.run.layout import RECIPE
from launchyard.run.records import Job
from launchyard.run.rundir import RunDir
from launchyard.storage.damage import JsonObject
from launchyard.storage.errors import DamagedError

# Keys of a section of which a recipe holds one at most.
EITHER_OR = {"train": ("max_steps", "max_tokens", "max_epochs"), "data": ("source", "mixture")}
DataKind = Literal["tokens", "instruct", "preference"]
MIN_SHARE = 1e-5  # of a source in a mixture: a smaller one could not be met to better than a tenth


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ResourcesConfig(Section):
    """The share of a cluster that one attempt takes."""

    nodes: int = Field(default=1, ge=1, description="Machines.")
    gpus_per_node: int | None = Field(default=None, ge=0, description="GPUs of each node; default: all it has.")
    nproc_per_node: int | None = Field(
        default=None, ge=1, description="Workers on each node; default: one a GPU, or one on a CPU-only node."
    )
    min_nodes: int | None = Field(
        default=None, ge=1, description="Ray: go on with as few machines when others are lost; default: nodes."
    )
    time_limit: str | None = Field(default=None, description="Wall time of one attempt, e.g. 12:00:00 or 2-00:00:00.")
    max_failures: int = Field(
        default=3, ge=0, description="Failed attempts in a row without a new checkpoint before the run is given up."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError(f"min_nodes: {self.min_nodes} is more than nodes, {self.nodes}")
        return self


class _ModelSource(Section):
    preset: str | None = Field(default=None, description="A named shape, see `launch models`.")
    init_from: str | None = Field(
        default=None,
        description="Weights to start from: an HF directory, a checkpoint or a run, anywhere; or a model of the hub "
        "that `launch download` got.",
    )


# Every knob of ModelConfig, each optional here: set over the preset, or all of them without one.
ModelSection: type[_ModelSource] = create_model(
    "ModelSection",
    __base__=_ModelSource,
    __doc__="The model: a preset, weights to start from, or its knobs one by one.",
    **{
        key: (field.annotation | None, Field(default=None, description=field.description))  # type: ignore[operator]
        for key, field in ModelConfig.model_fields.items()
    },  # type: ignore[call-overload]
)


class MixedSource(Section):
    """One source of a mixture."""

    source: str | list[str] = Field(description="As `data.source`: prepared folder or URL, or text.")
    kind: DataKind | None = Field(default=None, description="Default: data.kind.")
    weight: float = Field(gt=0, description="Frequency relative to the others; weights may have any sum.")


class MixtureStage(Section):
    """Other weights of a mixture from a step on."""

    from_step: int = Field(ge=0, description="Finished steps when these weights begin; 0: from the beginning.")
    weights: list[Annotated[float, Field(ge=0)]] = Field(
        min_length=2, description="One for each source of data.mixture, in its order; 0: nothing of it is read."
    )


class DataConfig(Section):
    """The tokens. A source is a prepared folder (`launch prepare`), litdata chunks, or text that is prepared first."""

    kind: DataKind = Field(
        default="tokens",
        description="tokens: next-token prediction on a stream of text; instruct: rows of instructions or "
        "conversations, of which the answers are trained for; preference: pairs of a better and a worse answer.",
    )
    source: str | list[str] | None = Field(
        default=None, description="Prepared folder or URL; or text files, folders, globs."
    )
    mixture: list[MixedSource] | None = Field(
        default=None, min_length=1, description="Instead of `source`: several, each with a weight and its own epochs."
    )
    mixture_schedule: list[MixtureStage] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Weights that replace those of `mixture` from a step on; each source goes on where it was. A "
        "resume may change those of steps to come.",
    )
    seq_len: int = Field(
        default=1024,
        ge=1,
        description="Tokens a sequence; each reads one more as its last label. preference: of both answers together.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of the order in which samples are read.")
    shuffle: bool = Field(default=True, description="Read in a seeded random order, or as the tokens lie.")
    validation: float | str | None = Field(
        default=None, description="Share of documents held out when text is prepared (0.05), or a prepared folder."
    )
    packing: bool = Field(
        default=True, description="instruct: a sequence holds as many rows as fit, kept apart; false: one row."
    )
    too_long: Literal["drop", "cut-prompt", "cut-answer"] = Field(
        default="drop",
        description="instruct: what happens to rows of more than seq_len + 1 tokens. cut-prompt: the prompt loses its "
        "beginning; cut-answer: the answer loses its end, and then does not end. Also of pairs that are too long.",
    )
    style: str | None = Field(
        default=None, description="instruct: a prompt style by name; default: the chat template of the tokenizer."
    )
    template: str | None = Field(
        default=None,
        description="instruct: a Jinja chat template, as text or a .jinja file; default: the tokenizer's.",
    )
    columns: dict[str, str] | None = Field(
        default=None, description="instruct: our name of a column to its own, such as {prompt: query}."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.validation, (int, float)) and not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; a share must lie in [0, 1)")
        if self.source is not None and self.mixture is not None:
            raise ValueError("give source or mixture, not both")
        kinds = {source.kind or self.kind for source in self.mixture or ()} | {self.kind}
        if len(kinds) > 1 and "preference" in kinds:
            raise ValueError("pairs of answers (preference) are trained for in another way than text; mix them alone")
        weights = [source.weight for source in self.mixture or ()]
        for number, weight in enumerate(weights):
            if weight < MIN_SHARE * sum(weights):
                least = f"at least 1/{1 / MIN_SHARE:,.0f} of their sum"
                raise ValueError(f"mixture.{number}.weight is {weight:g} of {sum(weights):g}; each must be {least}")
        _check_stages(self.mixture_schedule or [], len(weights))
        return self


def _check_stages(stages: list[MixtureStage], n_sources: int) -> None:
    """ValueError unless every stage fits a mixture of so many sources."""
    if stages and n_sources < 2:
        raise ValueError("mixture_schedule changes the weights of data.mixture, which needs at least two sources")
    for number, stage in enumerate(stages):
        where = f"mixture_schedule.{number}"
        if len(stage.weights) != n_sources:
            raise ValueError(f"{where}.weights has {len(stage.weights)} numbers; data.mixture has {n_sources} sources")
        if number and stage.from_step <= stages[number - 1].from_step:
            before = stages[number - 1].from_step
            raise ValueError(f"{where}.from_step is {stage.from_step}, after {before}; steps must rise")
        total = sum(stage.weights)
        if not 0 < total < math.inf:
            raise ValueError(f"{where}.weights are {stage.weights}; one at least must be above zero")
        for weight in stage.weights:
            if 0 < weight < MIN_SHARE * total:
                least = f"0, or at least 1/{1 / MIN_SHARE:,.0f} of their sum"
                raise ValueError(f"{where}.weights has {weight:g} of {total:g}; each must be {least}")


class PreferenceConfig(Section):
    """The loss of `data.kind: preference`. Default: DPO.

    dpo (Rafailov et al. 2023): the chosen answer is to become likelier, beside the rejected one, than it was at the
    start. simpo (Meng et al. 2024): likelier a token than the rejected one, without a look back.
    """

    loss: Literal["dpo", "simpo"] = Field(
        default="dpo", description="dpo needs adapter.kind lora, qlora, dora or llama-adapter."
    )
    beta: float | None = Field(
        default=None, gt=0, description="Weight of log-probabilities in rewards; default: 0.1, of simpo 2."
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=0.5, description="Share of pairs that are taken to be the wrong way round."
    )
    target_margin: float | None = Field(
        default=None, ge=0, description="simpo: by how much the better reward is to be higher; default: 1."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.loss == "dpo" and self.target_margin is not None:
            raise ValueError("target_margin is for loss simpo; dpo has none")
        return self


class TrainConfig(Section):
    """Length, batch size and precision of training."""

    global_batch_size: int = Field(default=8, ge=1, description="Sequences an optimizer step, over all workers.")
    micro_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences a worker puts through one forward; default: its whole share."
    )
    max_steps: int | None = Field(default=None, ge=1, description="Optimizer steps.")
    max_tokens: int | None = Field(default=None, ge=1, description="Tokens; rounded up to whole steps.")
    max_epochs: float | None = Field(default=None, gt=0, description="Passes over the data; rounded up to whole steps.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16 computes in bfloat16 and keeps weights, optimizer and reductions in fp32."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights and of dropout.")
    max_grad_norm: float | None = Field(default=1.0, gt=0, description="Clip the global gradient norm to this.")
    load_balancing_loss: float = Field(
        default=0.0,
        ge=0,
        description="Experts: weight of the load balancing loss, which is taken of each sequence and trained for but "
        "not part of the loss that is shown; such as 0.01; default: 0, none.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto: the GPUs asked for, else the CPU."
    )

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        chosen = [key for key in ("max_steps", "max_tokens", "max_epochs") if getattr(self, key) is not None]
        if len(chosen) != 1:
            listed = " and ".join(chosen) if chosen else "none of them"
            raise ValueError(f"give exactly one of max_steps, max_tokens, max_epochs; got {listed}")
        return self


class OptimizerConfig(Section):
    """AdamW (Loshchilov & Hutter 2019); biases, norms and other vectors get no weight decay."""

    name: Literal["adamw"] = Field(default="adamw", description="The optimizer.")
    lr: float = Field(default=3e-4, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field(default=(0.9, 0.95), description="Decay rates of the two moments.")
    eps: float = Field(default=1e-8, gt=0, description="Term added to the denominator.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled decay of matrices.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {list(self.betas)}; each must lie in [0, 1)")
        return self


class ScheduleConfig(Section):
    """The learning rate as a pure function of the step."""

    name: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="Shape after the warmup.")
    warmup_steps: int | float = Field(
        default=0, ge=0, description="Steps of linear warmup, or a share of all steps < 1."
    )
    min_lr: float = Field(default=0.0, ge=0, description="Learning rate at the end.")

    @field_validator("warmup_steps")
    @classmethod
    def _whole_steps(cls, steps: float) -> float:
        if steps > 1 and steps != int(steps):
            raise ValueError(f"{steps} is neither a whole number of steps nor a share below 1")
        return steps


class ParallelConfig(Section):
    """The division of a model and a batch among the workers."""

    dp_replicate: int = Field(default=1, ge=1, description="Copies of the sharded model (HSDP).")
    dp_shard: int = Field(default=-1, ge=-1, description="Workers that share one copy (FSDP); -1: all that remain.")
    activation_checkpointing: Literal["none", "full"] = Field(
        default="none", description="full: keep only the inputs of each block and compute the rest again."
    )
    compile: bool = Field(default=False, description="torch.compile each block.")


class CheckpointConfig(Section):
    """The schedule of saves and the number of checkpoints kept."""

    every_steps: int | None = Field(default=None, ge=1, description="Permanent checkpoint every N steps.")
    every_minutes: float | None = Field(default=10.0, gt=0, description="Temporary checkpoint every T minutes.")
    keep: int | None = Field(default=None, ge=1, description="Permanent checkpoints kept; default: all.")
    async_save: bool = Field(default=True, description="Write in the background while training goes on.")
    export: bool = Field(default=False, description="Write weights as an HF directory to RUN_URL/weights at the end.")


class SampleConfig(Section):
    """A text that the model writes at the end of the run."""

    prompt: str = Field(description="Start of the text.")
    max_new_tokens: int = Field(default=64, ge=1, description="Tokens to write.")
    temperature: float = Field(default=0.8, ge=0, description="0: always the likeliest token.")
    top_k: int | None = Field(default=50, ge=1, description="Draw from the k likeliest tokens.")


class ValidationConfig(Section):
    """The schedule and size of measuring the loss on held-out data."""

    every_steps: int | None = Field(default=None, ge=1, description="Measure every N steps; default: only at the end.")
    max_batches: int | None = Field(default=None, ge=1, description="Global batches measured; default: all there are.")
    at_start: bool = Field(default=False, description="Measure before the first step too.")
    sample: SampleConfig | None = Field(default=None, description="Write a sample at the end.")


class MetricsConfig(Section):
    """Destinations of the metrics besides the run directory."""

    prometheus: bool = Field(default=True, description="Serve Prometheus metrics from every worker.")
    host: str = Field(
        default="127.0.0.1",
        description="Address that the metrics listen on; 0.0.0.0: all of the machine's, for a Prometheus elsewhere.",
    )
    peak_flops: float | None = Field(
        default=None,
        gt=0,
        description="Operations per second that one device could do, for MFU; default: known of many GPUs, in bf16.",
    )
    trackers: list[Literal["csv", "tensorboard", "wandb", "mlflow"]] = Field(
        default=[],
        description="Trackers that also get the rows; each but csv needs its package, an extra of that name.",
    )
    project: str | None = Field(default=None, description="Project or experiment of the trackers; default: the name.")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers are {self.trackers}; name each once")
        return self


class WatchdogConfig(Section):
    """Time limits after which a silent worker counts as hung: its stacks are logged, and the attempt is ended."""

    enabled: bool = Field(default=True, description="Look after the workers; the agent of each node does.")
    step_seconds: float | None = Field(
        default=None,
        gt=0,
        description="Longest time without a sign within a step; default: 45, or ten times the median step if longer.",
    )
    slow_seconds: float = Field(
        default=1800.0,
        gt=0,
        description="The same while it starts, makes its first step, saves, validates or ends; at least three times "
        "what the place lets it wait for a store.",
    )


class Recipe(Section):
    """A training run. See docs/reference/recipe.md."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name of the runs made from it.")
    after: str | None = Field(
        default=None, description="Id, name or URL of a run that has to be completed before this one starts (SLURM)."
    )
    resources: ResourcesConfig = ResourcesConfig()
    model: ModelSection
    adapter: Adapter = Adapter()
    tokenizer: str | None = Field(
        default=None,
        description="Tokenizer file (see `launch prepare`) or a folder with one; local, URL or of the hub. Default for "
        "text: that of model.init_from.",
    )
    data: DataConfig
    preference: PreferenceConfig | None = None
    train: TrainConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    metrics: MetricsConfig = MetricsConfig()
    watchdog: WatchdogConfig = WatchdogConfig()


# -- of a run --------------------------------------------------------------------------------------------------------
def recipe_of(run: RunDir, attempt: int | Job) -> Recipe:
    """The recipe by which an attempt trains: the frozen one with the overrides and the device of its job.

    attempt: its number, or its job if that may still wait in a queue. One without a claim was started by hand,
    and has no overrides. FileNotFoundError without a recipe, ValueError if it is damaged.
    """
    job = attempt if isinstance(attempt, Job) else run.job(attempt) if attempt in run.attempts() else None
    overrides = {} if job is None else {**_overrides_in(run, job), "train.device": job.device}  # as it was planned
    return Recipe.model_validate(apply_overrides(stored_recipe(run), overrides))


def stored_recipe(run: RunDir) -> dict[str, Any]:
    """The mapping that the launch has frozen. FileNotFoundError without one, ValueError if it is damaged."""
    import yaml

    where = run.path(RECIPE)
    try:
        raw = yaml.safe_load(run.read_text(RECIPE))
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{where} holds no recipe")
    return raw


def overrides_of(run: RunDir) -> dict[str, Any]:
    """All that were ever given to a run: those of its newest attempt."""
    attempts = run.attempts()
    if not attempts:
        return {}
    return _overrides_in(run, run.job(attempts[-1]))


def _overrides_in(run: RunDir, job: Job) -> JsonObject:
    if job.damaged and job.attempt > 0:  # the first attempt has none
        where = run.path(layout.job(job.attempt))
        raise DamagedError(f"{where} is damaged, and with it the keys that resumes have changed; restore the file")
    return dict(job.overrides)


def apply_overrides(raw: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's mapping with dotted keys set; {'train.max_steps': 5} sets raw['train']['max_steps'].

    A new value replaces those that it excludes (EITHER_OR): another length, a source in place of a mixture.
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        node = result
        for part in parents:
            child = node.get(part)
            node[part] = dict(child) if isinstance(child, dict) else {}
            node = node[part]
        alike = EITHER_OR.get(".".join(parents), ())
        if last in alike and value is not None:
            for other in alike:
                node.pop(other, None)
        node[last] = value
    return result
