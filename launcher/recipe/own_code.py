"""The file that `code` of a recipe names: found, checked and tried before anything is queued. Imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from launchyard.errors import RecipeErrors
from launchyard.host.environment import own_environment
from launchyard.host.processes import python_argv
from launchyard.launcher.recipe.load import LoadedRecipe
from launchyard.run import own_code as package
from launchyard.storage import files
from launchyard.storage.redact import redact
from launchyard.training.own.beside import with_modules
from launchyard.training.own.contract import Described, describe_code
from launchyard.training.own.frozen import frozen_name, read_frozen
from launchyard.training.own.load import source_json
from launchyard.training.own.source import OwnSource

if TYPE_CHECKING:
    from launchyard.run.rundir import RunDir

MAX_BYTES = 1 << 20
NO_MODULE = "ModuleNotFoundError"
TRY_SECONDS = 120.0  # for its imports; torch alone takes some seconds, from a busy disk a minute


@dataclass(frozen=True)
class OwnFile:
    """A checked file. frozen: its name in the run directory, which is the value of `code` from then on."""

    path: str
    source: OwnSource
    described: Described

    @property
    def frozen(self) -> str:
        return frozen_name(self.source)

    @property
    def makes_data(self) -> bool:
        return "batches" in self.described.functions


def with_own_code(loaded: LoadedRecipe, *, base: str, tries: bool = True) -> tuple[LoadedRecipe, OwnFile | None]:
    """The recipe with the name of the frozen copy, and the file; RecipeErrors for one that a run cannot call.

    base: folder of a relative path. tries: run the file once; not where the workers have another Python.
    """
    name = loaded.recipe.code
    if name is None:
        return loaded, None
    where = f"{loaded.origin('code')}: code"
    found = read_own_file(name, base=base, where=where, tries=tries)
    check_fit(loaded, found.described)
    recipe = loaded.recipe.model_copy(update={"code": found.frozen})
    return replace(loaded, recipe=recipe, raw={**loaded.raw, "code": found.frozen}), found


def read_own_file(name: str, *, base: str, where: str, tries: bool) -> OwnFile:
    """RecipeErrors name what is wrong with it."""
    path = name if "://" in name else f"{base}/{name}" if "://" in base else os.path.join(base, name)
    try:
        source = _read(path)
        described = describe_code(source.raw, source.name)
        source = _with_modules(source, path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RecipeErrors([f"{where}: {redact(path)}: no such file"], hint="a path beside the recipe") from error
    except (OSError, ImportError) as error:
        raise RecipeErrors([f"{where}: {redact(path)} cannot be read: {redact(str(error))}"]) from error
    except ValueError as error:
        raise RecipeErrors([f"{where}: {redact(problem)}" for problem in str(error).splitlines()]) from error
    if tries and (problem := _try(source)):
        hint = (
            "modules that lie beside the file go with it, if an import statement names them; all others must be "
            "installed in the environment of the workers"
        )
        raise RecipeErrors([f"{where}: {problem}"], hint=hint if NO_MODULE in problem else None)
    return OwnFile(path, source, described)


def _read(path: str) -> OwnSource:
    """ValueError for what is no Python file."""
    if not path.endswith(".py"):
        raise ValueError(f"{path}: not a Python file (.py)")
    raw = files.read(path)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: larger than {MAX_BYTES:,} bytes")
    return OwnSource(redact(path), raw)


def _with_modules(source: OwnSource, path: str) -> OwnSource:
    folder = path.rpartition("/")[0]

    def read(name: str) -> bytes | None:
        try:
            return files.read(f"{folder}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def installed(name: str) -> bool:
        here = {os.path.realpath(folder), os.getcwd()}
        elsewhere = [place for place in sys.path if os.path.realpath(place) not in here]
        return PathFinder.find_spec(name, elsewhere) is not None

    return with_modules(source, read, installed)


def frozen_described(run: RunDir, code: str | None) -> Described:
    """What the file of a run holds."""
    if code is None:
        return Described({})
    source = read_frozen(run, code)
    return describe_code(source.raw, source.name)


def resumed_code(
    run: RunDir, before: str | None, changes: dict[str, object], *, tries: bool
) -> tuple[dict[str, object], OwnFile | None]:
    """The changes of a resume with the name of a frozen copy, and the new file, if they name one.

    RecipeErrors also for one that makes or loses what the state and the data of a run hang on.
    """
    if "code" not in changes:
        return changes, None
    name = changes["code"]
    found = None
    if name is not None:
        found = read_own_file(str(name), base=os.getcwd(), where="code on the command line", tries=tries)
    old = frozen_described(run, before).functions
    new = {} if found is None else found.described.functions
    if other := [function for function in ("batches", "optimizer") if (function in old) != (function in new)]:
        has, then = ("has", "has not") if other[0] in old else ("has no", "has one")
        what = f"this run {has} {other[0]} of its own, and the new file {then}"
        hint = "make a new run; model.init_from=RUN lets it start from this run's weights"
        raise RecipeErrors([f"code on the command line: {what}"], hint=hint)
    return {**changes, "code": None if found is None else found.frozen}, found


def edited(path: str, code: str) -> bool:
    """Is the file that a run was given another by now? False if it is gone: the run has its copy."""
    try:
        return frozen_name(_with_modules(_read(path), path)) != code
    except (OSError, ValueError, ImportError):
        return False


@lru_cache(maxsize=8)
def _try(source: OwnSource) -> str | None:
    """Runs the file in a process of its own, as a worker will, without a GPU; the problem in words."""
    env = {**own_environment(), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(package.ROOT)}
    argv = [*python_argv(sys.executable), "-m", "launchyard.training.own.load"]
    given = source_json(source).encode()
    try:
        done = subprocess.run(argv, env=env, input=given, capture_output=True, timeout=TRY_SECONDS)
    except subprocess.TimeoutExpired:
        return f"{source.name}: was not read in {TRY_SECONDS:.0f} s; do no work outside of its functions"
    if done.returncode == 0:
        return None
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    if last:
        return redact(last[0])
    return f"{source.name}: the process that tried to read it ended with {done.returncode}"


def check_fit(loaded: LoadedRecipe, described: Described) -> None:
    """RecipeErrors for keys that say the same as a function of the file, or that it does not go with."""
    problems = [f"{loaded.origin(key)}: {key}: {what}" for key, what in _misfits(loaded, described)]
    if problems:
        raise RecipeErrors(problems)


def _misfits(loaded: LoadedRecipe, described: Described) -> list[tuple[str, str]]:
    recipe = loaded.recipe
    found = []
    for function in ("loss", "optimizer"):
        if function not in described.functions:
            continue
        if recipe.parallel.tp > 1:
            found.append(("parallel.tp", f"{recipe.parallel.tp}; a {function} of your own needs whole matrices: 1"))
    if "loss" in described.functions:
        if recipe.parallel.cp > 1:
            found.append(("parallel.cp", f"{recipe.parallel.cp}; a loss of your own needs whole sequences: 1"))
        if recipe.preference is not None:
            found.append(("preference", "a loss of your own takes its place; leave it out"))
        for key in ("label_smoothing", "z_loss"):
            if getattr(recipe.train, key):
                found.append((f"train.{key}", "a loss of your own takes its place; leave it out"))
    if "optimizer" in described.functions:
        if recipe.train.precision == "bf16-true":
            found.append(("train.precision", "bf16-true has optimizers of its own; use bf16-mixed or 32-true"))
        given = loaded.raw.get("optimizer")
        allowed = {"lr", "weight_decay", "name"}
        for key in given if isinstance(given, dict) else ():
            if key not in allowed:
                what = "an optimizer of your own is given lr and weight_decay; set the rest in the file"
                found.append((f"optimizer.{key}", what))
        if recipe.optimizer.name != "adamw":
            found.append(("optimizer.name", f"{recipe.optimizer.name}; the optimizer of your own file takes its place"))
    return found
