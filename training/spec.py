"""The part of a plan for the workers: their tokens, their model, and the settings for stores. Light."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from launchyard.model.adapter import Adapter
from launchyard.model.config import ModelConfig
from launchyard.run.layout import DATA_PLACE, PLAN
from launchyard.run.rundir import RunDir
from launchyard.storage.errors import DamagedError
from launchyard.storage.redact import redact
from launchyard.training.recipe import Recipe
from launchyard.training.sections.section import Section

IGNORE_INDEX = -100
OWN_BATCHES = "own code"  # in place of a folder: samples that the user's own code makes


class RowFacts(Section):
    """The rows of a source of instructions, or of preferences."""

    rows: int = Field(ge=1)
    together: int = Field(default=1, ge=1, description="Rows that are one after the other and read as one; 2: pairs.")
    labels: int = Field(ge=1, description="Tokens that are trained for.")
    longest: int = Field(ge=2, description="Tokens of the longest row.")
    packs: tuple[int, ...] = Field(
        default=(), description="Sequences in each epoch that train.max_epochs begins, in the first otherwise."
    )


class TokenSource(Section):
    """Tokens in one place."""

    folder: str = Field(description="Folder with index.json and chunks.")
    n_tokens: int = Field(ge=1)
    weight: float = Field(default=1.0, gt=0, description="Frequency relative to the others in training.")
    digest: str | None = Field(default=None, description="Of these tokens alone; none in plans of older versions.")
    instruct: RowFacts | None = Field(default=None, description="Of instructions; none of a stream of text.")


class DataSpec(Section):
    """The prepared tokens that a run reads, found when it was planned and frozen in its plan."""

    train: tuple[TokenSource, ...] = Field(min_length=1, description="Read by their weights, each in its own epochs.")
    validation: tuple[TokenSource, ...] = Field(description="Held-out documents, read once, end to end.")
    sets: dict[str, tuple[TokenSource, ...]] = Field(
        default={}, description="More of them by the names in validation.sets, each for itself."
    )
    tokenizer: str | None = Field(description="tokenizer.json that made the tokens.")
    digest: str = Field(description="Changes when any token of the data changes, or any weight.")

    @property
    def n_tokens(self) -> int:
        return sum(source.n_tokens for source in self.train)

    @property
    def n_validation_tokens(self) -> int:
        return sum(source.n_tokens for source in self.validation)

    @property
    def every_source(self) -> tuple[TokenSource, ...]:
        """Those that are trained on, and those that are held out."""
        return (*self.train, *self.validation, *(source for one in self.sets.values() for source in one))

    @property
    def shares(self) -> tuple[float, ...]:
        """Of all samples, how many come from each source of `train`; their sum is 1."""
        return tuple(source.weight / sum(other.weight for other in self.train) for source in self.train)


def source_names(data: DataSpec, recipe: Recipe) -> list[str]:
    """Names of the sources for people: those of the recipe, since a folder in the cache has only a digest.

    No two are equal.
    """
    mixture = recipe.data.mixture or []
    names = [redact(source.folder) for source in data.train]
    if len(mixture) == len(data.train):
        given = [[one.source] if isinstance(one.source, str) else one.source for one in mixture]
        names = [redact(paths[0]) + (f" and {len(paths) - 1} more" if len(paths) > 1 else "") for paths in given]
    counts = [names[:number].count(name) for number, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, counts, strict=True)]


class Storage(Section):
    """A run's settings for stores, given by its cluster. No addresses and no credentials."""

    retry_seconds: float = Field(default=900.0, ge=0, description="Keep trying that long when a store fails.")
    cache: str | None = Field(default=None, description="Folder of each node for chunks; default: the user's cache.")
    cache_bytes: int | None = Field(default=None, ge=1, description="Bytes that it may take.")


class Workload(BaseModel):
    """The part of plan.json that a worker needs; the rest is for people."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    name: str
    model: ModelConfig
    adapter: Adapter | None = None
    data: DataSpec
    storage: Storage = Storage()


def read_workload(run: RunDir) -> Workload:
    """Reads the workload of a run, with its data and its storage where a resume has moved them.

    FileNotFoundError without a plan, ValueError if it is damaged.
    """
    workload = Workload.model_validate(run.read_plan())
    return workload.model_copy(update={"data": place_of_data(run, workload)})


def frozen_workload(run: RunDir) -> Workload:
    """The same as the launch has frozen it."""
    return Workload.model_validate(run.read_json(PLAN))


def place_of_data(run: RunDir, frozen: Workload) -> DataSpec:
    """The data of a run where it was last found. DamagedError if the record of that is none of this run."""
    try:
        data = run.read_model(DATA_PLACE, DataSpec)
    except FileNotFoundError:
        return frozen.data
    if data.digest != frozen.data.digest:
        what = f"{run.path(DATA_PLACE)} names other tokens than {PLAN}"
        raise DamagedError(f"{what}; restore it, or name their place: launch resume RUN data.source=PLACE")
    return data
