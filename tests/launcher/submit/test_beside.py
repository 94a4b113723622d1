"""A run keeps what stood beside the weights it starts from and beside the tokenizer of its data.

One that starts from a chat model ends its texts where that model did.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from launchyard.launcher.runs.fsck import check_run
from launchyard.launcher.submit.beside import beside_run, remove_beside
from launchyard.launcher.submit.copy_run import copied
from launchyard.model.text.companions import companions_beside, read_companions, write_companions
from launchyard.model.text.special_tokens import SpecialTokens
from launchyard.model.text.templates import read_templates
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from launchyard.model.weights.source import find_source
from launchyard.run import layout
from launchyard.run.rundir import RunDir
from launchyard.training.data.dataset_spec import open_dataset
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.recipe import Recipe, apply_overrides
from launchyard.training.spec import DataSpec, TokenSource
from tests.support.small_runs import RECIPE
from tests.support.tiny_models import llama, random_model, weights_of, write_checkpoint

CONFIG = llama(vocab_size=6, padded_vocab_size=16)
WORDS = ["<unk>", "<s>", "<|im_end|>", "<|endoftext|>", "the", "cat"]
BESIDE = {
    "tokenizer_config.json": b'{"eos_token": "<|im_end|>", "chat_template": "{{ x }}<|im_end|>"}',
    "generation_config.json": b'{"eos_token_id": [2, 1], "temperature": 0.2}',
    "special_tokens_map.json": b'{"bos_token": "<s>"}',
    "additional_chat_templates/rag.jinja": b"{{ documents }}",
    "LICENSE": b"free",
}


def tokenizer_at(folder: Path, words: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {word: number for number, word in enumerate(words)}
    Tokenizer(models.WordLevel(vocab, unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture
def chat_model(tmp_path: Path) -> Path:
    path = tokenizer_at(tmp_path / "t", WORDS)
    companions = {**companions_beside(str(path)), **BESIDE}
    save_hf(weights_of(random_model(CONFIG)), CONFIG, str(tmp_path / "chat"), companions=companions)
    return tmp_path / "chat"


def data_of(place: Path, tokenizer: Path, eos: str) -> DataSpec:
    (place / "text.txt").write_text("the cat the cat the cat\n" * 4)
    prepare([str(place / "text.txt")], tokenizer=str(tokenizer), out=str(place / "data"), eos=eos, workers=1)
    return open_dataset(str(place / "data"))


def recipe_of(**keys: object) -> Recipe:
    model = {"init_from": keys.pop("init_from")} if "init_from" in keys else RECIPE["model"]
    return Recipe.model_validate(apply_overrides({**RECIPE, "model": model}, keys))


def ends(companions: dict[str, bytes]) -> set[str | None]:
    tokens = SpecialTokens(companions)
    return {tokens.token_of(end) for end in tokens.ends()}


@pytest.mark.parametrize("own", ["the model's", "a copy", "another order of words"])
def test_a_run_from_a_chat_model_ends_where_the_model_did_and_where_its_documents_do(
    own: str, chat_model: Path, tmp_path: Path
) -> None:
    bare = tokenizer_at(tmp_path / "bare", WORDS if own == "a copy" else ["<|endoftext|>", *WORDS[:3], "the", "cat"])
    tokenizer = chat_model / "tokenizer.json" if own == "the model's" else bare
    data = data_of(tmp_path, tokenizer, "<|endoftext|>")
    kept = beside_run(recipe_of(init_from=str(chat_model)), data)
    assert kept["tokenizer.json"] == tokenizer.read_bytes()
    assert (
        ends(kept)
        == ends(read_companions(str(chat_model))) | {"<|endoftext|>"}
        == {"<|im_end|>", "<s>", "<|endoftext|>"}
    )
    assert read_templates(kept) == {"default": "{{ x }}<|im_end|>", "rag": "{{ documents }}"}
    assert json.loads(kept["generation_config.json"])["temperature"] == 0.2
    assert kept["LICENSE"] == b"free"


def test_it_writes_and_exports_the_same(chat_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = data_of(tmp_path, chat_model / "tokenizer.json", "<|endoftext|>")
    kept = beside_run(recipe_of(init_from=str(chat_model)), data)
    write_companions(kept, str(run / "tokenizer"))
    write_checkpoint(run / "checkpoints/step-00000001", CONFIG, weights_of(random_model(CONFIG)))
    loaded = load(str(run))
    assert loaded.stop_ids == {1, 2, 3}
    assert loaded.transformer.config.vocab_size == 6, "ids that only pad the table are never drawn"
    save_hf(weights_of(loaded.transformer), CONFIG, str(tmp_path / "out"), companions=loaded.companions)
    assert load(str(tmp_path / "out")).stop_ids == {1, 2, 3}
    assert read_templates(read_companions(str(tmp_path / "out"))) == read_templates(kept)
    assert beside_run(recipe_of(init_from=str(run)), data) == kept, "a run from a run"


def test_the_place_of_the_tokenizer_comes_first(chat_model: Path, tmp_path: Path) -> None:
    path = tokenizer_at(tmp_path / "own", WORDS)
    (path.parent / "chat_template.jinja").write_text("{{ mine }}")
    (path.parent / "LICENSE.md").write_text("mine")
    kept = beside_run(recipe_of(init_from=str(chat_model)), data_of(tmp_path, path, "<s>"))
    assert read_templates(kept)["default"] == "{{ mine }}"
    assert "LICENSE" not in kept
    assert kept["LICENSE.md"] == b"mine"
    assert ends(kept) == {"<|im_end|>", "<s>"}


def test_files_that_came_beside_the_recipes_tokenizer_count_though_the_tokens_are_older(tmp_path: Path) -> None:
    path = tokenizer_at(tmp_path / "own", WORDS)
    data = data_of(tmp_path, path, "<s>")
    (path.parent / "chat_template.jinja").write_text("{{ mine }}")
    assert read_templates(beside_run(recipe_of(), data)) == {}
    assert read_templates(beside_run(recipe_of(tokenizer="own"), data, base=str(tmp_path))) == {"default": "{{ mine }}"}


def test_data_keep_what_stands_beside_their_tokenizer(chat_model: Path, tmp_path: Path) -> None:
    data_of(tmp_path, chat_model / "tokenizer.json", "<s>")
    assert read_companions(str(tmp_path / "data/tokenizer")) == read_companions(str(chat_model))
    shutil.rmtree(chat_model)
    kept = beside_run(recipe_of(), open_dataset(str(tmp_path / "data")))
    assert ends(kept) == {"<|im_end|>", "<s>"}


def test_tokens_of_another_tool_are_taken_for_those_of_the_model(chat_model: Path) -> None:
    data = DataSpec(train=(TokenSource(folder="/data", n_tokens=9),), validation=(), tokenizer=None, digest="d")
    assert beside_run(recipe_of(), data) == {}
    kept = beside_run(recipe_of(init_from=str(chat_model)), data)
    assert kept == find_source(str(chat_model)).companions()


def test_a_run_takes_back_what_it_wrote_and_no_more(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    write_companions({**BESIDE, "tokenizer.json": b"{}"}, run.path(layout.TOKENIZER_FOLDER))
    run.write_text(f"{layout.TOKENIZER_FOLDER}/notes.txt", "mine")
    remove_beside(run)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]


def test_a_run_that_is_copied_takes_them_along(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "here"))
    write_companions(BESIDE, run.path(layout.TOKENIZER_FOLDER))
    run.write_json(layout.PLAN, {})
    there = RunDir(str(tmp_path / "there"))
    with copied(run, there, set(), lambda line: None):
        pass
    assert read_companions(there.path(layout.TOKENIZER_FOLDER)) == BESIDE


@pytest.mark.parametrize("name", [name for name in BESIDE if name.endswith(".json")])
def test_a_damaged_file_beside_the_tokenizer_is_found(name: str, tmp_path: Path) -> None:
    run = RunDir(str(tmp_path))
    write_companions(BESIDE, run.path(layout.TOKENIZER_FOLDER))
    before = [str(problem) for problem in check_run(run).problems]
    run.write_text(f"{layout.TOKENIZER_FOLDER}/{name}", BESIDE[name].decode()[:-3])
    [found] = {str(problem) for problem in check_run(run).problems} - set(before)
    assert found.startswith(f"tokenizer/{name} is damaged")
