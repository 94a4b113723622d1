"""What a new run keeps beside its recipe for generation and export: see model/text/companions.py."""

from __future__ import annotations

from collections.abc import Iterator

from launchyard.launcher.data.places import locate
from launchyard.model.text.companions import (
    OF_TOKENIZER,
    TOKENIZER,
    Companions,
    is_companion,
    is_licence,
)
from launchyard.model.text.find import read_tokenizer_files
from launchyard.model.text.special_tokens import SpecialTokens, with_ends, with_ids_of
from launchyard.model.text.templates import read_templates, template_files
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.training.data.index import find_tokenizer, read_dataset
from launchyard.training.recipe import Recipe
from launchyard.training.spec import OWN_BATCHES, DataSpec


def remove_beside(run: RunDir) -> None:
    """Removes the companions of a run's tokenizer/ and the user's own code; other files stay."""
    for folder in (layout.TEMPLATES_FOLDER, layout.TOKENIZER_FOLDER):
        for name in run.listdir(folder):
            path = f"{folder}/{name}"
            if is_companion(path.removeprefix(f"{layout.TOKENIZER_FOLDER}/")):
                run.remove(path)
    for folder in _own_code_folders(run):
        for name in run.listdir(folder):
            if name.endswith(".py"):
                run.remove(f"{folder}/{name}")


def folders_beside(run: RunDir) -> list[str]:
    """The folders of all that, each before the one that it lies in."""
    return [layout.TEMPLATES_FOLDER, layout.TOKENIZER_FOLDER, *_own_code_folders(run)]


def _own_code_folders(run: RunDir) -> list[str]:
    """With those of its modules, which come first."""
    inner = (f"{layout.OWN_CODE_FOLDER}/{name}" for name in run.listdir(layout.OWN_CODE_FOLDER))
    return [*(name for name in inner if not name.endswith(".py")), layout.OWN_CODE_FOLDER]


def beside_run(recipe: Recipe, data: DataSpec, *, base: str | None = None) -> dict[str, bytes]:
    """The tokenizer of the data, and what it lacks from the model that the run starts from.

    The end ids are those of both, and the one that ends the documents. Looked up in this order: the recipe's
    `tokenizer` (relative to `base`), the data's own, model.init_from. ValueError names a file that cannot be read.
    """
    if data.tokenizer is None:  # tokens of another tool: by the tokenizer of the model, if it starts from one
        return _beside_model(recipe.model.init_from) if recipe.model.init_from else {}
    found = read_tokenizer_files(data.tokenizer)
    if recipe.tokenizer is not None:
        found |= read_tokenizer_files(find_tokenizer(locate(recipe.tokenizer, base)))
    ends = list(_document_ends(data))
    if recipe.model.init_from is not None:
        origin = with_ids_of(_beside_model(recipe.model.init_from), found)
        theirs = SpecialTokens({**origin, TOKENIZER: found[TOKENIZER]}).named_ends()
        ends = [*SpecialTokens(found).named_ends(), *theirs, *ends]
        found = _added(origin, found) | found
    return with_ends(found, ends)


def _beside_model(source: str) -> dict[str, bytes]:
    from launchyard.model.weights.source import find_source

    companions = find_source(source).companions()
    return with_ends(companions, SpecialTokens(companions).ends())


def _added(origin: Companions, found: Companions) -> dict[str, bytes]:
    """The files of the first model that may stand beside a tokenizer with the files of `found`."""
    added = {name: raw for name, raw in origin.items() if name not in OF_TOKENIZER}
    if origin.get(TOKENIZER) == found[TOKENIZER]:
        added = dict(origin)
    if read_templates(found):
        added = {name: raw for name, raw in added.items() if not name.endswith(".jinja")}
    else:
        added |= template_files(read_templates(origin))
    if any(map(is_licence, found)):
        added = {name: raw for name, raw in added.items() if not is_licence(name)}
    return added


def _document_ends(data: DataSpec) -> Iterator[int]:
    """The ids that `launch prepare` put behind documents; none for tokens that were made elsewhere."""
    for source in data.train:
        if source.folder == OWN_BATCHES:
            continue
        dataset = read_dataset(source.folder.rpartition("/")[0])
        if dataset is not None:
            yield dataset.tokenizer.eos_id
