"""The prompts of every style are those of LitGPT 0.5.13, which were hashed from its own code."""

from __future__ import annotations

import hashlib

import pytest

from launchyard.model.text.chat_template import ChatTemplate
from launchyard.model.text.prompt_styles import STYLES, style_template

ASKED = 'Why?\n"{x}"'
SYSTEM = "Be {brief}."
# Of the prompt without a system prompt, and with one; None where LitGPT leaves it out, which is refused here.
HASHES: dict[str, tuple[str, str | None]] = {
    "alpaca": ("a48427f5bfe0", "84fcec33c1a1"),
    "chatml": ("5707c5d18722", "3ae91840626a"),
    "codellama": ("978915e137d7", "530724240347"),
    "default": ("baa2c07b0673", None),
    "falcon": ("d5f571e1e456", None),
    "falcon3": ("df55ee5da299", None),
    "flan": ("a48427f5bfe0", "84fcec33c1a1"),
    "freewilly2": ("06047b7b5e13", "5cf6d0ce2861"),
    "gemma": ("7e33e33aa3a4", None),
    "llama2": ("5b235b6e75a9", "2e15faeb9ab7"),
    "llama2-function-calling": ("ff70b272669a", "a3c2c1b2cd3d"),
    "llama3": ("7ddeea207e52", "549c6aced0b8"),
    "longform": ("c6e52c2d2dbb", "84fcec33c1a1"),
    "olmo": ("1fe0eb4573f1", None),
    "phi-1": ("282c58e0092b", None),
    "phi-2": ("c989f9bc7788", None),
    "phi-3": ("90ffa72ddac1", "621688246e0e"),
    "phi-4": ("0752a3040cd2", "e3d850343fa6"),
    "phi-4-mini": ("d5e51fba1f6d", "8e11d104f7a6"),
    "phi-4-mini-reasoning": ("36b658e45a8a", "8e11d104f7a6"),
    "phi-4-reasoning": ("23af59b5758c", "bfddfbd466bc"),
    "platypus": ("1d630e585da9", None),
    "qwen2.5": ("337614b28089", "3ae91840626a"),
    "qwen2.5-math": ("1bf6a2e0b04d", "3ae91840626a"),
    "qwen3": ("5707c5d18722", "3ae91840626a"),
    "qwq": ("7c42fb30e8d6", "3ae91840626a"),
    "r1": ("7bcd401561e9", "50204455b2b4"),
    "salamandra": ("17f886cc99df", "3ae91840626a"),
    "smollm2": ("7da51a99207b", "3ae91840626a"),
    "stablecode": ("13ae24cee28d", None),
    "stablelm-alpha": ("327d2ea64c3a", "465c664c3d87"),
    "stablelm-zephyr": ("df55ee5da299", None),
    "tinyllama": ("44bc46a1efce", "dbc4ca40416f"),
}


def rendered(name: str, messages: list[dict[str, str]], *, bos: str = "") -> str:
    return ChatTemplate(style_template(name, bos=bos), {"eos_token": "</s>"}).render(messages)


def test_every_style_is_tested() -> None:
    assert STYLES.keys() == HASHES.keys()
    assert len(STYLES) == 33


@pytest.mark.parametrize("name", HASHES)
def test_prompts_are_those_of_litgpt(name: str) -> None:
    alone, with_system = HASHES[name]
    question = {"role": "user", "content": ASKED}
    assert short_hash(rendered(name, [question])) == alone
    messages = [{"role": "system", "content": SYSTEM}, question]
    if with_system is None:
        with pytest.raises(ValueError, match="has no place for a system prompt"):
            rendered(name, messages)
    else:
        assert short_hash(rendered(name, messages)) == with_system


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", STYLES)
def test_a_second_question_follows_the_first_answer(name: str) -> None:
    question = {"role": "user", "content": "A question."}
    answer = {"role": "assistant", "content": "An answer."}
    first = rendered(name, [question])
    whole = rendered(name, [question, answer, question])
    assert whole.startswith(f"{first}An answer.</s>")
    later = whole.removeprefix(f"{first}An answer.</s>")
    assert later
    assert first.endswith(later.lstrip()) or name.startswith("llama2") or STYLES[name].start


def test_a_begin_token_is_written_once() -> None:
    question = [{"role": "user", "content": "Hi"}]
    assert rendered("llama3", question, bos="<|begin_of_text|>").count("<|begin_of_text|>") == 1
    assert rendered("alpaca", question, bos="<s>").startswith("<s>Below")


def test_turns_without_a_place_are_refused() -> None:
    with pytest.raises(ValueError, match="alpaca has no place for a turn of tool"):
        rendered("alpaca", [{"role": "tool", "content": "5"}])
    with pytest.raises(ValueError, match="no prompt style 'alpacca'; there are alpaca"):
        style_template("alpacca")
