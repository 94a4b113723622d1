"""Templates render as in transformers, which is the judge, and stay in their sandbox."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from launchyard.model.text.chat import Chat
from launchyard.model.text.chat_template import ChatTemplate, chosen_template, named_tokens
from launchyard.model.text.companions import CHAT_TEMPLATE, SPECIAL_TOKENS, TOKENIZER_CONFIG
from launchyard.model.text.tokenizer import Tokenizer
from tests.support.tiny_models import byte_tokenizer

Messages = Sequence[Mapping[str, object]]
TOOLS = [
    {"type": "function", "function": {"name": "add", "description": "Ünits < & >", "parameters": {"z": 1, "a": 2}}}
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT: list[dict[str, object]] = [
    {"role": "user", "content": "Is 2 < 3 & 'so'? ☃"},
    {"role": "assistant", "content": "  Yes.\n", "name": None, "reasoning_content": "hm"},
    {"role": "user", "content": "And\n\nthen?"},
]
PIECES = {
    "json": "{{ tools | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "blocks": "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}\nend\n",
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "tokens": "{{ bos_token }}{{ eos_token }}{% if pad_token is defined %}{{ pad_token }}{% endif %}",
    "marks": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %};{% endfor %}",
    "null": "{% for m in messages %}{{ m.name is defined }}{{ m.thinking }}{{ m.reasoning_content }}{% endfor %}",
    "asks": "{{ 'yes' if add_generation_prompt else 'no' }}{% set n = namespace(a=1) %}{% set n.a = 2 %}{{ n.a }}",
    "html": "{{ '<b>' }}{{ messages[0].content }}",
    "none": "{{ tools is none }}{{ documents is none }}",
}


def judged(text: str, messages: Messages, *, tools: list[dict[str, object]] | None, prompt: bool) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
    rendered, _ = render_jinja_template(
        [plain], tools=tools, chat_template=text, add_generation_prompt=prompt, **TOKENS
    )
    return str(rendered[0])


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", PIECES)
def test_texts_are_those_of_transformers(name: str, prompt: bool) -> None:
    template = ChatTemplate(PIECES[name], TOKENS)
    expected = judged(PIECES[name], CHAT, tools=TOOLS, prompt=prompt)
    assert template.render(CHAT, tools=TOOLS, generation_prompt=prompt) == expected
    assert template.render(CHAT, generation_prompt=prompt) == judged(PIECES[name], CHAT, tools=None, prompt=prompt)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{{ ''.__class__.__mro__ }}", "is unsafe"),
        ("{{ messages.append(1) }}", "'append' .* is unsafe"),
        ("{{ raise_exception('only users') }}", "refuses the messages: only users"),
        ("{{ nothing.more }}", "'nothing' is undefined"),
        ("{% if %}", "no Jinja template that can be read"),
    ],
)
def test_what_fails_is_a_value_error_that_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(text, TOKENS).render(CHAT)


def test_the_template_for_tools_is_taken_for_tools() -> None:
    listed = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    companions = {TOKENIZER_CONFIG: json.dumps({"chat_template": listed}).encode()}
    assert chosen_template(companions) == "plain"
    assert chosen_template(companions, tools=True) == "tools"
    assert chosen_template({CHAT_TEMPLATE: b"alone"}, tools=True) == "alone"
    assert chosen_template({}) is None
    only = {TOKENIZER_CONFIG: json.dumps({"chat_template": listed[1:]}).encode()}
    with pytest.raises(ValueError, match="none of the chat templates tool_use is named default"):
        chosen_template(only)


def test_named_tokens_are_those_of_the_files() -> None:
    companions = {
        TOKENIZER_CONFIG: json.dumps(
            {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None}
        ).encode(),
        SPECIAL_TOKENS: json.dumps({"eos_token": "<old>", "unk_token": "<unk>"}).encode(),
    }
    assert named_tokens(companions) == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.slow
def test_published_templates(tmp_path: Path) -> None:
    """Files *.jinja of llama.cpp's models/templates folder: what transformers refuses is refused, the rest is equal.

    Each answer is found, with its content and an end token.
    """
    folder = os.environ.get("CHAT_TEMPLATES")
    if folder is None:
        pytest.skip("set CHAT_TEMPLATES to a folder of *.jinja files")
    tokenizer = Tokenizer.load(byte_tokenizer(tmp_path / "tokenizer.json"))
    answered = [*CHAT, {"role": "assistant", "content": "That."}]
    for path in sorted(Path(folder).glob("*.jinja")):
        text = path.read_text()
        template = ChatTemplate(text, TOKENS)
        for prompt in (False, True):
            try:
                expected = judged(text, CHAT, tools=None, prompt=prompt)
            except Exception:  # of any kind
                with pytest.raises(ValueError, match="refuses"):
                    template.render(CHAT, generation_prompt=prompt)
            else:
                assert template.render(CHAT, generation_prompt=prompt) == expected, path.name
        try:
            shown = Chat(tokenizer, template=text).chat_text(answered)
        except ValueError:
            continue
        found = [shown.text[answer.start : answer.end] for answer in shown.answers]
        assert len(found) == 2, path.name
        for part, said in zip(found, ("Yes.", "That."), strict=True):
            assert part.count(said) == 1, path.name
            assert "then?" not in part, path.name
            assert part.endswith("<|endoftext|>"), path.name
