"""Checks of single answers, so that a wrong one can be asked for again. Reads; writes nothing."""

from __future__ import annotations

import re

from launchyard.errors import UserError, user_errors
from launchyard.launcher.backends.section import FIRST
from launchyard.launcher.data.places import is_there, places_of
from launchyard.launcher.format import SIZE, bytes_of
from launchyard.launcher.new.wishes import Task
from launchyard.launcher.recipe.bundled import cluster_files
from launchyard.model import zoo
from launchyard.storage import files
from launchyard.training.data.index import is_prepared
from launchyard.training.sections.duration import seconds_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_new_name(name: str) -> str:
    """A name for files and runs."""
    name = name.removesuffix(".yaml")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name: letters, digits, dots, - and _, at most 63")
    return name


def split_data(typed: str) -> tuple[str, ...]:
    """Sources with commas between them."""
    return tuple(path.strip() for path in typed.split(",") if path.strip())


def check_data(paths: tuple[str, ...], task: Task) -> tuple[str, ...]:
    """Sources: each is there, and of a kind that is read."""
    if not paths:
        raise UserError("name a file, a folder, a glob or a URL")
    for path in paths:
        _check_source(path, task)
    return paths


def _check_source(path: str, task: Task) -> None:
    from launchyard.training.data.prepare.sources import find_sources

    with user_errors("--data"):
        places = places_of(path, None, "tokens" if task == "pretrain" else "instruct")
        for place in places:
            if not _exists(place):
                raise UserError(f"--data: {path} does not exist", hint="a file, a folder, a glob or a URL")
        if not any(map(is_prepared, places)):
            find_sources(places)


def _exists(place: str) -> bool:
    if "://" not in place:
        return is_there(place)
    return any(sign in place for sign in "*?[") or files.exists(place)


def needs_tokenizer(data: tuple[str, ...]) -> bool:
    """Is it text that is not prepared?"""
    return not any(is_prepared(place) for path in data for place in places_of(path, None, "tokens"))


def check_preset(name: str) -> str:
    """The name of a shape; empty or auto for the one that fits."""
    known = list(zoo.presets())
    if name in ("", "auto") or name in known:
        return name if name in known else ""
    from launchyard.launcher.recipe.hints import nearest

    near = nearest(name, known)
    raise UserError(
        f"--model {name}: no such preset" + (f"; did you mean {near}?" if near else ""), hint="launch models"
    )


def check_weights(name: str) -> str:
    """A MODEL whose weights are there."""
    from launchyard.launcher.runs.models import find_model
    from launchyard.model.weights.source import read_config

    with user_errors("--model"):
        found = find_model(name)
        read_config(found)
    return name


def check_tokenizer(path: str) -> str:
    """A tokenizer.json, or a folder with one."""
    from launchyard.training.data.index import find_tokenizer

    with user_errors("--tokenizer"):
        find_tokenizer(path)
    return path


def check_time_limit(text: str) -> str:
    if text and seconds_of(text) is None:
        raise UserError(f"{text!r} is no time; write HH:MM:SS or D-HH:MM:SS")
    return text


def check_size(text: str) -> int | None:
    """Bytes of such as 80GB; None for nothing."""
    if not text:
        return None
    if not re.fullmatch(SIZE, text):
        raise UserError(f"{text!r} is no size; write such as 80GB or 24GiB")
    return bytes_of(text)


def is_known_cluster(name: str) -> bool:
    """Is there a cluster file of that name, or at that path?"""
    return name == FIRST or name.endswith((".yaml", ".yml")) or name in cluster_files()


def check_count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"{text!r} is no number from 1 on")
    return int(text)
