"""What stands beside weights stays: through exports of exports, and with the same end ids."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from launchyard.model.text.companions import CHAT_TEMPLATE, GENERATION, read_companions, write_companions
from launchyard.model.text.special_tokens import SpecialTokens, special_ids, with_ends, with_ids, with_ids_of
from launchyard.model.text.templates import configured_templates, read_templates
from launchyard.model.text.tokenizer import exported

WORDS = ["<unk>", "<s>", "</s>", "<|im_end|>", "<pad>", "the", "cat"]


def tokenizer_json(words: list[str]) -> bytes:
    vocab = {word: number for number, word in enumerate(words)}
    return json.dumps({"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}}).encode()


def random_companions(seed: int) -> dict[str, bytes]:
    """Any of the files that a folder may have, each with any of the keys that it may have."""
    rng = random.Random(seed)

    def some(**keys: object) -> dict[str, object]:
        return {key: value for key, value in keys.items() if rng.random() < 0.6}

    templates = [{"name": "default", "template": "{{ bos }}"}, {"name": "tool_use", "template": "é"}]
    settings = some(
        eos_token=rng.choice(["</s>", {"content": "<|im_end|>", "lstrip": False}]),
        pad_token="<pad>",
        chat_template=rng.choice(["{{ messages }}<|im_end|>", templates]),
        tokenizer_class="LlamaTokenizer",
    )
    rules = some(eos_token_id=rng.choice([2, [3, 2], [3]]), pad_token_id=4, bos_token_id=1, temperature=0.2)
    files = some(**{
        "tokenizer_config.json": json.dumps(settings).encode(),
        "special_tokens_map.json": json.dumps(some(eos_token="</s>", bos_token="<s>")).encode(),
        "generation_config.json": json.dumps(rules).encode(),
        "chat_template.jinja": b"{# a file #}",
        "additional_chat_templates/rag.jinja": b"{# another #}",
        "LICENSE.txt": b"free",
    })  # fmt: skip
    return {
        "tokenizer.json": tokenizer_json(WORDS),
        **{name: raw for name, raw in files.items() if isinstance(raw, bytes)},
    }


@pytest.mark.parametrize("seed", range(40))
def test_an_export_of_an_export_keeps_all(seed: int, tmp_path: Path) -> None:
    given = random_companions(seed)
    once = exported(given, max_seq_len=64)
    write_companions(once, str(tmp_path))
    assert read_companions(str(tmp_path)) == once == exported(once, max_seq_len=32)
    assert {name: once[name] for name in given if name != "tokenizer_config.json"} == {
        name: raw for name, raw in given.items() if name != "tokenizer_config.json"
    }
    assert set(SpecialTokens(once).ends()) == set(SpecialTokens(given).ends())
    assert special_ids(once, rows=7) == special_ids(given, rows=7)
    assert read_templates(once) == configured_templates(once) == read_templates(given)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_added_to_end_ids_stays_beside_those_that_were_there(seed: int) -> None:
    given = random_companions(seed)
    config = {"eos_token_id": [6, 5], "bos_token_id": 1, "pad_token_id": None}
    kept = with_ends(with_ids(given, config), [0])
    said = {end for ends in SpecialTokens(given, config).said("eos").values() for end in ends}
    assert set(SpecialTokens(kept).ends()) == said | {0} >= {5, 6, 0}
    before, after = (json.loads(found.get(GENERATION, b"{}")) for found in (given, kept))
    assert {key: value for key, value in after.items() if key in before and key != "eos_token_id"} == {
        key: value for key, value in before.items() if key != "eos_token_id"
    }
    assert with_ends(with_ids(kept, config), [0]) == kept


@pytest.mark.parametrize("seed", range(20))
def test_ids_under_another_tokenizer_are_those_of_the_same_tokens(seed: int) -> None:
    given = random_companions(seed)
    words = [word for word in WORDS if word != "<pad>"]
    random.Random(seed).shuffle(words)
    moved = {"tokenizer.json": tokenizer_json(words)}
    before = SpecialTokens(given)
    after = SpecialTokens({**with_ids_of(given, moved), **moved})
    for role in ("eos", "bos", "pad"):
        tokens = [before.token_of(number) for number in before.said(role).get(GENERATION, [])]
        found = [after.token_of(number) for number in after.said(role).get(GENERATION, [])]
        assert found == [token for token in tokens if token != "<pad>"]


def test_names_that_belong_beside_weights(tmp_path: Path) -> None:
    for name in (
        "model.safetensors",
        "config.json",
        "modeling_x.py",
        "../x.jinja",
        "additional_chat_templates/a/b.jinja",
    ):
        with pytest.raises(ValueError, match="no file that belongs beside weights"):
            write_companions({name: b""}, str(tmp_path))
    assert read_companions(str(tmp_path / "nowhere")) == {}


def test_ids_that_the_rows_do_not_have_are_left_out() -> None:
    given = {"tokenizer.json": tokenizer_json(WORDS), GENERATION: b'{"eos_token_id": [2, 900], "pad_token_id": 900}'}
    assert special_ids(given, rows=7) == {"eos_token_id": 2}


def test_the_usual_names_count_only_where_no_file_says_an_end() -> None:
    bare = {"tokenizer.json": tokenizer_json(WORDS)}
    assert list(SpecialTokens(bare).ends()) == [2]
    assert list(SpecialTokens({**bare, GENERATION: b'{"eos_token_id": 6}'}).ends()) == [6]
    assert read_templates({CHAT_TEMPLATE: b"x"}) == {"default": "x"}
