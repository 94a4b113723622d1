"""The official client of OpenAI against the server: chat, streams, n, logprobs, stop, seeds, errors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
import torch

from tests.model.serve.served import TEMPLATE, Served, chat_model, served

ASKED = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def client(tiny: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def alone(tiny: Served, ids: list[int], n: int, **options: Any) -> list[int]:
    """What the model writes without a server."""
    from launchyard.model.serve.generate import generate
    from launchyard.model.serve.requests import Request
    from launchyard.model.serve.sampling import Sampling

    seed = options.pop("seed", None)
    sampling = Sampling(**{"temperature": 0.0, **options})
    return list(generate(tiny.model.transformer, Request(ids, n, sampling, tiny.model.stop_ids, seed)))


def chat(client: openai.OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": ASKED, "max_tokens": 20, **options})


def complete(client: openai.OpenAI, **options: Any) -> Any:
    return client.completions.create(**{"model": "tiny", "prompt": "the tale", "max_tokens": 20, **options})


def test_a_chat_is_what_the_model_writes_behind_its_own_template(tiny: Served, client: openai.OpenAI) -> None:
    ids = tiny.model.chat.ids_for_generation(ASKED)
    new = alone(tiny, ids, 20)
    answer = chat(client, temperature=0)
    assert answer.choices[0].message.content == tiny.model.tokenizer.decode(new)
    assert answer.choices[0].message.role == "assistant"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), len(new))
    assert answer.choices[0].finish_reason == ("length" if len(new) == 20 else "stop")


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_joined_is_the_answer(client: openai.OpenAI, seed: int) -> None:
    """Random text over a vocabulary of bytes: most characters of several bytes are cut, and some are none."""
    options = {"temperature": 1.5, "seed": seed, "max_tokens": 60, "n": 2}
    whole = chat(client, **options)
    chunks = list(chat(client, stream=True, **options))
    assert len({chunk.id for chunk in chunks}) == 1
    for number in (0, 1):
        choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == number]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[number].message.content
        assert [c.finish_reason for c in choices if c.finish_reason] == [whole.choices[number].finish_reason]
    assert all(chunk.usage is None for chunk in chunks), "usage that nobody asked for breaks clients"
    assert whole.choices[0].message.content != whole.choices[1].message.content


def test_usage_comes_last_and_only_if_it_is_asked_for(client: openai.OpenAI) -> None:
    *others, last = chat(client, stream=True, temperature=0, stream_options={"include_usage": True})
    assert last.choices == []
    assert last.usage.completion_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in others)


def test_a_seed_decides_whatever_is_written_beside_it(tiny: Served, client: openai.OpenAI) -> None:
    text = complete(client, temperature=1, seed=5, n=3)
    assert [choice.text for choice in text.choices] == [
        tiny.model.tokenizer.decode(alone(tiny, tiny.model.encode("the tale"), 20, temperature=1.0, seed=5 + n))
        for n in range(3)
    ]


def test_several_prompts_of_text_or_ids(tiny: Served, client: openai.OpenAI) -> None:
    texts = ["the tale", "hello", "the end of"]
    ids = [tiny.model.encode(text) for text in texts]
    by_text = complete(client, prompt=texts, temperature=0)
    by_ids = complete(client, prompt=ids, temperature=0)
    one = complete(client, prompt=ids[1], temperature=0)
    expected = [tiny.model.tokenizer.decode(alone(tiny, each, 20)) for each in ids]
    assert [choice.text for choice in by_text.choices] == [choice.text for choice in by_ids.choices] == expected
    assert one.choices[0].text == expected[1]
    assert by_text.usage.prompt_tokens == sum(map(len, ids))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_a_stop_string_is_cut_wherever_tokens_end(client: openai.OpenAI, route: str, stream: bool) -> None:
    ask = chat if route == "chat" else complete

    def text_of(choice: Any, *, delta: bool = False) -> str:
        said = choice.text if route == "completions" else (choice.delta if delta else choice.message).content
        return said or ""

    options = {"temperature": 1, "seed": 3, "max_tokens": 40}
    free = text_of(ask(client, **options).choices[0])
    for start, length in itertools.product((5, 9, 14), (1, 2, 5)):
        stop = free[start : start + length]
        found = ask(client, **options, stop=[stop, "\x00never"], stream=stream)
        if stream:
            choices = [choice for chunk in found for choice in chunk.choices]
            text, reason = "".join(text_of(one, delta=True) for one in choices), choices[-1].finish_reason
        else:
            text, reason = text_of(found.choices[0]), found.choices[0].finish_reason
        assert (text, reason) == (free[: free.index(stop)], "stop")


def test_logprobs_of_a_completion_with_its_prompt_are_those_of_the_model(tiny: Served, client: openai.OpenAI) -> None:
    ids = tiny.model.encode("the end of the tale: é")
    found = complete(client, prompt=[ids], echo=True, logprobs=3, max_tokens=4, temperature=0).choices[0]
    new = alone(tiny, ids, 4)
    assert found.text == tiny.model.tokenizer.decode(ids) + tiny.model.tokenizer.decode(new)
    with torch.no_grad():
        n_ids = tiny.model.transformer.config.vocab_size  # those that the tokenizer has
        odds = tiny.model.transformer(torch.tensor([ids + new]))[0, :, :n_ids].log_softmax(-1)
    assert found.logprobs.token_logprobs[0] is None and found.logprobs.top_logprobs[0] is None
    told = found.logprobs.token_logprobs[1:]
    expected = [odds[place, token].item() for place, token in enumerate([*ids, *new][1:])]
    assert told == pytest.approx(expected, abs=1e-3)
    assert [len(top) for top in found.logprobs.top_logprobs[1:]] == [3] * len(told)
    assert max(found.logprobs.top_logprobs[-1].values()) == pytest.approx(odds[-2].max().item(), abs=1e-3)
    assert len(found.logprobs.tokens) == len(found.logprobs.text_offset) == len(ids) + len(new)
    scored = complete(client, prompt=[ids], echo=True, logprobs=0, max_tokens=0).choices[0]
    assert scored.logprobs.token_logprobs[1:] == pytest.approx(expected[: len(ids) - 1], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_bytes_of_logprobs_joined_are_the_answer(client: openai.OpenAI, seed: int) -> None:
    options = {"temperature": 1.2, "seed": seed, "max_tokens": 50, "logprobs": True, "top_logprobs": 2}
    answer = chat(client, **options).choices[0]
    raw = b"".join(bytes(one.bytes) for one in answer.logprobs.content)
    assert raw.decode(errors="replace").startswith(answer.message.content[:20])
    streamed = [choice for chunk in chat(client, stream=True, **options) for choice in chunk.choices]
    told = [one for choice in streamed if choice.logprobs for one in choice.logprobs.content]
    assert [one.token for one in told] == [one.token for one in answer.logprobs.content]
    assert all(len(one.top_logprobs) == 2 for one in told)


def test_biases_and_end_tokens(tiny: Served, client: openai.OpenAI) -> None:
    letter = tiny.model.tokenizer.vocabulary["a"]
    assert complete(client, logit_bias={str(letter): 100}, max_tokens=6, temperature=1).choices[0].text == "aaaaaa"
    end = tiny.model.tokenizer.vocabulary["<|im_end|>"]
    assert complete(client, logit_bias={str(end): 100}, max_tokens=6).choices[0].finish_reason == "stop"
    told = {"ignore_eos": True, "skip_special_tokens": False}
    text = complete(client, logit_bias={str(end): 100}, max_tokens=3, extra_body=told).choices[0]
    assert (text.text, text.finish_reason) == ("<|im_end|>" * 3, "length")
    stopped = complete(client, logit_bias={str(letter): 100}, extra_body={"stop_token_ids": [letter]}).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("", "stop")


def test_an_answer_goes_on_where_it_stood(tiny: Served, client: openai.OpenAI) -> None:
    messages = [*ASKED, {"role": "assistant", "content": "the end"}]
    ids = tiny.model.tokenizer.encode(
        "<|im_start|>user\nhello there<|im_end|>\n<|im_start|>assistant\nthe end", special=False
    )
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    answer = chat(client, messages=messages, temperature=0, extra_body=extra)
    assert answer.choices[0].message.content == tiny.model.tokenizer.decode(alone(tiny, ids, 20))
    assert answer.usage.prompt_tokens == len(ids)


def test_parts_of_text_and_a_developer_are_a_system_and_text(client: openai.OpenAI) -> None:
    parts = [{"role": "developer", "content": [{"type": "text", "text": "hello"}, {"type": "text", "text": "there"}]}]
    plain = [{"role": "system", "content": "hello\nthere"}]
    first, other = (chat(client, messages=[*each, *ASKED], temperature=0) for each in (parts, plain))
    assert first.choices[0].message.content == other.choices[0].message.content
    assert first.usage.prompt_tokens == other.usage.prompt_tokens


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "launchyard"
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4' here; this server has 'tiny'"):
        chat(client, model="gpt-4")
    with pytest.raises(openai.BadRequestError, match="it has no embeddings"):
        client.embeddings.create(model="tiny", input="text")


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]


@pytest.mark.parametrize(
    ("options", "param", "said"),
    [
        ({"messages": IMAGE}, "messages", "part of type 'image_url'; this model reads text alone"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "role is 'robot'; use system, developer"),
        ({"messages": [{"role": "user"}]}, "messages", "content is missing"),
        ({"messages": [{"role": "user", "content": "x", "colour": 1}]}, "messages", "colour is no field"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"top_logprobs": 3}, "top_logprobs", "needs logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stop": [""]}, "stop", "a string of stop is empty"),
        ({"logit_bias": {"99999": 1}}, None, "logit_bias names token 99999"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "is for stream: true"),
        ({"extra_body": {"best_of": 4}}, "best_of", "best_of is not supported"),
        ({"extra_body": {"beam": 4}}, "beam", "beam is no field that this server honours; it takes add_generation"),
        ({"store": True}, "store", "store is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "does not show tools to the model"),
        ({"response_format": {"type": "xml"}}, "response_format", "use text, json_object, json_schema"),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, Any], param: str | None, said: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(client, **options)
    assert said in str(refused.value)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"


def test_what_says_nothing_of_the_answer_is_taken(client: openai.OpenAI) -> None:
    answer = chat(client, user="me", metadata={"a": "b"}, store=False, service_tier="auto", tools=openai.omit, seed=1)
    assert answer.choices[0].message.content is not None


SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "born": {"type": "integer", "minimum": 1800, "maximum": 1999}},
    "required": ["name", "born"],
    "additionalProperties": False,
}


def test_an_answer_fits_its_format(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        answer = chat(client, response_format=wanted, seed=seed, max_tokens=200).choices[0]
        found = json.loads(answer.message.content)
        assert found["name"] in ("Ada", "Grace") and 1800 <= found["born"] <= 1999
    extra = {"structured_outputs": {"choice": ["ja", "nein"]}}
    assert complete(client, extra_body=extra).choices[0].text in ("ja", "nein")


CALLING = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }} <tool_call>\n</tool_call><|im_end|>\n{% endif %}" + TEMPLATE
)
FUNCTIONS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA, "description": "…"}}
    for name in ("find", "add")
]


def test_a_call_that_is_required_comes_and_fits(tmp_path: Path) -> None:
    with (
        served(chat_model(tmp_path / "m", template=CALLING)) as tiny,
        openai.OpenAI(base_url=f"{tiny.url}/v1", api_key="none", max_retries=0) as client,
    ):
        for seed in range(3):
            options = {"tools": FUNCTIONS, "tool_choice": "required", "seed": seed, "max_tokens": 900}
            answer = chat(client, **options, parallel_tool_calls=False).choices[0]
            (call,) = answer.message.tool_calls
            assert answer.finish_reason == "tool_calls"
            assert call.function.name in ("find", "add")
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
            chunks = [c.choices[0] for c in chat(client, **options, parallel_tool_calls=False, stream=True)]
            (streamed,) = [one for c in chunks for one in c.delta.tool_calls or []]
            assert streamed.function == type(streamed.function)(**call.function.model_dump())
            assert [c.finish_reason for c in chunks if c.finish_reason] == ["tool_calls"]
        named = chat(
            client, tools=FUNCTIONS, tool_choice={"type": "function", "function": {"name": "add"}}, max_tokens=900
        )
        assert named.choices[0].message.tool_calls[0].function.name == "add"
        free = chat(client, tools=FUNCTIONS, temperature=0)
        assert free.choices[0].message.tool_calls is None and free.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="tool_choice names 'nix'; the tools are: find, add"):
            chat(client, tools=FUNCTIONS, tool_choice={"type": "function", "function": {"name": "nix"}})
