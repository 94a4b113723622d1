"""Prompt styles by name, for models without a chat template: each is made a chat template. Light.

The texts are those of LitGPT (github.com/Lightning-AI/litgpt, litgpt/prompts.py), so that a model finetuned there is
asked here as it was: also where they are odd, as the missing bar of phi-4-reasoning is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_TASK = "Below is an instruction that describes a task"
_RESPOND = "Write a response that appropriately completes the request.\n\n"
_TASK_ALONE = f"{_TASK}. {_RESPOND}"
_TASK_AND_INPUT = f"{_TASK}, paired with an input that provides further context. {_RESPOND}"
_INSTRUCTION = "### Instruction:\n{prompt}\n\n### Response:\n"
_SEARCH = json.dumps(
    {
        "function": "search_bing",
        "description": "Search the web for content on Bing. This allows users to search online/the internet/the web "
        "for content.",
        "arguments": [{"name": "query", "type": "string", "description": "The search query string"}],
    }
)
_PHI_THINKS = (
    "You are Phi, a language model trained by Microsoft to help users. Your role as an assistant involves thoroughly "
    "exploring questions through a systematic thinking process before providing the final precise and accurate "
    "solutions. This requires engaging in a comprehensive cycle of analysis, summarizing, exploration, reassessment, "
    "reflection, backtracing, and iteration to develop well-considered thinking process. Please structure your "
    "response into two main sections: Thought and Solution using the specified format: <think> {Thought section} "
    "</think> {Solution section}. In the Thought section, detail your reasoning process in steps. Each step should "
    "include detailed considerations such as analysing questions, summarizing relevant findings, brainstorming new "
    "ideas, verifying the accuracy of the current steps, refining any errors, and revisiting previous steps. In the "
    "Solution section, based on various attempts, explorations, and reflections from the Thought section, "
    "systematically present the final solution that you deem correct. The Solution section should be logical, "
    "accurate, and concise and detail necessary steps needed to reach the conclusion. Now, try to solve the following "
    "question through the above guidelines:"
)
_LLAMA2 = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\nIf a question does not make "
    "any sense, or is not factually coherent, explain why instead of answering something not correct. If you don't "
    "know the answer to a question, please don't share false information."
)
_STABLELM = (
    "# StableLM Tuned (Alpha version)\n- StableLM is a helpful and harmless open-source AI language model developed by "
    "StabilityAI.\n- StableLM is excited to be able to help the user, but will refuse to do anything that could be "
    "considered harmful to the user.\n- StableLM is more than just an information source, StableLM is also able to "
    "write poetry, short stories, and make jokes.\n- StableLM will refuse to participate in anything that could harm "
    "a human."
)
_SALAMANDRA = (
    "I am Salamandra, an AI language model developed at the Barcelona Supercomputing Centre (BSC) by the Language "
    "Technologies Unit. My knowledge base was last updated on August 2023. Today Date: 2024-09-30\nSoy Salamandra, un "
    "modelo lingüístico de IA desarrollado en el Barcelona Supercomputing Centre (BSC) por la Language Technologies "
    "Unit. Mi base de conocimientos se actualizó por última vez en agosto de 2023.\nSoc Salamandra, un model de "
    "llenguatge d'IA desenvolupat al Barcelona Supercomputing Centre (BSC) per la Language Technologies Unit."
)


@dataclass(frozen=True)
class PromptStyle:
    """Texts around what people say; {opening}, {prompt}, {input} and {system} stand for it.

    turn: what a question becomes, up to where the answer begins. opening: once, before the first, if there is a
    system prompt. with_input: in place of `turn` where an input comes with the instruction.
    """

    turn: str
    opening: str = ""
    system: str = ""  # where the conversation has none
    start: str = ""
    between: str = "\n"  # after an answer and its end token, before the next question
    with_input: str = ""
    system_with_input: str = ""


def _chatml(system: str = "") -> PromptStyle:
    return PromptStyle(
        "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n",
        opening="<|im_start|>system\n{system}<|im_end|>\n",
        system=system,
    )


STYLES: dict[str, PromptStyle] = {
    "default": PromptStyle("{prompt}"),
    "alpaca": PromptStyle(
        _INSTRUCTION,
        opening="{system}",
        system=_TASK_ALONE,
        between="\n\n",
        with_input="### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n",
        system_with_input=_TASK_AND_INPUT,
    ),
    "flan": PromptStyle(_INSTRUCTION, opening="{system}", system=_TASK_ALONE, between="\n\n"),
    "longform": PromptStyle(_INSTRUCTION, opening="{system}", system=_TASK_AND_INPUT, between="\n\n"),
    "stablelm-alpha": PromptStyle(
        "<|USER|>{prompt}<|ASSISTANT|>", opening="<|SYSTEM|>{system}", system=_STABLELM, between=""
    ),
    "stablelm-zephyr": PromptStyle("<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n"),
    "falcon": PromptStyle("{prompt}\nAnswer:"),
    "falcon3": PromptStyle("<|user|>\n{prompt}<|endoftext|>\n<|assistant|>\n"),
    "llama2-function-calling": PromptStyle(
        "{opening}{prompt}[/INST]\n\n",
        opening="<FUNCTIONS>"
        + _SEARCH.replace("{", "{{").replace("}", "}}")
        + "</FUNCTIONS>\n\n[INST]<<SYS>>\n{system}\n<</SYS>>\n\n",
        system="You are a helpful, respectful and honest assistant. Always answer as helpfully aspossible. Your only "
        "response should be JSON formatted functions",
    ),
    "llama2": PromptStyle(
        "[INST] {opening}{prompt} [/INST] ",
        opening="<<SYS>>\n{system}\n<</SYS>>\n\n ",
        system=_LLAMA2,
        between="",
    ),
    "llama3": PromptStyle(
        "<|start_header_id|>user<|end_header_id|>\n\n{prompt}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        opening="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        system="You are a helpful assistant.",
        start="<|begin_of_text|>",
        between="",
    ),
    "r1": PromptStyle("<｜User｜>{prompt}<｜Assistant｜>", opening="{system}", between=""),
    "freewilly2": PromptStyle(
        "### User:\n{prompt}\n\n### Assistant:\n",
        opening="### System:\n{system}\n\n",
        system="This is a system prompt, please behave and help the user.",
        between="\n\n",
    ),
    "platypus": PromptStyle("### Instruction:\n\n{prompt}\n\n### Response:\n", between="\n\n"),
    "stablecode": PromptStyle("###Instruction\n{prompt}###Response\n"),
    "codellama": PromptStyle("[INST] {opening}{prompt} [/INST]", opening="<<SYS>>\n{system}\n<</SYS>>\n\n", between=""),
    "phi-1": PromptStyle("{prompt}\n\nAnswer:"),
    "phi-2": PromptStyle("Instruct: {prompt}\nOutput:"),
    "phi-3": PromptStyle(
        "<|user|>\n{prompt}<|end|>\n<|assistant|>\n",
        opening="<|system|>\n{system}<|end|>\n",
        system="You are a helpful assistant.",
    ),
    "phi-4": PromptStyle(
        "<|im_start|>user<|im_sep|>{prompt}<|im_end|><|im_start|>assistant<|im_sep|>",
        opening="<|im_start|>system<|im_sep|>{system}<|im_end|>",
        between="",
    ),
    "phi-4-reasoning": PromptStyle(
        "<|im_start|>user<|im_sep|>{prompt}<|im_end|><|im_start|>assistant<|im_sep|>",
        opening="<|im_start>system<|im_sep|>{system}<|im_end|>",
        system=_PHI_THINKS,
        between="",
    ),
    "phi-4-mini": PromptStyle("<|user|>{prompt}<|end|><|assistant|>", opening="<|system|>{system}<|end|>", between=""),
    "phi-4-mini-reasoning": PromptStyle(
        "<|user|>{prompt}<|end|><|assistant|>",
        opening="<|system|>{system}<|end|>",
        system="Your name is Phi, an AI math expert developed by Microsoft.",
        between="",
    ),
    "tinyllama": PromptStyle(
        "<|user|>\n{prompt}</s>\n<|assistant|>\n",
        opening="<|system|>\n{system}</s>\n",
        system="You are a friendly chatbot who always gives helpful, detailed, and polite answers.",
    ),
    "gemma": PromptStyle("<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>model\n"),
    "olmo": PromptStyle("<|user|>\n{prompt}\n<|assistant|>\n", start="<|endoftext|>"),
    "chatml": _chatml(),
    "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "qwen2.5-math": _chatml("Please reason step by step, and put your final answer within \\boxed{}."),
    "qwq": _chatml(
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. You should think step-by-step."
    ),
    "qwen3": _chatml(),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "salamandra": _chatml(_SALAMANDRA),
}


def style_template(name: str, *, bos: str = "") -> str:
    """The chat template of a style: questions as it has them, and eos_token after each answer.

    `bos`: the token that the tokenizer puts before a text; written once, also where the style begins with it.
    It refuses turns for which the style has no place. ValueError names the styles if this is none.
    """
    if name not in STYLES:
        raise ValueError(f"there is no prompt style {name!r}; there are {', '.join(sorted(STYLES))}")
    style = STYLES[name]
    start = style.start if style.start.startswith(bos) else bos + style.start
    defaults = {"system": style.system, "system_with_input": style.system_with_input or style.system}
    no_place = json.dumps(f"the prompt style {name} has no place for a turn of ")
    pieces = (
        "{%- set given = messages[0].content if messages and messages[0].role == 'system' else '' -%}",
        "{%- set turns = messages[1:] if messages and messages[0].role == 'system' else messages -%}",
        f"{{%- set asked = namespace(before=false) -%}}{{{{- {json.dumps(start)} -}}}}",
        "{%- for message in turns -%}",
        "{%- if message.role == 'user' -%}",
        f"{{%- set default = {json.dumps(defaults['system_with_input'])} if message.input else ",
        f"{json.dumps(defaults['system'])} -%}}",
        "{%- set system = given or default -%}",
        _opening(style, name),
        "{%- set asked.before = true -%}",
        f"{{%- set between = '' if loop.first else {json.dumps(style.between)} -%}}",
        _question(style),
        "{%- elif message.role == 'assistant' -%}{{- message.content -}}{{- eos_token -}}",
        f"{{%- else -%}}{{{{- raise_exception({no_place} ~ message.role) -}}}}",
        "{%- endif -%}{%- endfor -%}",
    )
    return "".join(pieces)


def _opening(style: PromptStyle, name: str) -> str:
    if not style.opening:
        refusal = json.dumps(f"the prompt style {name} has no place for a system prompt")
        return f"{{%- if given -%}}{{{{- raise_exception({refusal}) -}}}}{{%- endif -%}}{{%- set opening = '' -%}}"
    return f"{{%- set opening = {_expression(style.opening)} if system and not asked.before else '' -%}}"


def _question(style: PromptStyle) -> str:
    """The turn of one who asks; an input for which the style has no place of its own follows the prompt."""
    apart = "{%- set prompt = message.content -%}{%- set input = message.input -%}"
    joined = "{%- set prompt = message.content ~ ('\\n\\n' ~ message.input if message.input else '') -%}"
    if not style.with_input:
        return joined + _output(style.turn)
    return f"{apart}{{%- if input -%}}{_output(style.with_input)}{{%- else -%}}{_output(style.turn)}{{%- endif -%}}"


def _output(turn: str) -> str:
    whole = turn if "{opening}" in turn else "{opening}" + turn
    return f"{{{{- between ~ {_expression(whole)} -}}}}"


def _expression(pattern: str) -> str:
    """A Jinja expression of a text with {names} in it."""
    parts = re.split(r"\{(opening|prompt|input|system)\}", pattern)
    terms = [part if place % 2 else json.dumps(part) for place, part in enumerate(parts) if part]
    return f"({' ~ '.join(terms)})" if terms else "''"
