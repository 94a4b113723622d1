from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pytest

from launchyard.errors import UserError
from launchyard.launcher.data.resolve import Resolved, ensure_prepared, resolve
from launchyard.launcher.recipe.load import check_recipe
from launchyard.launcher.submit.run_data import restore_data
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.sections.data import DataConfig
from tests.support.litdata_reader import write_chunks
from tests.support.small_runs import RECIPE


@pytest.fixture
def place(tmp_path: Path, novel: str, tokenizer_file: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe's folder with text and a tokenizer, and another working directory."""
    (tmp_path / "recipe" / "text").mkdir(parents=True)
    (tmp_path / "recipe" / "text" / "a.txt").write_text(novel[:50_000])
    (tmp_path / "recipe" / "tokenizer.json").write_bytes(Path(tokenizer_file).read_bytes())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def found(place: Path, tokenizer: str | None = "tokenizer.json", **data: object) -> Resolved:
    section = DataConfig(**{"source": "text/*.txt", "validation": 0.1} | data)
    return resolve(section, tokenizer, base=str(place / "recipe"), cache=str(place / "cache"))


def test_text_is_estimated_then_prepared_then_found(place: Path) -> None:
    guess = found(place)
    assert not guess.prepared
    assert guess.vocab_size == 2048
    assert guess.spec.n_tokens + guess.spec.n_validation_tokens == 50_000 // 4
    assert not (place / "cache").exists(), "resolving writes nothing"
    made = ensure_prepared(guess)
    assert made.prepared
    for part in ("train", "validation"):
        mine, theirs = getattr(made.spec, part), getattr(guess.spec, part)
        assert [source.folder for source in mine] == [source.folder for source in theirs]
    assert made.spec.tokenizer == guess.spec.tokenizer
    again = found(place)
    assert again == made
    assert ensure_prepared(again) == made


def test_the_cache_follows_content_tokenizer_and_share(place: Path) -> None:
    first = found(place).spec.train
    os.utime(place / "recipe" / "text" / "a.txt", (1, 1))
    assert found(place).spec.train == first
    assert found(place, validation=0.2).spec.train != first
    text = place / "recipe" / "text" / "a.txt"
    text.write_text(text.read_text().replace("Emma", "Anna"))
    changed = found(place).spec.train
    assert changed != first
    raw = (place / "recipe" / "tokenizer.json").read_text()
    (place / "recipe" / "tokenizer.json").write_text(raw + "\n")
    assert found(place).spec.train not in (first, changed)


def test_paths_beside_the_recipe_come_first(place: Path) -> None:
    (place / "work" / "text").mkdir()
    (place / "work" / "text" / "a.txt").write_text("other")
    (place / "work" / "b.txt").write_text("b" * 400)
    assert found(place).spec.n_tokens > 10_000
    assert found(place, source="b.txt").spec.n_tokens == 90
    both = found(place, source=["text/a.txt", "b.txt"]).parts[0].preparation
    assert both is not None and both.sources == (
        f"{place}/recipe/text/a.txt",
        f"{place}/work/b.txt",
    )


def test_prepared_folders(place: Path, big_vocabulary: str) -> None:
    source, tokenizer = str(place / "recipe" / "text"), str(place / "recipe" / "tokenizer.json")
    made = prepare([source], tokenizer=tokenizer, out=str(place / "recipe" / "data"), validation=0.1)
    plain = found(place, source="data", tokenizer=None)
    assert plain.prepared
    assert plain.vocab_size == 2048
    assert plain.spec.digest == made.digest
    assert found(place, source="data").spec.tokenizer == tokenizer
    assert found(place, source="data", validation=None).spec.validation
    assert found(place, source="data", validation=0).spec.validation == ()
    with pytest.raises(UserError, match=r"tokenizer: .* is not the one that made the tokens"):
        found(place, source="data", tokenizer=big_vocabulary)
    write_chunks(place / "recipe" / "bare", [1, 2, 3], chunk=2)
    bare = found(place, source="bare", validation=None)
    assert bare.vocab_size is None
    assert bare.spec.tokenizer == tokenizer
    held = found(place, source="bare", validation="data").spec.validation
    assert [source.folder for source in held] == [f"{place}/recipe/data/validation"]
    with pytest.raises(
        UserError, match=r"data\.validation: 0.1 is a share of text to hold out, but .*bare is prepared"
    ):
        found(place, source="bare")


def test_a_mixture_of_text_and_prepared_folders(place: Path, novel: str) -> None:
    source, tokenizer = str(place / "recipe" / "text"), str(place / "recipe" / "tokenizer.json")
    prepare([source], tokenizer=tokenizer, out=str(place / "recipe" / "data"), validation=0.1)
    (place / "recipe" / "b.txt").write_text(novel[60_000:70_000])
    write_chunks(place / "recipe" / "bare", list(range(300)), chunk=90)
    mixture = [{"source": name, "weight": weight} for name, weight in (("data", 3), ("b.txt", 1), ("bare", 2))]
    guess = found(place, source=None, mixture=mixture)
    assert (guess.prepared, guess.vocab_size) == (False, 2048)
    made = ensure_prepared(guess)
    folders = [one.folder for one in made.spec.train]
    assert folders == [one.folder for one in guess.spec.train]
    assert (folders[0], folders[2]) == (f"{place}/recipe/data/train", f"{place}/recipe/bare")
    assert made.spec.shares == (1 / 2, 1 / 6, 1 / 3)
    held = [os.path.dirname(folder) for folder in folders[:2]]
    assert [os.path.dirname(one.folder) for one in made.spec.validation] == held, "of all that hold something out"
    assert found(place, source=None, mixture=mixture) == made
    other = found(place, source=None, mixture=[*mixture[:2], {"source": "bare", "weight": 2.5}])
    assert other.spec.digest != made.spec.digest
    none = found(place, source=None, mixture=mixture, validation=0)
    assert none.spec.validation == ()
    twice = [mixture[2], {"source": str(place / "recipe" / "bare"), "weight": 1}]
    with pytest.raises(UserError, match=r"data\.mixture: .*bare is named twice"):
        found(place, source=None, mixture=twice)
    with pytest.raises(UserError, match=r"data\.mixture\.1\.source: .*nope does not exist"):
        found(place, source=None, mixture=[mixture[0], {"source": "nope", "weight": 1}])
    with pytest.raises(UserError, match="bare is prepared already and holds nothing out"):
        found(place, source=None, mixture=mixture[2:])


@pytest.mark.parametrize(
    ("data", "tokenizer", "said"),
    [
        ({"source": None}, "tokenizer.json", "data.source is missing"),
        ({"source": "nope"}, "tokenizer.json", r"data\.source: .*nope does not exist.*launch prepare"),
        ({"source": "text/*.md"}, "tokenizer.json", r"data\.source: .* matches no file"),
        ({}, None, "tokenizer is missing: data.source is text"),
        ({}, "nope", r"tokenizer: no tokenizer at .*nope"),
        ({"validation": "some/folder"}, "tokenizer.json", r"data\.validation: some/folder is a path"),
        ({"source": ["bare", "text/a.txt"]}, "tokenizer.json", "lists a prepared folder among others"),
        ({"source": "bare", "validation": "nope"}, None, r"data\.validation: .*nope does not exist"),
    ],
)
def test_mistakes_name_their_key(place: Path, data: dict[str, object], tokenizer: str | None, said: str) -> None:
    write_chunks(place / "recipe" / "bare", [1, 2, 3], chunk=2)
    with pytest.raises(UserError, match=said):
        found(place, tokenizer, **data)
    assert not (place / "cache").exists()


def test_text_that_cannot_be_prepared(place: Path) -> None:
    (place / "recipe" / "text" / "a.txt").write_bytes(b"\xff" * 100)
    guess = found(place)
    with pytest.raises(UserError, match=r"data\.source: .*a\.txt is not UTF-8"):
        ensure_prepared(guess)


def _prepare(place: str, results: multiprocessing.Queue[str]) -> None:
    results.put(ensure_prepared(found(Path(place))).spec.digest)


def test_tokens_of_an_earlier_launchyard_are_made_again_as_they_were(place: Path) -> None:
    """A run whose text was prepared when control tokens became control ids goes on with those tokens."""
    text = place / "recipe" / "text" / "a.txt"
    text.write_text(text.read_text() + " <|endoftext|> and more")
    section = {"source": str(text), "validation": 0.1}
    tokenizer = str(place / "recipe" / "tokenizer.json")
    made = [
        ensure_prepared(resolve(DataConfig(**section), tokenizer, cache=str(place / "cache"), encoding=encoding)).spec
        for encoding in (1, 2)
    ]
    assert made[0].digest != made[1].digest
    recipe = check_recipe({**RECIPE, "data": {**section, "seq_len": 16}, "tokenizer": tokenizer}, {}, source="r").recipe
    for spec in made:
        shutil.rmtree(place / "cache")
        restore_data(recipe, spec)
        assert [path.name for path in (place / "cache" / "data").iterdir() if path.is_dir()] == [
            Path(spec.train[0].folder).parent.name
        ]


def test_two_launches_at_once(place: Path) -> None:
    """One prepares, the other waits, both read the same."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[str] = context.Queue()
    both = [context.Process(target=_prepare, args=(str(place), results)) for _ in range(2)]
    try:
        for process in both:
            process.start()
        assert results.get(timeout=60) == results.get(timeout=60)
    finally:
        for process in both:
            process.join(30)
            process.kill()
    assert len([path for path in (place / "cache" / "data").iterdir() if path.is_dir()]) == 1


def test_text_without_a_tokenizer_takes_that_of_the_weights(place: Path) -> None:
    """Prepared tokens have their own, and one that is named wins."""
    model = place / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_bytes((place / "recipe/tokenizer.json").read_bytes())
    section = DataConfig(source="text/*.txt", validation=0.1)
    where = {"base": str(place / "recipe"), "cache": str(place / "cache")}
    made = ensure_prepared(resolve(section, None, init_from=str(model), **where))
    assert made.spec == ensure_prepared(resolve(section, "tokenizer.json", **where)).spec
    (model / "tokenizer.json").write_text("{}")
    assert resolve(section, "tokenizer.json", init_from=str(model), **where).prepared
    folder = DataConfig(source=str(Path(made.spec.train[0].folder).parent))
    assert resolve(folder, None, init_from=str(model), **where).prepared
    (model / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer is missing"):
        resolve(section, None, init_from=str(model), **where)
