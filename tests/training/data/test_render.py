"""Rows of conversations: the ids of transformers, labels on answers and their ends alone, prompts as chat has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import pytest

from launchyard.model.text.chat import Chat
from launchyard.model.text.companions import write_companions
from launchyard.model.text.tokenizer import Tokenizer
from launchyard.training.data.instruct.carriers import Record
from launchyard.training.data.instruct.conversation import Conversation, Pair, Row, Turn
from launchyard.training.data.instruct.render import (
    CUT_ANSWER,
    CUT_PROMPT,
    FIRST_ROWS,
    JOINED,
    NO_ANSWER,
    OPENED_OTHERWISE,
    REFUSED,
    TOO_LONG,
    UNSHOWN,
    UNWRITTEN,
    Renderer,
    message_of,
)
from launchyard.training.data.instruct.shapes import pair_of

END = "<|im_end|>"
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", END, "<|user|>", "<|assistant|>", "<|endoftext|>"]
CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_BOS = "{{ bos_token }}" + CHATML
# Closes no answer at all.
OPEN = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:{% else %} {{ m.content }}\n"
    "{% endif %}{% endfor %}"
)
# Asks with a space at the end, as Llama 2 does.
SPACED = (
    "{% for m in messages %}{{ 'Q: ' ~ m.content ~ ' A: ' if m.role == 'user' else m.content ~ eos_token }}{% endfor %}"
)
# Closes the last answer only.
LAST_CLOSED = OPEN.removesuffix("{% endfor %}") + "{% if loop.last and m.role != 'user' %}</s>{% endif %}{% endfor %}"
# The next turn's role is the end of an answer.
ROLES_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Forgets the thoughts of all but the last answer, and begins the next one with a thought.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
# The system prompt is in the last message, if that is one of a user.
SYSTEM_LAST = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role == 'user' %}<|user|>{{ system if loop.last }} {{ m.content }}{% elif m.role == 'assistant' %}"
    "<|assistant|>{{ m.content }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Writes the beginning of the next answer, asked for or not.
ALWAYS_ASKS = CHATML.partition("{% if add")[0] + "{{ '<|im_start|>assistant\n' }}"
TEMPLATES = {
    "chatml": CHATML,
    "bos": WITH_BOS,
    "open": OPEN,
    "last closed": LAST_CLOSED,
    "roles end": ROLES_END,
    "thinking": THINKING,
    "system last": SYSTEM_LAST,
    "always asks": ALWAYS_ASKS,
}
ENDS_OF = {"open": "</s>", "last closed": "</s>", "system last": "</s>", "roles end": "<|user|>"}
COMPLETE = [name for name in TEMPLATES if name not in ("open", "last closed", "roles end")]

ASKED = Turn("user", "What is <|im_end|> for & why?")
CHATS = {
    "one": (ASKED, Turn("assistant", "To end.\nYes.", trained=True)),
    "says the end": (ASKED, Turn("assistant", "It is <|im_end|> or </s>, no more.", trained=True)),
    "two": (
        Turn("system", "Be brief."),
        Turn("user", "Hi"),
        Turn("assistant", "Hello <b>you</b>.", trained=True),
        Turn("user", "More?"),
        Turn("assistant", "Nöthing \u2603.", trained=True),
    ),
    "second only": (
        Turn("user", "Hi"),
        Turn("assistant", "The cat sat."),
        Turn("user", "More?"),
        Turn("assistant", "The mat.", trained=True),
    ),
}


def tokenizer_with(folder: Path, template: str | None, *, end: str = END) -> Tokenizer:
    """Bytes, a few merges and special tokens; padded with its end token, as SmolLM2's is."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Engine

    engine = Engine(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?[^\s\p{L}]+|\s+"), "isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    engine.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    engine.train_from_iterator(["the cat sat on the mat\n\n", "user\nassistant\nHello: Hello"] * 4, trainer)
    engine.enable_truncation(8)  # as some files ask for; a chat is never cut
    engine.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": end, "pad_token": end}
    settings |= {"chat_template": template} if template is not None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(str(folder))


def conversation(turns: Sequence[Turn]) -> Conversation:
    return Conversation(tuple(turns), "rows.jsonl:1")


def judged(tokenizer: Tokenizer, turns: Sequence[Turn], *, prompt: bool = False) -> list[int]:
    from transformers import PreTrainedTokenizerFast

    judge = PreTrainedTokenizerFast.from_pretrained(tokenizer.path.rpartition("/")[0])
    messages = [dict(message_of(turn)) for turn in turns]
    ids = judge.apply_chat_template(messages, tokenize=True, add_generation_prompt=prompt, return_dict=False)
    return [int(number) for number in ids]


def answers_in(tokenizer: Tokenizer, row: Row) -> list[str]:
    """The texts of what is trained for, one for each part without a gap."""
    parts: list[list[int]] = [[]]
    for number, trained in zip(row.ids.tolist(), row.trained.tolist(), strict=True):
        parts = [*parts[:-1], [*parts[-1], number]] if trained else [*parts, []] if parts[-1] else parts
    return [tokenizer.decode(part, skip_special=False) for part in parts if part]


@pytest.fixture(params=TEMPLATES)
def named(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Tokenizer]:
    name = str(request.param)
    return name, tokenizer_with(tmp_path, TEMPLATES[name], end=ENDS_OF.get(name, END))


@pytest.mark.parametrize("chat", CHATS)
def test_labels_are_the_answers_and_their_ends(named: tuple[str, Tokenizer], chat: str) -> None:
    """Also where the end token is the padding, is in what is asked or answered, or is left out by the template."""
    name, tokenizer = named
    row = Renderer(tokenizer).row(conversation(CHATS[chat]))
    assert row is not None
    end = ENDS_OF.get(name, END)
    said = [turn.content for turn in CHATS[chat] if turn.trained]
    found = [text.removeprefix(" ") for text in answers_in(tokenizer, row)]
    assert [text.replace(f"\n{end}", end) for text in found] == [f"{text}{end}" for text in said]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", COMPLETE)
def test_ids_are_those_of_transformers(name: str, chat: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, TEMPLATES[name], end=ENDS_OF.get(name, END))
    row = Renderer(tokenizer).row(conversation(CHATS[chat]))
    assert row is not None
    assert row.ids.tolist() == judged(tokenizer, CHATS[chat])
    asked = CHATS[chat][:-1]
    assert Renderer(tokenizer).ids_for_generation(asked) == judged(tokenizer, asked, prompt=True)


@pytest.mark.parametrize("name", ["chatml", "bos", "open", "last closed"])
def test_a_row_begins_with_the_ids_of_its_prompt(name: str, tmp_path: Path) -> None:
    renderer = Renderer(tokenizer_with(tmp_path, TEMPLATES[name], end=ENDS_OF.get(name, END)))
    for turns in CHATS.values():
        row = renderer.row(conversation(turns))
        assert row is not None
        prompt = renderer.ids_for_generation(turns[:-1])
        assert row.ids[: len(prompt)].tolist() == prompt
        assert row.trained[len(prompt) :][0]
        assert not row.trained[len(prompt) - 1]


@pytest.mark.parametrize(("template", "said"), [(SPACED, "Hello cat"), (CHATML, "\n\nfar below")])
def test_an_answer_begins_with_a_token_of_its_own(template: str, said: str, tmp_path: Path) -> None:
    """A tokenizer joins the end of a prompt and the beginning of an answer; generation begins after the prompt's."""
    tokenizer = tokenizer_with(tmp_path, template)
    renderer = Renderer(tokenizer)
    turns = (ASKED, Turn("assistant", said, trained=True)) * 2
    row = renderer.row(conversation(turns))
    assert row is not None
    assert row.ids.tolist() != judged(tokenizer, turns)
    assert answers_in(tokenizer, row) == [f"{said}{END}"] * 2
    assert renderer.ids_for_generation(turns[:1]) == judged(tokenizer, turns[:1], prompt=True)
    for asked in (turns[:1], turns[:3]):
        prompt = renderer.ids_for_generation(asked)
        assert row.ids[: len(prompt)].tolist() == prompt
        assert row.trained[len(prompt)]


def test_a_tokenizer_that_begins_texts_with_a_space_is_never_cut(tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = tokenizer_with(tmp_path, SPACED)
    tokenizer.raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    renderer = Renderer(tokenizer)
    row = renderer.row(conversation([Turn("user", "Hi"), Turn("assistant", "Hello", trained=True)]))
    assert row is not None
    assert tokenizer.decode(row.ids.tolist(), skip_special=False) == f" Q: Hi A: Hello{END}"
    assert renderer.counts == {JOINED: 1}


@pytest.mark.parametrize("name", ["thinking", "system last"])
def test_answers_after_another_opening_are_counted(name: str, tmp_path: Path) -> None:
    renderer = Renderer(tokenizer_with(tmp_path, TEMPLATES[name], end=ENDS_OF.get(name, END)))
    assert renderer.row(conversation(CHATS["two"])) is not None
    assert renderer.counts[OPENED_OTHERWISE] == 2


@pytest.mark.parametrize("style", ["alpaca", "llama3", "smollm2"])
def test_a_style_has_one_begin_token_and_ends_every_answer(style: str, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = tokenizer_with(tmp_path, None)
    engine = tokenizer.raw
    engine.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", engine.token_to_id("<s>"))])
    renderer = Renderer(tokenizer, style=style)
    row = renderer.row(conversation(CHATS["two"]))
    assert row is not None
    assert row.ids.tolist().count(engine.token_to_id("<s>")) == 1
    assert answers_in(tokenizer, row) == [f"Hello <b>you</b>.{END}", f"Nöthing \u2603.{END}"]


def test_a_token_before_the_end_token_stays_there(tmp_path: Path) -> None:
    """Also where the text up to an answer goes on with the next header, which the whole has not."""
    tokenizer = tokenizer_with(tmp_path, ALWAYS_ASKS.replace("<|im_end|>\n{% endfor", "</s><|im_end|>\n{% endfor"))
    row = Renderer(tokenizer).row(conversation(CHATS["two"]))
    assert row is not None
    assert row.ids.tolist() == judged(tokenizer, CHATS["two"])
    assert answers_in(tokenizer, row) == [f"Hello <b>you</b>.</s>{END}", f"Nöthing \u2603.</s>{END}"]


def test_a_text_alone_is_learnt_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    row = Renderer(tokenizer).row(conversation([Turn("assistant", "The cat.", trained=True)]))
    assert row is not None
    assert tokenizer.decode(row.ids.tolist(), skip_special=False) == f"The cat.{END}"
    assert row.trained.tolist() == [False] + [True] * (len(row.ids) - 1)


@pytest.mark.parametrize("style", ["alpaca", "smollm2"])
def test_transformers_asks_by_the_style_that_was_trained_with(style: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    renderer = Renderer(tokenizer, style=style)
    write_companions(renderer.chat.companions, str(tmp_path / "exported"))
    exported = Tokenizer.load(str(tmp_path / "exported"))
    for turns in (CHATS["one"][:1], CHATS["two"][:4]):
        assert judged(exported, turns, prompt=True) == renderer.ids_for_generation(turns)
        assert Renderer(exported).ids_for_generation(turns) == renderer.ids_for_generation(turns)


def test_an_input_has_its_place_in_alpaca_and_follows_elsewhere(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    turns = (Turn("user", "Add.", input="2, 3"), Turn("assistant", "5", trained=True))
    alpaca = tokenizer.decode(Renderer(tokenizer, style="alpaca").ids_for_generation(turns[:1]))
    assert alpaca.endswith("### Instruction:\nAdd.\n\n### Input:\n2, 3\n\n### Response:\n")
    assert "Add.\n\n2, 3" in tokenizer.decode(Renderer(tokenizer).ids_for_generation(turns[:1]))
    assert "Add.\n\n2, 3" in tokenizer.decode(Renderer(tokenizer, style="flan").ids_for_generation(turns[:1]))


def test_too_long_rows_go_by_the_rule(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, WITH_BOS)
    whole = Renderer(tokenizer).row(conversation(CHATS["two"]))
    assert whole is not None
    n = len(whole.ids) - 5
    dropping = Renderer(tokenizer, max_tokens=n)
    assert dropping.row(conversation(CHATS["two"])) is None
    assert dropping.dropped == {TOO_LONG: 1}
    cutting = Renderer(tokenizer, max_tokens=n, too_long="cut-prompt")
    row = cutting.row(conversation(CHATS["two"]))
    assert row is not None
    assert [*row.ids] == [whole.ids[0], *whole.ids[-n + 1 :]]
    assert answers_in(tokenizer, row) == answers_in(tokenizer, whole)
    assert cutting.counts == {CUT_PROMPT: 1}
    ending = Renderer(tokenizer, max_tokens=n, too_long="cut-answer")
    row = ending.row(conversation(CHATS["two"]))
    assert row is not None
    assert [*row.ids] == [*whole.ids[:n]]
    assert not answers_in(tokenizer, row)[-1].endswith(END), "the model would learn to end in the middle"
    assert ending.counts == {CUT_ANSWER: 1}


def test_an_answer_that_loses_its_beginning_is_not_trained_for(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    last = Renderer(tokenizer).row(conversation([ASKED, Turn("assistant", "Yes.", trained=True)]))
    assert last is not None
    answer = int(last.trained.sum())
    assert Renderer(tokenizer, max_tokens=answer, too_long="cut-prompt").row(conversation(CHATS["one"])) is None
    row = Renderer(tokenizer, max_tokens=answer + 2, too_long="cut-prompt").row(
        conversation([*CHATS["one"], ASKED, Turn("assistant", "Yes.", trained=True)])
    )
    assert row is not None
    assert answers_in(tokenizer, row) == [f"Yes.{END}"]


def test_nothing_to_train_for_is_an_error_early(tmp_path: Path) -> None:
    untrained = conversation([ASKED, Turn("assistant", "Yes.")])
    renderer = Renderer(tokenizer_with(tmp_path, CHATML))
    seen = []
    with pytest.raises(ValueError, match=f"none of the first {FIRST_ROWS} conversations .*{NO_ANSWER}"):
        list(renderer.rows(seen.append(n) or untrained for n in range(10**6)))
    assert len(seen) == FIRST_ROWS
    good = conversation(CHATS["one"])
    assert len(list(Renderer(renderer.chat._tokenizer).rows([untrained] * 99 + [good] + [untrained] * 200))) == 1


def test_a_refusal_of_the_template_is_counted_and_told(tmp_path: Path) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}" + CHATML
    renderer = Renderer(tokenizer_with(tmp_path, template))
    assert renderer.row(conversation(CHATS["two"])) is None
    assert renderer.dropped == {REFUSED: 1}
    assert renderer.first_refusal == "rows.jsonl:1: the chat template refuses the messages: no system prompts"


def test_arguments_of_tool_calls_are_written_once(tmp_path: Path) -> None:
    template = CHATML.replace(
        "{{ m.content }}", "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}"
    )
    tokenizer = tokenizer_with(tmp_path, template)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"b": "é", "a": 2}'}}
    row = Renderer(tokenizer).row(conversation([ASKED, Turn("assistant", "", trained=True, tool_calls=(call,))]))
    assert row is not None
    assert answers_in(tokenizer, row) == ['{"b": "é", "a": 2}' + END]


CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}


def test_calls_that_the_template_does_not_write_are_no_empty_answers(tmp_path: Path) -> None:
    calling = Turn("assistant", "", trained=True, tool_calls=(CALL,))
    talk = [ASKED, calling, Turn("tool", "2"), Turn("assistant", "It is 2.", trained=True)]
    renderer = Renderer(tokenizer_with(tmp_path, CHATML))
    assert renderer.row(conversation(talk)) is None
    assert renderer.row(conversation([ASKED, calling])) is None
    assert renderer.dropped == {UNWRITTEN: 2}
    assert renderer.row(conversation(CHATS["one"])) is not None

    refusing = "{% if not (m.content or m.tool_calls) %}{{ raise_exception('nothing said') }}{% endif %}"
    writes = "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    for content in (writes, refusing + writes):
        tokenizer = tokenizer_with(tmp_path, CHATML.replace("{{ m.content }}", content))
        row = Renderer(tokenizer).row(conversation(talk))
        assert row is not None
        assert answers_in(tokenizer, row) == [f"add{END}", f"It is 2.{END}"]


def test_tools_that_the_template_does_not_show_are_counted(tmp_path: Path) -> None:
    talk = Conversation(tuple(CHATS["one"]), "rows.jsonl:1", (TOOL,))
    renderer = Renderer(tokenizer_with(tmp_path, CHATML))
    assert renderer.row(talk) is not None
    assert renderer.counts == {UNSHOWN: 1}
    template = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}" + CHATML
    showing = Renderer(tokenizer_with(tmp_path, template))
    assert showing.row(talk) is not None
    assert not showing.counts


def test_all_texts_of_a_renderer_have_one_time(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "{{ strftime_now('%Y') }}" + CHATML)
    row = Renderer(tokenizer, now=datetime(1999, 1, 2)).row(conversation(CHATS["one"]))
    assert row is not None
    assert tokenizer.decode(row.ids.tolist()).startswith("1999")


def test_without_template_the_styles_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no chat template beside .*alpaca"):
        Chat(tokenizer_with(tmp_path, None))


def test_a_text_of_no_chat_is_learned_whole(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    renderer = Renderer(tokenizer)
    (row,) = renderer.rows([conversation([Turn("assistant", "Once upon a time", trained=True)])])
    assert row.trained[1:].all()
    assert tokenizer.decode(row.ids.tolist(), skip_special=False).endswith("Once upon a time<|im_end|>")
    assert dict(renderer.counts) == {"texts of no chat, trained for whole": 1}


def test_the_rows_of_a_pair_differ_in_what_is_trained_for_and_fit_together(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    question = Turn("user", "why?")
    sides = [
        conversation([question, Turn("assistant", said, trained=True)]) for said in ("because", "who knows, no one")
    ]
    pairs = [Pair(sides[0], sides[1], "here")]
    ((chosen, rejected),) = Renderer(tokenizer).pair_rows(pairs)
    prompts = [row.ids[~row.trained].tolist() for row in (chosen, rejected)]
    assert prompts[0][: chosen.trained.argmax()] == prompts[1][: rejected.trained.argmax()]
    assert [answers_in(tokenizer, row) for row in (chosen, rejected)] == [
        answers_in(tokenizer, row) for row in Renderer(tokenizer).rows(sides)
    ]
    positions = len(chosen.ids) + len(rejected.ids) - 2
    assert list(Renderer(tokenizer, max_tokens=positions + 1).pair_rows(pairs))
    short = Renderer(tokenizer, max_tokens=positions)
    with pytest.raises(ValueError, match=f"{TOO_LONG} \\(1\\)"):
        list(short.pair_rows(pairs))


def test_a_pair_whose_answers_do_not_differ_is_left_out(tmp_path: Path) -> None:
    """Sets as they come hold some; they are no reason to read none of the others."""
    rows = [{"prompt": "why?", "chosen": "because", "rejected": said} for said in ("because", "no")]
    first = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]
    rows.append({"chosen": first, "rejected": [*first, {"role": "user", "content": "and?"}]})
    renderer = Renderer(tokenizer_with(tmp_path, CHATML))
    assert len(list(renderer.pair_rows(pair_of(Record(row, "here")) for row in rows))) == 1
    assert dict(renderer.dropped) == {"whose two answers are the same, or one begins the other": 2}


@pytest.mark.parametrize("less", [1, 2, 5])
def test_a_pair_that_is_cut_keeps_one_prompt(tmp_path: Path, less: int) -> None:
    tokenizer = tokenizer_with(tmp_path, CHATML)
    question = Turn("user", "why is the sky not green at noon, of all the colours?")
    said = ("because", "who knows, no one, and nobody wants to know")
    pairs = [Pair(*(conversation([question, Turn("assistant", text, trained=True)]) for text in said), "here")]
    ((chosen, rejected),) = Renderer(tokenizer).pair_rows(pairs)
    prompt = int(chosen.trained.argmax())
    room = len(chosen.ids) + len(rejected.ids) - 2 - less
    cut = Renderer(tokenizer, max_tokens=room + 1, too_long="cut-prompt")
    (made,) = cut.pair_rows(pairs)
    assert [row.ids[row.trained].tolist() for row in made] == [
        row.ids[row.trained].tolist() for row in (chosen, rejected)
    ]
    lost = -(-less // 2)
    for row in made:
        assert row.ids[~row.trained].tolist()[: prompt - lost] == chosen.ids[lost:prompt].tolist()
    (made,) = Renderer(tokenizer, max_tokens=room + 1, too_long="cut-answer").pair_rows(pairs)
    assert made[0].ids.tolist() == chosen.ids.tolist()
    assert made[1].ids.tolist() == rejected.ids[:-less].tolist()
    assert dict(cut.counts) == {"prompts cut": 1}


def test_prompts_have_labels_where_they_are_asked_for(tmp_path: Path) -> None:
    """The same ids, and every token but the first is trained for; what is cut keeps that."""
    tokenizer = tokenizer_with(tmp_path, WITH_BOS)
    masked, whole = (Renderer(tokenizer, mask_prompt=mask).row(conversation(CHATS["two"])) for mask in (True, False))
    assert masked is not None and whole is not None
    assert [*whole.ids] == [*masked.ids]
    assert [*whole.trained] == [False, *[True] * (len(whole.ids) - 1)]
    assert 0 < masked.trained.sum() < whole.trained.sum()
    cutting = Renderer(tokenizer, max_tokens=len(whole.ids) - 5, too_long="cut-prompt", mask_prompt=False)
    row = cutting.row(conversation(CHATS["two"]))
    assert row is not None and row.trained[1:].all() and not row.trained[0]
