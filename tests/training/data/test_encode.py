from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from launchyard.training.data.prepare.prepare import prepare
from tests.support.litdata_reader import read_tokens


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_control_tokens_in_documents_stay_text(tmp_path: Path, tokenizer: Tokenizer, tokenizer_file: str) -> None:
    """And are counted; data that is made anew for a run of before is as it was."""
    text = "a <|endoftext|> b, and <|endoftext|>"
    write_jsonl(tmp_path / "a.jsonl", [text])
    source = [str(tmp_path / "a.jsonl")]
    made = prepare(source, tokenizer=tokenizer_file, out=str(tmp_path / "o"))
    ids = read_tokens(tmp_path / "o" / "train")
    assert ids.index(0) == len(ids) - 1
    assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == text
    assert (made.control_tokens, made.options.encoding) == (2, 2)
    before = prepare(source, tokenizer=tokenizer_file, out=str(tmp_path / "before"), encoding=1)
    assert read_tokens(tmp_path / "before" / "train") == [*tokenizer.encode(text).ids, 0]
    assert prepare(source, tokenizer=tokenizer_file, out=str(tmp_path / "before")) == before
    assert before.control_tokens == 0


def test_documents_begin_as_the_tokenizer_has_it(tmp_path: Path, tokenizer: Tokenizer, tokenizer_file: str) -> None:
    """A token of its own is put before every document and recorded; none where the end of one begins the next."""
    write_jsonl(tmp_path / "a.jsonl", ["abc", "x"])
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_special_tokens(["<s>"])
    for first in ("<s>", "<|endoftext|>"):
        token = (first, changed.token_to_id(first))
        changed.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[token])
        changed.save(str(tmp_path / "tokenizer.json"))
        made = prepare([str(tmp_path / "a.jsonl")], tokenizer=str(tmp_path), out=str(tmp_path / first[1:3]))
        bos = [token[1]] if first == "<s>" else []
        expected = [*bos, *tokenizer.encode("abc").ids, 0, *bos, *tokenizer.encode("x").ids, 0]
        assert read_tokens(tmp_path / first[1:3] / "train") == expected
        assert (made.tokenizer.bos, made.tokenizer.bos_id) == ((first, bos[0]) if bos else (None, None))
