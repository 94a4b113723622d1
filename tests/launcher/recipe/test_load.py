"""Recipes: every mistake is named at once with its place and what was meant; layers win in one order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.errors import RecipeErrors, UserError
from launchyard.launcher.recipe.aliases import RECIPE_VOCABULARY
from launchyard.launcher.recipe.bundled import bundled_recipes, recipe_folder
from launchyard.launcher.recipe.hints import leaf_keys
from launchyard.launcher.recipe.load import check_recipe, load_recipe, parse_overrides
from launchyard.launcher.recipe.yaml import parse_value
from launchyard.training.recipe import Recipe

SMALL = "name: small\nmodel: {preset: pythia-14m}\ndata: {source: data/x}\ntrain: {max_steps: 3}\n"


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def problems_of(source: str, *pairs: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(source, parse_overrides(list(pairs)))
    return getattr(caught.value, "problems", [str(caught.value)])


# -- all that is wrong, at once --------------------------------------------------------------------------------------
SCHEMA = Recipe.model_json_schema()
WRONG = """\
name: 3
modle: {preset: x}
model:
  presett: pythia-14m
  hidden_size: 5
  moe: {n_experts: 4, ffn_dim: 8, top_kk: 3}
data: {source: 3, kind: foo, block_size: 5, seq_len: yes}
train:
  max_steps: 3.5
  max_tokens: true
  lr: 1e-3
  gradient_accumulation_steps: 4
