"""From JSON lines of conversations to a prepared folder, with a tokenizer that is trained here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launchyard.errors import UserError
from launchyard.launcher.data.resolve import resolve
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.training.data.index import RowOptions
from launchyard.training.data.instruct.render import Renderer
from launchyard.training.data.instruct.shapes import read_conversations
from launchyard.training.data.prepare.instruct import prepare_instruct
from launchyard.training.data.row_store import RowStore
from launchyard.training.sections.data import DataConfig
from tests.support.tiny_models import byte_tokenizer

ROWS: list[dict[str, object]] = [
    {"instruction": "the cat", "input": None, "output": "and the dog"},
    {"messages": [{"role": "user", "content": "the end"}, {"role": "assistant", "content": "of the tale"}]},
    {"prompt": "the", "completion": "tale"},
    {"prompt": "the " * 2000, "completion": "end"},
]


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_rows_are_those_of_the_renderer_and_the_same_request_makes_nothing_again(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    source = write(tmp_path / "a.jsonl", ROWS)
    out = str(tmp_path / "out")
    options = RowOptions(seq_len=400, style="alpaca")
    made = prepare_instruct([source], tokenizer=tokenizer, out=out, options=options)
    assert made.instruct is not None
    assert made.instruct.dropped == {"too long": 1}
    renderer = Renderer(Tokenizer(tokenizer), style="alpaca", max_tokens=401)
    store = RowStore(f"{out}/train")
    rows = [row for row in map(renderer.row, read_conversations([source])) if row is not None]
    assert len(rows) == len(store.lengths) == 3
    for number, row in enumerate(rows):
        found = store.row(number)
        assert (found.ids.tolist(), found.trained.tolist()) == (row.ids.tolist(), row.trained.tolist())
        assert found.trained[-1] and found.ids[-1] == made.tokenizer.eos_id
    assert prepare_instruct([source], tokenizer=tokenizer, out=out, options=options) == made
    with pytest.raises(ValueError, match="another data set"):
        prepare_instruct([source], tokenizer=tokenizer, out=out, options=RowOptions(seq_len=99, style="alpaca"))


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


@pytest.mark.parametrize("template", [CHAT, "{{ bos_token }}" + CHAT], ids=["no BOS", "BOS"])
def test_prepared_ids_are_those_that_transformers_gives_a_chat(tmp_path: Path, template: str) -> None:
    """Also by a tokenizer that puts a BOS before every text: a rendered chat gets none besides its own."""
    from tokenizers import Tokenizer as RawTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    path = byte_tokenizer(tmp_path / "tokenizer.json")
    raw = RawTokenizer.from_file(path)
    end = ("<|endoftext|>", raw.token_to_id("<|endoftext|>"))
    raw.post_processor = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[end])
    raw.save(path)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end[0], "eos_token": end[0]}
    settings |= {"pad_token": end[0], "chat_template": template}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    turns = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "and the dog"}]
    source = write(tmp_path / "a.jsonl", [{"messages": turns}])
    out = str(tmp_path / "out")
    prepare_instruct([source], tokenizer=path, out=out, options=RowOptions(seq_len=400))
    row = RowStore(f"{out}/train").row(0)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert row.ids.tolist() == theirs.apply_chat_template(turns, return_dict=False)
    assert row.ids[~row.trained].tolist() == asked
    assert row.ids[row.trained].tolist() == theirs("and the dog", add_special_tokens=False)["input_ids"] + [end[1]]


def test_all_faulty_rows_are_told_by_line(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*ROWS, {"told": "a"}, {"prompt": 3, "completion": "b"}])
    with pytest.raises(ValueError, match="2 of 6 rows") as caught:
        list(read_conversations([source]))
    assert all(f"a.jsonl:{line}: " in str(caught.value) for line in (9, 11))


def test_the_validation_part_of_a_folder_is_the_held_out_part(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    folder = tmp_path / "chats"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:2])
    write(folder / "validation.jsonl", ROWS[2:3])
    out = str(tmp_path / "out")
    options = RowOptions(seq_len=400, style="alpaca")
    made = prepare_instruct([str(folder)], tokenizer=tokenizer, out=out, options=options)
    assert {name: split.documents for name, split in made.splits.items()} == {"train": 2, "validation": 1}


def test_prompts_that_are_trained_for_make_another_folder_and_are_asked_for_by_key(tmp_path: Path) -> None:
    """The recipe's key and the rows agree; a folder of before the key is one whose prompts are masked."""
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    write(tmp_path / "rows.jsonl", ROWS[:3])
    made = {}
    for mask in (True, False):
        options = RowOptions(seq_len=400, style="alpaca", mask_prompt=mask)
        out = str(tmp_path / f"masked-{mask}")
        made[mask] = prepare_instruct([str(tmp_path / "rows.jsonl")], tokenizer=tokenizer, out=out, options=options)
        given = DataConfig(kind="instruct", source=out, mask_prompt=mask)
        assert resolve(given, None).spec.n_tokens
        with pytest.raises(UserError, match=r"data\.mask_prompt is"):
            resolve(given.model_copy(update={"mask_prompt": not mask}), None)
    one, other = made[True], made[False]
    assert one.tokens == other.tokens
    assert other.splits["train"].labels == other.tokens - other.documents > (one.splits["train"].labels or 0) > 0
    assert one.instruct is not None and other.instruct is not None
    assert one.instruct.made_from != other.instruct.made_from
    assert "mask_prompt" not in RowOptions(seq_len=4).deciding()
