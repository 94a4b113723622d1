"""Vocabularies in other files than tokenizer.json give the ids of the programs that they belong to."""

from __future__ import annotations

import base64
import json
import shutil
import struct
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers, trainers

from launchyard.launcher.submit.beside import beside_run
from launchyard.model.text.find import find_carrier, read_tokenizer_files
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.model.weights.gguf_format import read_gguf
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from launchyard.storage.errors import CorruptError
from launchyard.storage.safetensors import TensorFile
from launchyard.training.data.dataset_spec import open_dataset
from launchyard.training.data.index import read_dataset
from launchyard.training.data.prepare.prepare import prepare
from launchyard.training.recipe import Recipe
from tests.support.small_runs import RECIPE
from tests.support.tiny_models import llama, random_model, weights_of

SPACE = "\u2581"
CORPUS = ["the cat sat on the mat, and the other cats weren't there in 1984.\n def cat(s): return s + 'é我'"] * 9
TEXTS = st.text(alphabet=st.sampled_from("theca tsn,'\n 19é我\t🎉"), max_size=30)
Piece = tuple[str, float, int]  # text, score, type


@cache
def opened(place: Path) -> Tokenizer:
    return Tokenizer.load(str(place))


# -- sentencepiece ---
@cache
def pieces() -> list[Piece]:
    """Those of Llama 2, but few: control tokens, bytes, merged tokens by falling score, characters."""
    engine = Engine(models.BPE())
    engine.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    engine.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    tokens = sorted(engine.get_vocab(), key=lambda token: (len(token) == 1, engine.token_to_id(token)))
    control = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    bytes_of = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return control + bytes_of + [(token, -float(number), 1) for number, token in enumerate(tokens)]


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def field(number: int, value: int | float | bytes) -> bytes:
    """A field of a protobuf message."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def sentencepiece_file(path: Path) -> None:
    written = [field(1, text.encode()) + field(2, score) + field(3, kind) for text, score, kind in pieces()]
    trainer = field(3, 2) + field(35, 1)  # BPE with bytes for what no piece holds
    normalizer = field(3, 1) + field(4, 0)  # a space before the text; several stay several
    path.write_bytes(b"".join(field(1, piece) for piece in written) + field(2, trainer) + field(3, normalizer))


def joined(text: str) -> list[int]:
    """sentencepiece's own way: of all neighbours that join to a piece, those of the best score join, leftmost first."""
    ids = {piece: number for number, (piece, *_) in enumerate(pieces())}
    normal = {piece: score for piece, score, kind in pieces() if kind == 1}
    parts = list(SPACE + text.replace(" ", SPACE)) if text else []
    while ways := [(-normal[a + b], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in normal]:
        at = min(ways)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [number for part in parts for number in ([ids[part]] if part in normal else bytes_as_ids(part, ids))]


def bytes_as_ids(part: str, ids: dict[str, int]) -> Iterator[int]:
    return (ids[f"<0x{byte:02X}>"] for byte in part.encode())


@pytest.fixture(scope="module")
def llama2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as LLaMA 2 came: weights, tokenizer.model and a tokenizer_config.json, but no tokenizer.json."""
    folder = tmp_path_factory.mktemp("llama2")
    config = llama(vocab_size=len(pieces()), padded_vocab_size=len(pieces()))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer"}
    beside = {"tokenizer_config.json": json.dumps(named).encode()}
    save_hf(weights_of(random_model(config)), config, str(folder), companions=beside)
    sentencepiece_file(folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_bytes(beside["tokenizer_config.json"])
    return folder


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_a_sentencepiece_file_gives_the_ids_of_sentencepiece(llama2: Path, text: str) -> None:
    tokenizer = opened(llama2 / "tokenizer.model")
    assert tokenizer.encode(text) == [1, *joined(text)]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_folder_with_a_sentencepiece_file_generates(llama2: Path) -> None:
    model = load(str(llama2))
    assert isinstance(model.generate("the cat", max_new_tokens=3, temperature=0.0), str)
    assert model.stop_ids == {2}
    assert "tokenizer.json" in model.companions


def test_a_run_from_a_folder_with_a_sentencepiece_file_keeps_the_tokenizer_made_of_it(
    llama2: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(CORPUS[0])
    prepare([str(tmp_path / "a.txt")], tokenizer=str(llama2), out=str(tmp_path / "d"), workers=1)
    recipe = Recipe.model_validate({**RECIPE, "model": {"init_from": str(llama2)}, "tokenizer": str(llama2)})
    kept = beside_run(recipe, open_dataset(str(tmp_path / "d")))
    bare = beside_run(recipe, open_dataset(str(tmp_path / "d")).model_copy(update={"tokenizer": None}))
    made = read_tokenizer_files(f"{llama2}/tokenizer.model")
    assert kept["tokenizer.json"] == bare["tokenizer.json"] == made["tokenizer.json"]


@pytest.mark.parametrize("place", ["", "/tokenizer.model"])
def test_text_is_prepared_with_a_sentencepiece_file(llama2: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "a.txt").write_text(CORPUS[0])
    prepare([str(tmp_path / "a.txt")], tokenizer=f"{llama2}{place}", out=str(tmp_path / "d"), workers=1)
    dataset = read_dataset(str(tmp_path / "d"))
    assert dataset is not None
    assert (dataset.tokenizer.bos, dataset.tokenizer.eos) == ("<s>", "</s>")
    assert dataset.tokens == len(joined(CORPUS[0])) + 2
    assert Tokenizer.load(str(tmp_path / "d/tokenizer")).encode("the cat") == [1, *joined("the cat")]


def test_a_damaged_sentencepiece_file_is_named(llama2: Path, tmp_path: Path) -> None:
    raw = (llama2 / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(raw[:-3])
    with pytest.raises(ValueError, match=r"/tokenizer\.model: the sentencepiece file is cut"):
        read_tokenizer_files(str(tmp_path / "tokenizer.model"))


# -- vocab.json and merges.txt, tiktoken ---
@cache
def byte_level() -> Engine:
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(CORPUS, trainer)
    return engine


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    byte_level().model.save(str(folder))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return folder


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_vocab_and_merges_give_the_ids_they_were_trained_to(gpt2: Path, text: str) -> None:
    mixed = f"{text}<|endoftext|>{text}"
    assert opened(gpt2).encode(mixed) == byte_level().encode(mixed).ids


def test_vocab_and_merges_begin_a_text_where_they_say_so(gpt2: Path, tmp_path: Path) -> None:
    """As OPT has it."""
    shutil.copytree(gpt2, tmp_path, dirs_exist_ok=True)
    named = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    assert Tokenizer.load(str(tmp_path)).encode("the") == [1, *byte_level().encode("the").ids]


def test_vocab_and_merges_of_another_class_are_refused(gpt2: Path, tmp_path: Path) -> None:
    shutil.copytree(gpt2, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(ValueError, match=r"vocab\.json: merges\.txt of tokenizer_class CTRLTokenizer is not supported"):
        read_tokenizer_files(str(tmp_path / "vocab.json"))


def test_ranks_of_no_known_encoding_are_refused(tmp_path: Path) -> None:
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    (tmp_path / "mine.tiktoken").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"mine\.tiktoken: the tiktoken file has 256 ranks.*cl100k_base \(100,256\)"):
        read_tokenizer_files(str(tmp_path / "mine.tiktoken"))


# -- where it is looked for ---
def test_tokenizer_json_comes_first_and_a_folder_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder.model"
    folder.mkdir()
    assert find_carrier(str(folder)) is None
    for name in ("tokenizer.model", "merges.txt", "vocab.json", "tokenizer.json"):
        (folder / name).write_text("{}")
        expected = "tokenizer.model" if name == "merges.txt" else name
        assert find_carrier(str(folder)) == f"{folder}/{expected}"


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_file_that_git_lfs_did_not_fetch_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    (tmp_path / "merges.txt").write_bytes(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a pointer of Git LFS and not the file itself"):
        read_tokenizer_files(str(tmp_path / name))


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_so_are_weights(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CorruptError, match="pointer of Git LFS"):
        (read_gguf if name.endswith("gguf") else TensorFile)(str(tmp_path / name))
