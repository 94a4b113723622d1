"""The sides of a comparison: runs, and recipes that are no runs yet. Reads all that is compared; compares nothing."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launchyard.errors import UserError, user_errors
from launchyard.launcher.recipe.bundled import bundled_recipes
from launchyard.launcher.recipe.load import load_recipe
from launchyard.launcher.recipe.own_code import OwnFile, with_own_code
from launchyard.launcher.report.history import Story, read_story
from launchyard.launcher.runs.find import find
from launchyard.launcher.submit.changes import Change, changes_between
from launchyard.launcher.submit.code import CodeSnapshot, take_snapshot
from launchyard.run import layout
from launchyard.run.frozen import ChangedError, content_digest
from launchyard.run.records import EnvironmentRecord
from launchyard.run.rundir import RunDir
from launchyard.run.svg import Course, Point
from launchyard.storage.damage import JsonObject
from launchyard.storage.redact import redact
from launchyard.training.own.frozen import read_frozen
from launchyard.training.own.source import OwnSource
from launchyard.training.recipe import Recipe, apply_overrides, stored_recipe
from launchyard.training.spec import DataSpec, read_workload

YAML = (".yaml", ".yml")


@dataclass(frozen=True)
class ResumeChange:
    """A key that an attempt has changed."""

    attempt: int
    change: Change


@dataclass(frozen=True)
class Side:
    """A run, or a recipe: then there is no story, and `code` is what would be launched from here.

    `recipe`: with its defaults, as the newest attempt has it. `data`: None where it is not known.
    """

    name: str
    place: str
    recipe: Recipe
    code: CodeSnapshot | None
    story: Story | None = None
    data: DataSpec | None = None
    tokenizer: str | None = None  # a digest of its file
    changes: tuple[ResumeChange, ...] = ()
    environment: EnvironmentRecord | None = None
    own: OwnSource | None = None  # the file that `code` names

    @property
    def rows(self) -> Iterable[JsonObject]:
        """Of steps, read anew each time that they are walked over."""
        return () if self.story is None else _RowsOf(self.story.run)

    @property
    def validation(self) -> Sequence[JsonObject]:
        return () if self.story is None else self.story.validation

    def losses(self, *, by_tokens: bool) -> list[Point]:
        """The points of its loss curve, over steps or over tokens; few enough to be drawn."""
        if self.story is None:
            return []
        if not by_tokens:
            return self.story.steps.curves["loss"].points
        course = Course()
        for row in self.rows:
            course.add(float(row["tokens_seen"]), float(row["loss"]))
        return course.points


@dataclass(frozen=True)
class _RowsOf:
    run: RunDir

    def __iter__(self) -> Iterator[JsonObject]:
        return self.run.rows(layout.STEPS)


def read_side(word: str) -> Side:
    """A run by all that `find` takes, or a recipe: a name that ends in .yaml, or the bundled one of that name.

    UserError if it is neither.
    """
    if word.endswith(YAML):
        return _recipe(word)
    try:
        run = find(word)
    except UserError as error:
        if word in bundled_recipes():
            return _recipe(word)
        raise UserError(
            str(error), hint=f"{error.hint or 'launch status shows all'}; a recipe ends in .yaml"
        ) from error
    return _run(run)


# -- a run -----------------------------------------------------------------------------------------------------------
def _run(run: RunDir) -> Side:
    story = read_story(run)
    with user_errors(redact(run.url)):
        recipes = list(_recipes(run, story))
        data = read_workload(run).data
    changes = [
        ResumeChange(attempt, change)
        for (_, before), (attempt, after) in itertools.pairwise(recipes)
        for change in changes_between(before, after)
    ]
    return Side(
        name=story.state.run_id,
        place=redact(run.url),
        recipe=recipes[-1][1],
        code=_code(story),
        story=story,
        data=data,
        tokenizer=_digest(run),
        changes=tuple(changes),
        environment=_environment(run),
        own=_own(run, recipes[-1][1].code),
    )


def _recipes(run: RunDir, story: Story) -> Iterator[tuple[int, Recipe]]:
    """The recipe of each attempt; of a run that has none yet the frozen one. The device is that of the workers."""
    raw = stored_recipe(run)
    if not story.attempts:
        yield 0, Recipe.model_validate(raw)
    for one in story.attempts:
        yield one.attempt, Recipe.model_validate(apply_overrides(raw, dict(one.job.overrides)))


def _code(story: Story) -> CodeSnapshot | None:
    try:
        return CodeSnapshot.model_validate(story.code)
    except ValueError:  # of a run that was made by hand
        return None


def _own(run: RunDir, code: str | None) -> OwnSource | None:
    try:
        return None if code is None else read_frozen(run, code)
    except (FileNotFoundError, ChangedError):  # `launch fsck` tells of it
        return None


def _environment(run: RunDir) -> EnvironmentRecord | None:
    """Of the newest attempt that has recorded one."""
    for attempt in reversed(run.attempts()):
        found = run.find_json(layout.environment(attempt))
        with contextlib.suppress(ValueError):  # of another version
            if found is not None:
                return EnvironmentRecord.model_validate(found)
    return None


def _digest(run: RunDir) -> str | None:
    try:
        return content_digest(run.read_bytes(layout.TOKENIZER))
    except FileNotFoundError:
        return None


# -- a recipe --------------------------------------------------------------------------------------------------------
def _recipe(word: str) -> Side:
    loaded = load_recipe(word)
    loaded, own = with_own_code(loaded, base=loaded.base, tries=False)
    return Side(
        name=word,
        place=loaded.source,
        recipe=loaded.recipe,
        code=take_snapshot(Path.cwd()),
        data=_resolved(loaded.recipe, loaded.base, own),
        own=None if own is None else own.source,
    )


def _resolved(recipe: Recipe, base: str, own: OwnFile | None) -> DataSpec | None:
    """The data that a recipe names; None if it is not there, or its text is not prepared."""
    from launchyard.launcher.data.own_batches import own_batches
    from launchyard.launcher.data.resolve import resolve

    try:
        with user_errors():
            if own is not None and own.makes_data:
                return own_batches(recipe, base=base, digest=own.frozen).spec
            found = resolve(
                recipe.data,
                recipe.tokenizer,
                init_from=recipe.model.init_from,
                base=base,
                epochs=recipe.train.max_epochs,
            )
    except UserError:
        return None
    return found.spec if found.prepared else None
