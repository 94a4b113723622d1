"""A tokenizer through the metadata of a GGUF file and back gives the same ids; what cannot go there is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from launchyard.model.text.from_gguf import companions_of_gguf
from launchyard.model.text.splits import WORD_SPLITS
from launchyard.model.text.to_gguf import gguf_tokenizer_keys
from launchyard.model.weights.gguf_header import GgufHeader

CORPUS = [
    "the cat sat on the mat, and the other cats weren't there in 1984 or 2024.\n\n  def cat(s): return s + 'é我' "
] * 9
ROWS = 400
SPECIAL = ["<s>", "</s>", "<|im_end|>"]
TEXTS = st.text(
    alphabet=st.sampled_from("theca tsn,'\n 19é我\t🎉") | st.characters(exclude_categories=["Cs"]), max_size=40
)


def byte_level(pre: str) -> Tokenizer:
    """Trained with the split of a `tokenizer.ggml.pre`."""
    bare = {
        "version": "1.0",
        "pre_tokenizer": WORD_SPLITS[pre].pre_tokenizer,
        "model": {"type": "BPE", "vocab": {}, "merges": []},
    }
    engine = Tokenizer.from_str(json.dumps(bare))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    engine.add_tokens([AddedToken("  ", normalized=False), AddedToken("<tool>", normalized=False)])
    engine.decoder = decoders.ByteLevel()
    engine.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))])
    return engine


def files_of(engine: Tokenizer, **settings: object) -> dict[str, bytes]:
    return {"tokenizer.json": engine.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}


def back(companions: Mapping[str, bytes], rows: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Metadata of an export, and what is read from it."""
    metadata = {key: value.value for key, value in gguf_tokenizer_keys(companions, rows).items()}
    return metadata, companions_of_gguf(metadata)


def engine_of(companions: Mapping[str, bytes]) -> Tokenizer:
    return Tokenizer.from_str(companions["tokenizer.json"].decode())


@cache
def both(pre: str) -> tuple[Tokenizer, Tokenizer, dict[str, Any]]:
    """A tokenizer, the same through GGUF, and the metadata between them."""
    engine = unigram() if pre == "unigram" else byte_level(pre)
    metadata, read = back(files_of(engine), ROWS)
    return engine, engine_of(read), metadata


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
@settings(max_examples=40, deadline=None)
@given(text=TEXTS)
def test_ids_through_gguf_are_the_same(pre: str, text: str) -> None:
    engine, returned, _ = both(pre)
    for mixed in (text, f"<tool>{text}<|im_end|>  {text}"):
        ids = engine.encode(mixed).ids
        assert returned.encode(mixed).ids == ids
        assert returned.decode(ids) == engine.decode(ids)


def test_the_way_of_cutting_is_found_by_behaviour() -> None:
    assert both("smollm")[2]["tokenizer.ggml.pre"] == "smollm"
    assert both("llama-bpe")[2]["tokenizer.ggml.pre"] in ("llama-bpe", "smaug-bpe")  # with and without ignore_merges
    engine = Tokenizer.from_str(both("smollm")[0].to_str())
    engine.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel()])
    with pytest.raises(ValueError, match=r"no tokenizer\.ggml\.pre of llama\.cpp cuts text as this"):
        gguf_tokenizer_keys(files_of(engine), ROWS)


def test_rows_without_a_token_are_padding_that_no_one_reads_back() -> None:
    engine, returned, metadata = both("smollm")
    n_ids = engine.get_vocab_size()
    assert metadata["tokenizer.ggml.tokens"][n_ids:] == [f"[PAD{row}]" for row in range(n_ids, ROWS)]
    assert set(metadata["tokenizer.ggml.token_type"][n_ids:]) == {5}
    assert returned.get_vocab() == engine.get_vocab()
    with pytest.raises(ValueError, match=rf"ids up to {n_ids - 1}, the model 300 rows"):
        gguf_tokenizer_keys(files_of(engine), 300)


def test_special_ids_and_templates_travel() -> None:
    engine = both("smollm")[0]
    ids = {token: engine.token_to_id(token) for token in SPECIAL}
    companions = files_of(engine, bos_token="<s>", eos_token={"content": "</s>"}, chat_template="{{ messages }}")
    companions["generation_config.json"] = json.dumps({"eos_token_id": [ids["</s>"], ids["<|im_end|>"]]}).encode()
    companions["additional_chat_templates/tool.jinja"] = b"{{ tools }}"
    metadata, read = back(companions, ROWS)
    assert metadata["tokenizer.ggml.add_bos_token"] and not metadata["tokenizer.ggml.add_eos_token"]
    assert metadata["tokenizer.ggml.eot_token_id"] == ids["<|im_end|>"]
    config = json.loads(read["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"]) == ("<s>", "</s>")
    assert config["chat_template"].encode() == read["chat_template.jinja"] == b"{{ messages }}"
    assert read["additional_chat_templates/tool.jinja"] == b"{{ tools }}"
    assert json.loads(read["generation_config.json"])["eos_token_id"] == [ids["</s>"], ids["<|im_end|>"]]


def unigram() -> Tokenizer:
    engine = Tokenizer(models.Unigram())
    engine.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    engine.pre_tokenizer = pre_tokenizers.Metaspace()
    engine.decoder = decoders.Metaspace()
    engine.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        ),
    )
    return engine


@given(text=st.text(alphabet="theca tsn,'\n19é", max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_unigram_vocabulary_goes_through_gguf(text: str) -> None:
    engine, returned, _ = both("unigram")
    assert returned.encode(text).tokens == engine.encode(text).tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre": "qwen99"}, "'qwen99', whose way to cut text is not known"),
        ({"model": "bert"}, "'bert'; supported: gpt2"),
        ({"merges": []}, "merges is missing"),
        ({"eos_token_id": 4000}, "eos_token_id is 4000, of 400 tokens"),
    ],
)
def test_metadata_that_cannot_be_a_tokenizer(change: dict[str, object], message: str) -> None:
    metadata = both("smollm")[2]
    with pytest.raises(ValueError, match=message):
        companions_of_gguf(metadata | {f"tokenizer.ggml.{key}": value for key, value in change.items()})


@pytest.mark.slow
def test_ids_of_published_vocabularies() -> None:
    """Files ggml-vocab-NAME.gguf of llama.cpp's models/ folder, with texts in .inp and their ids in .out."""
    folder = os.environ.get("GGUF_VOCABULARIES")
    if folder is None:
        pytest.skip("set GGUF_VOCABULARIES to a folder of GGUF vocabularies with .inp and .out files")
    for expected in sorted(Path(folder).glob("ggml-vocab-*.gguf.out")):
        metadata = GgufHeader(str(expected.with_suffix(""))).metadata
        if metadata["tokenizer.ggml.model"] == "bert":
            continue
        engine = engine_of(companions_of_gguf(metadata))
        texts = expected.with_suffix(".inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
        lines = expected.read_text().split("\n")
        wrong = [
            text
            for text, line in zip(texts, lines, strict=False)
            if engine.encode(text, add_special_tokens=False).ids != [int(number) for number in line.split()]
        ]
        assert not wrong, f"{expected.name}: {wrong[:3]}"