optimizer: {betas: [0.9], lr: fast}
schedule: {warmup_steps: -1}
checkpoint:
resources: {time_limit: 12:00:00}
"""


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, WRONG)
    found = problems_of(path, "train.max_grad_norm=abc", "validation.every=3")
    expected = {
        "1: name": "put it in quotes",
        "2: modle": "did you mean model?",
        "4: model.presett": "did you mean model.preset?",
        "5: model.hidden_size": "did you mean model.dim?",
        "6: model.moe.top_kk": "did you mean model.moe.top_k?",
        "6: model.moe.top_k": "missing",
        "7: data.source": "must be text or a list, each text; got 3",
        "7: data.kind": 'must be one of tokens, instruct, preference; got "foo"',
        "7: data.block_size": "did you mean data.seq_len?",
        "7: data.seq_len": 'whole number of at least 1; got "yes"',
        "9: train.max_steps": "got 3.5",
        "10: train.max_tokens": "got true",
        "11: train.lr": "did you mean optimizer.lr?",
        "12: train.gradient_accumulation_steps": "it follows",
        "13: optimizer.betas": "a list of 2 values, each a number; got [0.9]",
        "13: optimizer.lr": 'a number above 0; got "fast"',
        "14: schedule.warmup_steps": "a whole number of at least 0 or a number of at least 0; got -1",
        "15: checkpoint": "must be a mapping with the keys every_steps",
    }
    for place, said in expected.items():
        assert any(problem.startswith(f"{path}:{place}: ") and said in problem for problem in found), (place, found)
    assert any(problem.startswith("train.max_grad_norm=abc on the command line: ") for problem in found)
    assert any(problem.startswith("validation.every=3 on the command line: ") for problem in found)
    assert len(found) == len(expected) + 2, found


def test_rules_between_keys_name_their_section(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nmodel: {}\ndata: {}\ntrain:\n  max_steps: 1\n  max_tokens: 5\n")
    assert problems_of(path) == [
        f"{path}:4: train: give exactly one of max_steps, max_tokens, max_epochs; got max_steps and max_tokens"
    ]


def test_a_wrong_item_of_a_list_is_named_once(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL.replace("data/x", "[a, 3]"))
    assert problems_of(path) == [f"{path}:3: data.source.1: must be text; got 3; put it in quotes"]


def test_missing_keys_are_named(tmp_path: Path) -> None:
    found = problems_of(write(tmp_path, "name: a\n"))
    assert [problem.split(": ")[1] for problem in found] == ["data", "model", "train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("- a\n- b\n", "must be a mapping of keys"),
        ("name: a\nname: b\n", ":2: name: written twice; first in line 1"),
        ("train:\n  max_steps: 1\n  max_steps: 2\n", ":3: train.max_steps: written twice; first in line 2"),
        ("name: a\ndata: [\n", "not readable as YAML"),
        ("train:\n\tmax_steps: 1\n", ":2:1: not readable as YAML"),
        ("name: !!python/object/apply:os.system [ls]\n", ":1: name: the tag"),
        ("name: &x [*x]\n", "too deep or too large"),
        ("1: {2: 3}\n? [a]\n: b\n", ":2: a key must be plain text"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n", ":3: b: merge keys"),
        ("name: a\n---\nname: b\n", "not readable as YAML"),
        ("[" * 5000, "nested too deeply"),
        ("name: \x01\n", "not readable as YAML"),
    ],
)
def test_unreadable_files_say_where(tmp_path: Path, text: str, said: str) -> None:
    (problem, *_) = problems_of(write(tmp_path, text))
    assert str(tmp_path) in problem
    assert said in problem


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(b"name: \xff\xfe\n")
    assert "not UTF-8" in problems_of(str(tmp_path / "mine.yaml"))[0]


# -- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("3e8", 300_000_000),
        ("300e9", 300_000_000_000),
        ("1_000", 1000),
        ("1.0", 1.0),
        (".5", 0.5),
        ("12:00:00", "12:00:00"),
        ("2024-01-01", "2024-01-01"),
        ("no", "no"),
        ("true", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        (".inf", ".inf"),
        ("1e999", "1e999"),
        ("*.txt", "*.txt"),
        ("[a, 1e-2]", ["a", 0.01]),
        ("s3://b/k#frag", "s3://b/k#frag"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


@given(st.one_of(st.integers(-(2**60), 2**60), st.floats(allow_nan=False, allow_infinity=False), st.booleans()))
def test_python_numbers_come_back(value: float) -> None:
    assert parse_value(repr(value) if not isinstance(value, bool) else str(value).lower()) == value


def test_lr_on_the_command_line_is_a_number(tmp_path: Path) -> None:
    loaded = load_recipe(write(tmp_path, SMALL), parse_overrides(["optimizer.lr=1e-3", "train.max_tokens=3e5"]))
    assert loaded.recipe.optimizer.lr == 0.001
    assert loaded.recipe.train.max_tokens == 300_000
    assert loaded.recipe.train.max_steps is None, "a new length replaces the old one"


def test_a_mixture(tmp_path: Path) -> None:
    mixture = "[{source: web, weight: 0.7}, {source: [a.txt, b.txt], weight: 3}]"
    text = SMALL.replace("source: data/x", f"mixture: {mixture}")
    (tmp_path / "web").mkdir()
    (tmp_path / "b.txt").touch()
    path = write(tmp_path, text)
    loaded = load_recipe(path)
    assert loaded.recipe.data.mixture is not None
    assert [(one.source, one.weight) for one in loaded.recipe.data.mixture] == [
        (f"{tmp_path}/web", 0.7),
        (["a.txt", f"{tmp_path}/b.txt"], 3),
    ]
    other = load_recipe(path, parse_overrides(["data.source=x"])).recipe.data
    assert (other.source, other.mixture) == ("x", None), "a source replaces a mixture"
    mine = write(tmp_path, f"extends: {path}\ndata: {{source: y}}\n", "over.yaml")
    assert load_recipe(mine).recipe.data.mixture is None
    again = load_recipe(mine, parse_overrides(["data.mixture=[{source: z, weight: 1}]"])).recipe.data
    assert again.source is None and again.mixture is not None


@pytest.mark.parametrize(
    ("mixture", "said"),
    [
        ("[{source: a, weight: 0}]", "data.mixture.0.weight: must be a number above 0; got 0"),
        ("[{source: a, weight: -1}]", "data.mixture.0.weight: must be a number above 0; got -1"),
        ("[{source: a}]", "data.mixture.0.weight: missing; it must be a number above 0"),
        ("[{source: a, weight: .inf}]", "data.mixture.0.weight: must be a number above 0"),
        ("[{source: a, share: 1, weight: 1}]", "data.mixture.0.share: unknown key"),
        ("[]", "data.mixture: must be a list"),
        (
            "[{source: a, weight: 1}, {source: b, weight: 1e-6}]",
            "mixture.1.weight is 1e-06 of 1; each must be at least",
        ),
        ("[{source: a, weight: 1}], source: b", "data: give source or mixture, not both"),
    ],
)
def test_mistakes_in_a_mixture(tmp_path: Path, mixture: str, said: str) -> None:
    path = write(tmp_path, SMALL.replace("source: data/x", f"mixture: {mixture}"))
    (problem,) = problems_of(path)
    assert said in problem


@pytest.mark.parametrize("pair", ["nothing", "=3", "a..b=3", "9=1", "--x=1", "a b=1"])
def test_words_that_are_no_override(pair: str) -> None:
    with pytest.raises(RecipeErrors, match="not KEY=VALUE"):
        parse_overrides(["train.max_steps=1", pair])


def test_an_override_cannot_go_below_a_value(tmp_path: Path) -> None:
    (problem,) = problems_of(write(tmp_path, SMALL), "train.max_steps.x=3")
    assert "train.max_steps holds a value, not keys" in problem


# -- layers ----------------------------------------------------------------------------------------------------------
def test_extends_below_the_file_below_the_command_line(tmp_path: Path) -> None:
    write(tmp_path, SMALL + "optimizer: {lr: 1e-3, weight_decay: 0.2, eps: 1e-6}\n", "base.yaml")
    mine = write(tmp_path, "extends: base.yaml\nname: mine\noptimizer: {lr: 2e-3, weight_decay: 0.3}\n")
    loaded = load_recipe(mine, parse_overrides(["optimizer.lr=5e-3", "optimizer.lr=4e-3"]))
    optimizer = loaded.recipe.optimizer
    assert (loaded.recipe.name, optimizer.lr, optimizer.weight_decay, optimizer.eps) == ("mine", 4e-3, 0.3, 1e-6)
    assert "extends" not in loaded.raw
    assert Recipe.model_validate(loaded.raw) == loaded.recipe
    assert str(loaded.origin("optimizer.eps")).endswith("base.yaml:5")
    assert str(loaded.origin("optimizer.weight_decay")).endswith("mine.yaml:3")


def test_extends_replaces_a_length_and_a_shape(tmp_path: Path) -> None:
    mine = write(tmp_path, "extends: quickstart\nname: mine\nmodel: {preset: pythia-14m}\ntrain: {max_epochs: 2}\n")
    recipe = load_recipe(mine).recipe
    assert recipe.model.dim is None, "the knobs of the shape below would change the preset"
    assert (recipe.train.max_steps, recipe.train.max_epochs) == (None, 2)
    assert load_recipe("quickstart", {"model.preset": "pythia-14m"}).recipe.model.dim is None


def test_one_level_only(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "a.yaml")
    write(tmp_path, "extends: a.yaml\n", "b.yaml")
    (problem,) = problems_of(write(tmp_path, "extends: b.yaml\n"))
    assert "mine.yaml:1: extends: b.yaml extends a.yaml itself" in problem
    (problem,) = problems_of(write(tmp_path, "name: x\nextends: quickstrat\n"))
    assert "mine.yaml:2: extends: quickstrat: no such recipe" in problem
    assert "did you mean quickstart?" in problem


def test_errors_of_the_extended_file_name_that_file(tmp_path: Path) -> None:
    base = write(tmp_path, SMALL + "optimizer: {lrr: 1}\n", "base.yaml")
    assert problems_of(write(tmp_path, "extends: base.yaml\n")) == [
        f"{base}:5: optimizer.lrr: unknown key; did you mean optimizer.lr?"
    ]


def test_paths_are_meant_from_the_recipe_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "text.txt").write_text("hello")
    (tmp_path / "here.txt").write_text("hello")
    (folder / "here.txt").write_text("not this one")
    write(folder, SMALL.replace("data/x", "'*.txt'") + "tokenizer: none.json\n")
    monkeypatch.chdir(tmp_path)
    mine = write(tmp_path, "extends: base/mine.yaml\n", "top.yaml")
    assert load_recipe(mine).raw["data"]["source"] == str(folder / "*.txt")
    assert load_recipe(mine).raw["tokenizer"] == "none.json", "what is not there stays as it was written"
    over = load_recipe("base/mine.yaml", parse_overrides(["data.source=here.txt"]))
    assert over.raw["data"]["source"] == str(tmp_path / "here.txt")


def test_a_runs_own_recipe_is_checked_as_strictly() -> None:
    raw = yaml.safe_load(SMALL)
    assert check_recipe(raw, {"train.max_steps": 9}, source="run").recipe.train.max_steps == 9
    with pytest.raises(RecipeErrors, match=r"did you mean optimizer\.lr"):
        check_recipe(raw, {"train.lr": 9}, source="run")
    assert raw == yaml.safe_load(SMALL)


# -- finding ---------------------------------------------------------------------------------------------------------
def test_bundled_recipes_load_by_name_and_file() -> None:
    names = bundled_recipes()
    assert {"quickstart", "pythia-1b", "pretrain/pythia-160m", "pretrain/llama-3.2-1b"} <= set(names)
    for name in names:
        path = recipe_folder() / f"{name}.yaml"
        text = path.read_text()
        assert load_recipe(name).recipe == load_recipe(f"{name}.yaml").recipe == load_recipe(str(path)).recipe
        assert text.startswith("# "), "the first line says what and on which hardware"
        assert len(text.splitlines()) <= 40


@pytest.mark.parametrize(("word", "meant"), [("quickstrat", "quickstart"), ("pythia-160", "pretrain/pythia-160m")])
def test_unknown_recipes_have_near_names(word: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        load_recipe(word)


def test_folders_and_huge_files_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a folder, not a recipe"):
        load_recipe(str(tmp_path))
    with pytest.raises(UserError, match="not a recipe"):
        load_recipe(write(tmp_path, "# " + "x" * 1_000_001))


def test_memory_urls() -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.pipe_file("/recipes/base.yaml", SMALL.encode())
    fs.pipe_file("/recipes/mine.yaml", b"extends: base.yaml\nname: far\n")
    loaded = load_recipe("memory://recipes/mine.yaml")
    assert (loaded.recipe.name, loaded.base) == ("far", "memory://recipes")
    with pytest.raises(UserError, match=r"memory://recipes/none.yaml"):
        load_recipe("memory://recipes/none.yaml")


def test_passwords_in_urls_are_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("nosuchprotocol://me:secret@host/x.yaml")
    assert "secret" not in str(caught.value)


# -- words -----------------------------------------------------------------------------------------------------------
def test_every_suggested_key_exists() -> None:
    schema = Recipe.model_json_schema()
    leaves = set(leaf_keys(schema))
    sections = {leaf.rsplit(".", 1)[0] for leaf in leaves if "." in leaf}
    for theirs, ours in RECIPE_VOCABULARY.moved.items():
        assert ours in leaves | sections, f"{theirs} -> {ours}"
        assert theirs not in leaves, f"{theirs} is a key of ours"


@settings(deadline=None)
@given(st.sampled_from(sorted(leaf_keys(SCHEMA))), st.integers(0, 30))
def test_a_doubled_letter_still_finds_the_key(leaf: str, at: int) -> None:
    *parents, last = leaf.split(".")
    at = at % len(last)
    wrong = last[:at] + last[at] + last[at:]
    said = RECIPE_VOCABULARY.suggest(SCHEMA, (*parents, wrong))
    assert leaf in said or RECIPE_VOCABULARY.moved.get(wrong, "") in said
