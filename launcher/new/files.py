"""The files of `launch new`: written without a word lost, and then read back, planned and examined."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from launchyard.errors import UserError
from launchyard.launcher.backends.cluster import load_cluster, reach_storage
from launchyard.launcher.backends.findings import Finding
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.doctor.doctor import examine
from launchyard.launcher.new.draft import Draft
from launchyard.launcher.new.place import Spot
from launchyard.launcher.new.text import commented, schema_line
from launchyard.launcher.new.wishes import Wishes
from launchyard.launcher.submit.launch import Ready, Request, make_ready


@dataclass(frozen=True)
class NewFile:
    path: Path
    text: str


def recipe_text_of(draft: Draft, wishes: Wishes, spot: Spot) -> str:
    """The commented recipe."""
    what = {"pretrain": "Pretrains a model", "finetune": f"Finetunes {wishes.model} by {wishes.method}"}[wishes.task]
    head = [
        f"# {what} on {', '.join(wishes.data)}; written by `launch new` for {spot.title}.",
        "# Change what you like: `launch keys` lists all keys, `launch help KEY` explains one.",
        schema_line("recipe"),
    ]
    return "\n".join([*head, *commented(draft.raw, draft.reasons)]) + "\n"


def write_files(files: list[NewFile], *, force: bool) -> None:
    """Writes all or none of them. UserError for one that is there, unless it is forced."""
    refuse_existing([file.path for file in files], force=force)
    for file in files:
        try:
            file.path.parent.mkdir(parents=True, exist_ok=True)
            file.path.write_text(file.text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{file.path}: cannot be written: {error.strerror or error}") from error


def refuse_existing(paths: list[Path], *, force: bool) -> None:
    there = [str(path) for path in paths if os.path.lexists(path)]
    if there and not force:
        raise UserError(f"{', '.join(there)}: there already, and left as it is", hint="another name, or --force")


def recipe_file(name: str) -> Path:
    """Here."""
    return Path(f"{name}.yaml")


def plan_written(recipe: Path, cluster: str) -> Ready:
    """The launch of the file as it now is, by the same way as `launch RECIPE --dry-run`."""
    return make_ready(Request(str(recipe), cluster, {}), dry_run=True)


def examine_place(cluster: str, *, with_job: bool) -> Iterator[Finding]:
    """The findings of `launch doctor`."""
    place = load_cluster(cluster)
    reach_storage(place)
    yield from examine(place, with_job=with_job)


def next_words(recipe: Path, cluster: str) -> list[str]:
    """The commands that come next."""
    where = "" if cluster == FIRST else f" --cluster {cluster}"
    return [f"launch {recipe}{where} --dry-run", f"launch {recipe}{where}"]
