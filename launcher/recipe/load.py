"""Recipes: found, extended, and changed by the command line. Knows no cluster and no plan.

file, bundled name or URL -> YAML with line numbers -> `extends` (one level) -> KEY=VALUE ->
launchyard.training.recipe.Recipe, with all problems reported at once.
"""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchyard.errors import RecipeErrors, UserError, user_errors
from launchyard.launcher.recipe.aliases import RECIPE_VOCABULARY
from launchyard.launcher.recipe.bundled import bundled_recipes, recipe_folder
from launchyard.launcher.recipe.hints import at, leaf_keys, nearest
from launchyard.launcher.recipe.yaml import (
    MAX_BYTES,
    Document,
    KeyPath,
    Origin,
    at_value,
    merge,
    parse_value,
    read_document,
    validate,
)
from launchyard.storage.damage import JsonObject
from launchyard.storage.files import typed_path
from launchyard.storage.redact import redact
from launchyard.training.recipe import EITHER_OR, Recipe, apply_overrides
from launchyard.training.sections.model import ModelSection

# Values that name files: a relative one starts at the folder of the recipe that holds it.
_PATHS: tuple[tuple[str, ...], ...] = (
    ("data", "source"),
    ("data", "mixture"),
    ("data", "validation"),
    ("tokenizer",),
    ("code",),
    ("model", "init_from"),
    ("validation", "tasks"),
    ("validation", "sets"),
)
_YAML = (".yaml", ".yml")
_STDIN = "standard input"
_MAPPING = "the recipe"
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z_][A-Za-z0-9_-]*)*")


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe. `raw` is the resolved mapping that becomes RUN_URL/recipe.yaml: no `extends`, full paths."""

    recipe: Recipe
    raw: dict[str, Any]
    source: str
    base: str
    document: Document

    def origin(self, key: str) -> Origin:
        """The place of a dotted key, or of the nearest section around it."""
        return self.document.origin(tuple(key.split(".")))


@dataclass(frozen=True)
class UncheckedRecipe:
    """A recipe whose files are joined: more keys may be put on top before it is checked. `base` as in LoadedRecipe."""

    document: Document
    base: str

    def changed(self, overrides: Mapping[str, object]) -> UncheckedRecipe:
        """The same with these keys on top."""
        document = Document(self.document.value, self.document.label, dict(self.document.origins))
        return UncheckedRecipe(_override(document, dict(overrides)), self.base)

    def check(self, overrides: Mapping[str, object]) -> LoadedRecipe:
        """The recipe with these keys; RecipeErrors names all its problems."""
        document = _in_our_keys(self.changed(overrides).document)
        recipe = validate(Recipe, document, RECIPE_VOCABULARY)
        return LoadedRecipe(recipe, document.value, document.label, self.base, document)


def load_recipe(
    source: str | Mapping[str, object], overrides: dict[str, Any] | None = None, *, defaults: Document | None = None
) -> LoadedRecipe:
    """Load a path, a bundled name, an fsspec URL or a mapping; UserError or RecipeErrors name all its problems.

    defaults: for keys that the recipe leaves out.
    """
    return read_recipe(source, defaults=defaults).check(overrides or {})


def read_recipe(source: str | Mapping[str, object], *, defaults: Document | None = None) -> UncheckedRecipe:
    """The first half of load_recipe."""
    if isinstance(source, str):
        label, base, text = _read(source)
        document = _anchor(read_document(text, label), base)
    else:
        base = os.getcwd()
        document = _anchor(Document(plain_mapping(source, _MAPPING), _MAPPING), base)
    if "extends" in document.value:
        document = _extend(document, base)
    return UncheckedRecipe(merge(defaults, document) if defaults else document, base)


def check_recipe(raw: dict[str, Any], overrides: dict[str, Any], *, source: str) -> LoadedRecipe:
    """A recipe that is loaded already (a run's own) with KEY=VALUE on top, as strictly as load_recipe."""
    document = _override(Document(raw, source), overrides)
    return LoadedRecipe(validate(Recipe, document, RECIPE_VOCABULARY), document.value, source, os.getcwd(), document)


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """['train.max_steps=5'] -> {'train.max_steps': 5}; values are YAML, the last of two wins."""
    found: dict[str, Any] = {}
    problems = []
    for place, pair in enumerate(pairs):
        key, equals, value = pair.partition("=")
        if not equals and (meant := key_of(pair)) is not None:
            value = value_after(pairs[place + 1 :])
            raise RecipeErrors([f"{pair} on the command line: a key of the recipe; write {meant}={redact(value)}"])
        if not equals or not _KEY.fullmatch(key):
            problems.append(f"{redact(pair)} on the command line: not KEY=VALUE, such as train.max_steps=500")
            continue
        try:
            found[key] = parse_value(value)
        except RecipeErrors as error:
            problems += [f"{redact(pair)} on the command line: {problem}" for problem in error.problems]
    if problems:
        raise RecipeErrors(problems)
    return found


def key_of(word: str) -> str | None:
    """The one dotted key that a word means, if it does: a key, its last part alone, or another trainer's name."""
    schema = Recipe.model_json_schema()
    if at(schema, tuple(word.split("."))) is not None:
        return word
    if (ours := RECIPE_VOCABULARY.moved.get(word)) is not None:
        return ours
    same = [key for key in leaf_keys(schema) if key.rsplit(".", 1)[-1] == word]
    return same[0] if len(same) == 1 else None


def value_after(words: Sequence[str]) -> str:
    """The value typed as a word of its own after a key, also after a lone =; the word VALUE if there is none."""
    rest = next((word for word in words[:2] if word != "="), "")
    return rest if rest and "=" not in rest and not rest.startswith("--") else "VALUE"


# -- finding ---------------------------------------------------------------------------------------------------------
def _read(source: str) -> tuple[str, str, bytes]:
    """Label for messages, folder for relative paths, and content."""
    if source == "-":
        return _STDIN, os.getcwd(), _bounded(sys.stdin.buffer.read(MAX_BYTES + 1), _STDIN)
    if "://" in source and not source.startswith("file://"):
        return redact(source), source.rsplit("/", 1)[0], _fetch(source)
    with user_errors():
        path = Path(typed_path(source))
    if path.is_file() or path.is_fifo():
        label = str(path)
    elif (bundled := recipe_folder() / f"{source.removesuffix('.yaml')}.yaml").is_file() and not path.is_absolute():
        path = bundled
        label = f"recipes/{source.removesuffix('.yaml')}.yaml"
    else:
        raise UserError(_not_found(source, path))
    try:
        base = os.getcwd() if path.is_fifo() else str(path.resolve().parent)  # <(…) lies beside nothing
        with path.open("rb") as file:
            return label, base, _bounded(file.read(MAX_BYTES + 1), label)
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {error.strerror}") from error


def _fetch(url: str) -> bytes:
    import fsspec

    label = redact(url)
    try:
        with fsspec.open(url, "rb") as file:
            return _bounded(file.read(MAX_BYTES + 1), label)
    except LookupError as error:
        raise UserError(f"{label}: no such file") from error
    except Exception as error:  # every protocol of fsspec has its own errors
        if isinstance(error, UserError):
            raise
        what = redact(str(error)) or type(error).__name__
        raise UserError(
            f"{label}: cannot be read: {what}", hint="a recipe is a path, a bundled name or a URL"
        ) from error


def _bounded(content: bytes, label: str) -> bytes:
    if len(content) > MAX_BYTES:
        raise UserError(f"{label}: larger than {MAX_BYTES:,} bytes; not a recipe")
    return content


def _not_found(source: str, path: Path) -> str:
    names = bundled_recipes()
    if path.is_dir():
        what = f"{source}: a folder, not a recipe"
    else:
        what = f"{source}: no such recipe; it is neither a file nor the name of a bundled recipe"
    spelled = {name.rsplit("/", 1)[-1]: name for name in names} | {name: name for name in names}
    spelled |= {str(found.with_suffix("")): str(found) for found in path.parent.glob("*.y*ml")}
    near = spelled.get(nearest(str(path.with_suffix("") if path.suffix in _YAML else path), list(spelled)) or "")
    return f"{what}; did you mean {near}?" if near else f"{what}; bundled: {', '.join(names)}"


def plain_mapping(given: Mapping[str, object], what: str) -> JsonObject:
    """A copy of keys and values that were made in Python, as YAML would give them; paths become text.

    RecipeErrors names a value that no YAML holds.
    """
    return {key: _plain_value(value, what, key) for key, value in given.items()}


def _plain_value(value: object, what: str, key: str) -> object:
    if isinstance(value, Mapping):
        return {str(name): _plain_value(child, what, f"{key}.{name}") for name, child in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(child, what, f"{key}.{place}") for place, child in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RecipeErrors([f"{what}: {key}: a {type(value).__name__}; use text, numbers, true or false, lists, mappings"])


# -- joining ---------------------------------------------------------------------------------------------------------
def _extend(document: Document, base: str) -> Document:
    """One level of `extends`: the named recipe, with this one on top."""
    name = document.value["extends"]
    origin = document.origin(("extends",))
    if not isinstance(name, str):
        raise RecipeErrors([f"{origin}: extends: must be one path, bundled name or URL; got {name!r}"])
    try:
        label, folder, text = _read(_sibling(name, base))
    except UserError as error:
        raise RecipeErrors([f"{origin}: extends: {error}"], hint=error.hint) from error
    below = _anchor(read_document(text, label), folder)
    if "extends" in below.value:
        deep = below.origin(("extends",))
        raise RecipeErrors(
            [f"{origin}: extends: {name} extends {below.value['extends']} itself ({deep}); one level only"]
        )
    return _without_extends(merge(_drop_replaced(below, document.value), document))


def _in_our_keys(document: Document) -> Document:
    """A model in the keys of LitGPT's YAML becomes one in ours."""
    from launchyard.launcher.recipe.litgpt import LitGPTKeyError, from_litgpt, is_litgpt

    section = document.value.get("model")
    if not isinstance(section, dict) or not is_litgpt(section):
        return document
    try:
        config = from_litgpt(section)
    except (ValueError, TypeError) as error:
        key = f"model.{error.key}" if isinstance(error, LitGPTKeyError) else "model"
        raise RecipeErrors([f"{document.origin(tuple(key.split('.')))}: {key}: {error} (LitGPT's keys)"]) from error
    model = config.model_dump(mode="json", exclude_defaults=True)
    return Document({**document.value, "model": model}, document.label, document.origins)


def _sibling(name: str, base: str) -> str:
    """The recipe file beside the one that names it, else the name as it stands."""
    if "://" in base:
        return f"{base}/{name}" if "://" not in name and name.endswith((".yaml", ".yml")) else name
    path = os.path.join(base, name)
    return path if "://" not in name and os.path.isfile(path) else name


def _without_extends(document: Document) -> Document:
    value = {key: child for key, child in document.value.items() if key != "extends"}
    return Document(value, document.label, document.origins)


def _drop_replaced(below: Document, above: dict[str, Any]) -> Document:
    """Drops values that one on top replaces under another key: another length, source, or model's shape."""
    value = {key: dict(child) if isinstance(child, dict) else child for key, child in below.value.items()}
    for section, alike in EITHER_OR.items():
        over = above.get(section)
        if isinstance(over, dict) and isinstance(value.get(section), dict):
            for key in alike if any(over.get(key) is not None for key in alike) else ():
                value[section].pop(key, None)
    model = above.get("model")
    if isinstance(model, dict) and isinstance(value.get("model"), dict):
        for key in ModelSection.model_fields if model.get("preset") or model.get("init_from") else ():
            value["model"].pop(key, None)
    return Document(value, below.label, below.origins)


def _override(document: Document, overrides: dict[str, Any]) -> Document:
    problems = []
    above: dict[str, Any] = {}
    for key, value in overrides.items():
        path: KeyPath = tuple(key.split("."))
        origin = Origin(f"{key}={_plain(value)} on the command line")
        for end in range(1, len(path)):
            if not isinstance(at_value(document.value, path[:end]), dict | None):
                problems.append(f"{origin}: {key}: {'.'.join(map(str, path[:end]))} holds a value, not keys")
                break
        document.origins[path] = origin
        above = apply_overrides(above, {key: value})
    if "extends" in above:
        problems.append("extends on the command line: not possible; name the recipe itself instead")
    if problems:
        raise RecipeErrors(problems)
    below = _drop_replaced(document, above)
    return Document(apply_overrides(below.value, from_here(overrides)), document.label, document.origins)


def _plain(value: Any) -> str:
    text = redact("" if value is None else str(value))
    return text if len(text) <= 40 else f"{text[:37]}…"


# -- paths -----------------------------------------------------------------------------------------------------------
def from_here(overrides: dict[str, Any]) -> dict[str, Any]:
    """Resolves paths on the command line from the working directory."""
    return paths_from(os.getcwd(), overrides)


def paths_from(folder: str, overrides: Mapping[str, object]) -> dict[str, object]:
    """Resolves relative paths among dotted keys from a folder."""
    named = {".".join(path): path for path in _PATHS}
    return {
        key: _full_paths(named[key], value, folder) if key in named else _of_set(key, value, folder)
        for key, value in overrides.items()
    }


def _of_set(key: str, value: object, folder: str) -> object:
    """The same for one set alone, validation.sets.NAME."""
    return _with_full_paths(value, folder) if key.startswith("validation.sets.") else value


def _anchor(document: Document, folder: str) -> Document:
    """Resolves relative paths to files beside the recipe, so that they stay valid in a run's own copy."""
    value = dict(document.value)
    for path in _PATHS:
        parent: Any = value
        if len(path) == 2:
            if not isinstance(value.get(path[0]), dict):
                continue
            parent = dict(value[path[0]])
            value[path[0]] = parent
        if path[-1] in parent:
            parent[path[-1]] = _full_paths(path, parent[path[-1]], folder)
    return Document(value, document.label, document.origins)


def _full_paths(path: tuple[str, ...], value: object, folder: str) -> object:
    """The value of one of _PATHS. Of tasks only files are meant: a folder may have the name of one by chance."""
    if path == ("validation", "tasks") and isinstance(value, list):
        return [_with_full_paths(name, folder) if str(name).endswith(_YAML) else name for name in value]
    if path == ("validation", "sets") and isinstance(value, dict):
        return {name: _with_full_paths(source, folder) for name, source in value.items()}
    return _with_full_paths(value, folder)


def _with_full_paths(value: Any, folder: str) -> Any:
    if isinstance(value, list):
        return [_with_full_paths(item, folder) for item in value]
    if isinstance(value, dict):  # one source of a mixture
        return {key: _with_full_paths(child, folder) if key == "source" else child for key, child in value.items()}
    return _beside(value, folder) or value if isinstance(value, str) else value


def _beside(name: str, folder: str) -> str | None:
    """`name` inside `folder` if something lies there: a file, a folder or matches of a glob."""
    if "://" in name or os.path.isabs(name) or "://" in folder or not name:
        return None
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return os.path.normpath(path)
    found = any(mark in name for mark in "*?[") and next(glob.iglob(path, recursive=True), None)
    return os.path.normpath(path) if found else None
