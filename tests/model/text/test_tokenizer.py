"""Text in pieces is the text, whatever the pieces; stop strings cut where they begin."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from launchyard.model.text.special_tokens import END_OF_TEXT
from launchyard.model.text.tokenizer import StopStrings, Tokenizer
from launchyard.training.data.prepare.encode import open_tokenizer
from tests.support.tiny_models import byte_tokenizer, word_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(byte_tokenizer(tmp_path_factory.mktemp("byte") / "tokenizer.json"))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(word_tokenizer(tmp_path_factory.mktemp("word") / "tokenizer.json"))


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=60))
def test_a_stream_of_text_is_the_text(byte_level: Tokenizer, text: str) -> None:
    stream = byte_level.stream()
    pieces = [stream.add(token) for token in byte_level.encode(text)]
    assert "".join(pieces) + stream.flush() == byte_level.decode(byte_level.encode(text))
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces), "half a character was shown"


def test_half_a_surrogate_pair_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not Unicode at character 14"):
        byte_level.encode("half a pair: \ud83d")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(0, 299), max_size=120), st.lists(st.integers(1, 299), max_size=20))
def test_a_stream_of_any_ids_is_their_text(byte_level: Tokenizer, ids: list[int], context: list[int]) -> None:
    """Ids of a model that has learnt nothing: bytes that are no text. What came before them must be whole."""
    context = byte_level.encode(byte_level.decode(context).replace("\ufffd", "?"))
    stream = byte_level.stream(context)
    shown = "".join(stream.add(token) for token in ids) + stream.flush()
    assert byte_level.decode(context) + shown == byte_level.decode(context + ids)


def test_a_long_stream_keeps_its_spaces(words: Tokenizer, byte_level: Tokenizer) -> None:
    text = "the cat sat on the mat. the cats, the mats. " * 30
    for tokenizer in (words, byte_level):
        ids = tokenizer.encode(text)
        stream = tokenizer.stream(ids[:3])
        shown = "".join(stream.add(token) for token in ids[3:]) + stream.flush()
        assert tokenizer.decode(ids[:3]) + shown == tokenizer.decode(ids)


def test_a_decoder_that_strips_the_first_space_is_shown_what_came_before(words: Tokenizer) -> None:
    assert words.decode(words.encode("sat on")) == "sat on"
    stream = words.stream(words.encode("the cat"))
    assert [stream.add(token) for token in words.encode("sat on")] == [" sat", " on"]


def test_text_is_shown_as_soon_as_it_is_whole(byte_level: Tokenizer) -> None:
    stream = byte_level.stream()
    pieces = [stream.add(token) for token in byte_level.encode("a€b")]  # three bytes, none of them merged
    assert pieces == ["a", "", "", "€", "b"]


def test_special_tokens_are_not_shown(byte_level: Tokenizer) -> None:
    assert byte_level.eos_id == 0
    assert byte_level.decode([0, *byte_level.encode("the"), 0]) == "the"


def test_other_threads_go_on_while_a_long_text_is_encoded(words: Tokenizer) -> None:
    """A server answers others meanwhile: the tokenizers package keeps Python's lock for all of a single `encode`."""
    ticks = 0
    done = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not done.wait(0.01):
            ticks += 1

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.monotonic()
    ids = words.encode("the cat sat " * 400_000)
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    assert len(ids) >= 400_000
    assert ticks > seconds / 0.01 / 10, f"{ticks} ticks in {seconds:.1f} s"


def test_a_text_that_is_not_unicode_is_refused(byte_level: Tokenizer) -> None:
    with pytest.raises(ValueError, match="not Unicode at character 4"):
        byte_level.encode("caf\udce9")
    with pytest.raises(ValueError, match="not Unicode at character 1"):
        byte_level.encode_each(["a", "\ud800"])


def test_the_end_of_text_is_what_the_folder_says(tmp_path: Path) -> None:
    path = Path(byte_tokenizer(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "!", "lstrip": false}}')
    assert Tokenizer(str(path)).eos_id == Tokenizer(str(path)).raw.token_to_id("!")


@pytest.mark.parametrize("configured", [None, "the", {"content": "the"}], ids=str)
@pytest.mark.parametrize("token", [*END_OF_TEXT, "<of nobody>"])
def test_a_model_stops_at_the_token_that_ends_its_documents(tmp_path: Path, token: str, configured: object) -> None:
    """What `launch prepare` puts after a text is what generation takes for its end."""
    path = _three_words(tmp_path, token, configured)
    try:
        ends_documents: int | None = open_tokenizer(path, eos=None).eos_id
    except ValueError:
        ends_documents = None
    assert Tokenizer(path).eos_id == ends_documents == (1 if configured else 2 if token in END_OF_TEXT else None)


def test_an_end_that_is_named_and_is_no_token(tmp_path: Path) -> None:
    """Documents are not ended by another token in silence."""
    path = _three_words(tmp_path, END_OF_TEXT[0], "<not a token>")
    with pytest.raises(ValueError, match=r"names '<not a token>' as its eos_token, which is none of its tokens.*--eos"):
        open_tokenizer(path, eos=None)
    assert open_tokenizer(path, eos=END_OF_TEXT[0]).eos_id == 2


def _three_words(folder: Path, token: str, configured: object) -> str:
    words = {word: number for number, word in enumerate(["<unk>", "the", token])}
    path = folder / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>")).save(str(path))
    if configured is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": configured}))
    return str(path)


def test_load_takes_a_file_a_folder_and_a_checkpoint(tmp_path: Path) -> None:
    path = byte_tokenizer(tmp_path / "run/tokenizer/tokenizer.json")
    checkpoint = tmp_path / "run/checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    sources = [path, f"file://{path}", str(tmp_path / "run/tokenizer"), str(checkpoint), str(tmp_path / "run")]
    assert {Tokenizer.load(source).path for source in sources} == {path}


def test_no_tokenizer_says_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no tokenizer there.*; give a tokenizer\.json, tokenizer\.model"):
        Tokenizer.load(str(tmp_path))


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json that can be read"):
        Tokenizer.load(str(tmp_path)).encode("x")


# -- stop strings ----------------------------------------------------------------------------------------------------
@settings(deadline=None, max_examples=300)
@given(
    st.text("ab.", max_size=30),
    st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_pieces_do_not_matter_to_a_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream, shown = StopStrings(stops), ""
    for start, stop in itertools.pairwise(edges):
        shown += stream.add(text[start:stop])
        if stream.found:
            break
    shown += stream.flush()
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    if stream.found:
        assert any(text[len(shown) :].startswith(stop) for stop in stops)
    else:
        assert shown == text


def test_nothing_is_held_back_that_cannot_become_a_stop() -> None:
    stream = StopStrings(["\n\n", "END"])
    assert [stream.add(piece) for piece in ("one\n", "two E", "N", "T ", "EN", "D!")] == [
        "one",
        "\ntwo ",
        "",
        "ENT ",
        "",
        "",
    ]
    assert stream.found
