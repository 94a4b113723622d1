"""A dialogue: the ids that the model sees, what of them is read, what has no room, and what an end leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.conversation import Dialogue, Reply
from launchyard.model.serve.engine import Engine
from launchyard.model.text.chat import Chat
from launchyard.model.text.chat_template import Message
from launchyard.model.weights.load import load
from tests.model.serve.served import TEMPLATE, chat_model

LIKELIEST = {"temperature": 0.0, "max_new_tokens": 12}
TALK = ("hello there", "the tale of the user, naïve 😀", "and the end?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> LoadedModel:
    return load(str(folder))


def said(reply: Reply) -> str:
    text = "".join(reply)
    assert text == reply.text
    return text


def contents(messages: Sequence[Message]) -> list[tuple[object, object]]:
    return [(message["role"], message["content"]) for message in messages]


def n_alike(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def test_ids_are_those_of_transformers(folder: Path, model: LoadedModel) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(folder))
    dialogue = Dialogue(model, system="be brief")
    for text in TALK:
        messages = [*dialogue.messages, {"role": "user", "content": text}]
        reply = dialogue.answer(text, **LIKELIEST)
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        expected = theirs.apply_chat_template(plain, add_generation_prompt=True, return_dict=False)
        assert list(reply.prompt) == expected
        said(reply)
    assert len(dialogue.messages) == 7


def test_a_turn_reads_only_what_is_new(model: LoadedModel) -> None:
    dialogue = Dialogue(model)
    counts = dialogue.engine.counts
    held: list[int] = []  # what the cache holds
    seen = 0
    for text in (*TALK, "retry"):
        read = counts.prompt
        reply = dialogue.answer(text, **LIKELIEST) if text != "retry" else dialogue.retry(**LIKELIEST, seed=1)
        said(reply)
        new = counts.prompt - read
        assert new == reply.n_prompt - min(n_alike(held, reply.prompt), reply.n_prompt - 1)
        assert new + reply.n_reused == reply.n_prompt
        assert new == 1 if text == "retry" else reply.n_reused >= seen
        seen = reply.n_prompt
        held = [*reply.prompt, *reply._generation.new[:-1]]


def test_what_was_read_before_changes_no_answer(model: LoadedModel) -> None:
    dialogue = Dialogue(model)
    for text in TALK:
        before = list(dialogue.messages)
        answered = said(dialogue.answer(text, **LIKELIEST))
        fresh = Dialogue(model)
        fresh.load(before)
        assert said(fresh.answer(text, **LIKELIEST)) == answered


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=8),
    system=st.sampled_from([None, "be brief"]),
    length=st.integers(90, 300),
)
def test_the_newest_turns_that_fit_are_shown(
    lengths: list[int], system: str | None, length: int, model: LoadedModel
) -> None:
    """Whole turns, as many as there is room for, behind the system message; none is forgotten."""
    dialogue = Dialogue(model, system=system, context_length=length)
    chat = Chat(model.tokenizer)
    head: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for n in lengths:
        before = dialogue.messages
        asked: Message = {"role": "user", "content": "ab" * n}

        def ids(n_left_out: int, turns: list[Message]) -> list[int]:
            shown = [{"role": one["role"], "content": one["content"]} for one in turns[n_left_out:]]
            return chat.ids_for_generation([*head, *shown])

        turns = [*before[len(head) :], asked]
        room = length - 8
        try:
            reply = dialogue.answer(str(asked["content"]), temperature=0.0, max_new_tokens=8)
        except ValueError as error:
            assert "takes" in str(error) and len(ids(len(turns) - 1, turns)) > room
            assert dialogue.messages == before
            continue
        assert list(reply.prompt) == ids(reply.n_left_out, turns)
        assert len(reply.prompt) <= room and reply.n_left_out % 2 == 0
        assert reply.n_left_out == 0 or len(ids(reply.n_left_out - 2, turns)) > room
        said(reply)
        assert contents(dialogue.messages)[:-1] == contents([*before, asked])


def test_the_last_token_of_room_is_used(model: LoadedModel) -> None:
    """With one less a further turn is left out."""
    dialogue = Dialogue(model, system="be brief")
    for text in TALK:
        said(dialogue.answer(text, **LIKELIEST))
    talk = dialogue.messages
    shown = [[talk[0], *talk[1 + n :], {"role": "user", "content": "and?"}] for n in (0, 2, 4, 6)]
    lengths = [len(model.chat.ids_for_generation(messages)) for messages in shown]
    for place, n_prompt in enumerate(lengths[:-1]):
        for less in (0, 1):
            short = Dialogue(model, context_length=n_prompt + 12 - less)
            short.load(talk)
            reply = short.answer("and?", **LIKELIEST)
            assert (reply.n_left_out, reply.n_prompt) == (2 * (place + less), lengths[place + less])


def test_a_message_that_cannot_fit_changes_nothing(model: LoadedModel) -> None:
    dialogue = Dialogue(model, system="be brief", context_length=100)
    said(dialogue.answer("hello", **LIKELIEST))
    before = list(dialogue.messages)
    with pytest.raises(ValueError, match=r"takes \d+ tokens with the system message.* 88 for it and 12 for the answer"):
        dialogue.answer("no" * 100, **LIKELIEST)
    for text, options, why in (
        ("", {}, "empty"),
        ("\udcff", {}, "not Unicode"),
        ("x", {"max_new_tokens": 100}, "must leave some"),
        ("x", {"max_new_tokens": 0}, "at least 1"),
        ("x", {"top_p": 2.0}, "top_p"),
        ("x", {"seed": 2**70}, "seed"),
    ):
        with pytest.raises(ValueError, match=why):
            dialogue.answer(text, **options)  # type: ignore[arg-type]
    assert dialogue.messages == before
    said(dialogue.answer("again", **LIKELIEST))
    assert len(dialogue.messages) == 5


@pytest.mark.parametrize("how", ["stop", "break", "let go"])
def test_an_answer_that_is_stopped_stays_as_far_as_it_went(how: str, model: LoadedModel) -> None:
    dialogue = Dialogue(model)
    reply = dialogue.answer("tell a tale", temperature=0.0, max_new_tokens=500)
    pieces = iter(reply)
    written = [next(pieces) for _ in range(3)]
    if how == "stop":
        reply.stop()
        written += list(pieces)
    elif how == "break":
        del pieces
    again = dialogue.answer("go on", **LIKELIEST)
    assert reply.ended == "cancelled" and reply.n_new < 100
    assert dialogue.messages[1:] == [{"role": "assistant", "content": reply.text, "weight": 0}]
    assert reply.text.startswith("".join(written))
    said(again)
    assert dialogue.engine.is_idle and len(dialogue.messages) == 4
    fresh = Dialogue(model)
    fresh.load(dialogue.messages[:2])
    assert said(fresh.answer("go on", **LIKELIEST)) == again.text


def test_a_message_stopped_before_its_answer_was_not_said(model: LoadedModel) -> None:
    dialogue = Dialogue(model, system="be brief")
    reply = dialogue.answer("tell a tale")
    reply.stop()
    assert (said(reply), reply.was_kept) == ("", False)
    dialogue.answer("never looked at")
    dialogue.close()
    assert contents(dialogue.messages) == [("system", "be brief")]


@pytest.mark.parametrize(("error", "kept"), [(KeyboardInterrupt, 2), (RuntimeError, 0)])
def test_an_error_in_a_step_spoils_no_later_turn(
    error: type[BaseException], kept: int, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialogue = Dialogue(model)
    reply = dialogue.answer("hello there", **LIKELIEST)

    def failing(engine: Engine, _slot: object) -> None:
        engine._n_growing = 0
        raise error

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(Engine, "_release", failing)
        said(reply)
    assert len(dialogue.messages) == kept
    fresh = Dialogue(model)
    fresh.messages = dialogue.messages
    assert said(dialogue.answer("and?", **LIKELIEST)) == said(fresh.answer("and?", **LIKELIEST))


def test_undo_retry_clear_and_system(model: LoadedModel) -> None:
    dialogue = Dialogue(model, system="be brief")
    for nothing in (dialogue.undo, dialogue.retry):
        with pytest.raises(ValueError, match="nothing has been said"):
            nothing()
    first = said(dialogue.answer("one", seed=3, max_new_tokens=12))
    said(dialogue.answer("two", seed=3, max_new_tokens=12))
    assert contents(dialogue.undo())[0] == ("user", "two")
    assert said(dialogue.retry(seed=3, max_new_tokens=12)) != first  # another number, though the same seed
    assert [role for role, _ in contents(dialogue.messages)] == ["system", "user", "assistant"]
    dialogue.set_system("be long")
    assert (dialogue.system, len(dialogue.messages)) == ("be long", 3)
    dialogue.clear()
    assert contents(dialogue.messages) == [("system", "be long")]
    dialogue.set_system(None)
    assert dialogue.messages == []


def test_the_same_seed_writes_the_same_dialogue(model: LoadedModel) -> None:
    def texts(seed: int) -> list[str]:
        dialogue = Dialogue(model)
        return [said(dialogue.answer(text, seed=seed, max_new_tokens=12)) for text in TALK]

    assert texts(5) == texts(5) != texts(6)


def test_a_template_that_refuses_a_system_message_is_heard_at_once(model: LoadedModel) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + TEMPLATE
    dialogue = Dialogue(model, chat=Chat(model.tokenizer, template=strict))
    with pytest.raises(ValueError, match="no system here"):
        dialogue.set_system("be brief")
    assert dialogue.messages == []


def test_the_token_by_which_a_template_closes_an_answer_ends_it(tmp_path: Path) -> None:
    """Also where no file calls it an end."""
    folder = chat_model(tmp_path / "tiny")
    config = folder / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<|im_end|>"', '"eos_token": "<|endoftext|>"'))
    model = load(str(folder))
    closing = model.tokenizer.vocabulary["<|im_end|>"]
    assert closing not in model.stop_ids
    dialogue = Dialogue(model)
    for number in range(40):
        reply = dialogue.answer(f"tell {number}", temperature=3.0, seed=number, max_new_tokens=100)
        said(reply)
        assert closing not in reply._generation.new
        if reply.ended == "stop":
            return
        dialogue.clear()
    raise AssertionError("no answer ended")
