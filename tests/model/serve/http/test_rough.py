"""Rough clients: they go in the middle, ask for too much, send rubbish. Nothing is lost, mixed up or held on to."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from launchyard.model.serve.http.app import Access
from launchyard.model.serve.http.service import ServerLimits
from tests.model.serve.served import Served, served

LONG = {"prompt": "the tale", "temperature": 1, "ignore_eos": True, "max_tokens": 1900}


def asks(seed: int, **options: Any) -> dict[str, Any]:
    return {"prompt": f"the tale of {seed}", "temperature": 1, "seed": seed, "max_tokens": 30, **options}


# -- who goes ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/predict"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_slot_is_free_within_a_step_of_its_client_going(tiny: Served, path: str, stream: bool) -> None:
    tiny.wait_until_idle()
    before = tiny.metric("request_success_total", finished_reason="abort")
    body = dict(LONG, stream=stream, n=2, messages=[{"role": "user", "content": "x"}])
    fields = {"/v1/completions": "messages", "/v1/chat/completions": "prompt", "/predict": "messages"}
    body.pop(fields[path])
    if path == "/predict":
        body["max_new_tokens"] = body.pop("max_tokens")
        body.pop("n")
    raw = json.dumps(body).encode()
    host, port = tiny.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
        connection.sendall(head.encode() + b"\r\n\r\n" + raw)
        while not tiny.metric("num_requests_running"):
            time.sleep(0.005)
        steps = tiny.server.service.engine.counts.steps
    tiny.wait_until_idle(2)
    assert tiny.server.service.engine.counts.steps - steps < 200, "the text was written to its end for nobody"
    assert tiny.metric("request_success_total", finished_reason="abort") - before == body.get("n", 1)
    assert tiny.server.service.n_open == 0


def test_clients_that_go_change_nothing_for_those_that_stay(tiny: Served) -> None:
    """Forty clients at once, every third goes in the middle; what the others get is what each gets alone."""
    expected = {seed: tiny.post("/v1/completions", asks(seed)).json()["choices"][0]["text"] for seed in range(40)}

    def client(seed: int) -> tuple[int, str | None]:
        if seed % 3:
            return seed, str(tiny.post("/v1/completions", asks(seed)).json()["choices"][0]["text"])
        with httpx.stream("POST", tiny.url + "/v1/completions", json=asks(seed, stream=True), timeout=60) as answer:
            for count, _ in enumerate(answer.iter_lines()):
                if count > seed % 7:
                    break
        return seed, None

    with ThreadPoolExecutor(40) as pool:
        found = dict(pool.map(client, random.Random(0).sample(range(40), 40)))
    stayed = {seed: text for seed, text in found.items() if text is not None}
    other = [seed for seed, text in stayed.items() if text != expected[seed]]
    assert len(other) <= 1, f"texts of {other} are not theirs"  # sums of a batch round otherwise: a tie may flip
    tiny.wait_until_idle()
    assert tiny.server.service.n_open == 0


# -- who asks for too much ---------------------------------------------------------------------------------------------
def test_a_prompt_of_60000_words_is_refused_at_once_and_the_next_request_is_served(tiny: Served) -> None:
    words = "word " * 60_000
    for body, path in (
        ({"prompt": words}, "/v1/completions"),
        ({"messages": [{"role": "user", "content": words}]}, "/v1/chat/completions"),
    ):
        began = time.monotonic()
        refused = tiny.post(path, body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert time.monotonic() - began < 5
        assert tiny.post("/v1/completions", asks(1)).status_code == 200


def test_too_many_prompts_are_refused_before_any_is_encoded(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[str] = []
    monkeypatch.setattr(tiny.server.model.tokenizer, "encode", lambda text, **_: encoded.append(text) or [1])
    for prompt in (["a"] * 5000, [[1]] * 5000, [""] * 5000):
        refused = tiny.post("/v1/completions", {"prompt": prompt})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
        assert "5000 texts are asked for at once; 128 are allowed" in refused.text
    assert not encoded
    monkeypatch.undo()
    assert tiny.post("/v1/completions", {"prompt": [1] * 500, "max_tokens": 1}).status_code == 200, "one, of 500 ids"


def test_a_full_queue_says_when_to_come_again(folder: Path) -> None:
    with (
        served(folder, limits=ServerLimits(n_slots=1, context_length=2048, n_waiting=1)) as tiny,
        ThreadPoolExecutor(2) as pool,
    ):
        held = [pool.submit(tiny.post, "/v1/completions", LONG) for _ in range(2)]
        while tiny.metric("num_requests_running") + tiny.metric("num_requests_waiting") < 2:
            time.sleep(0.005)
        refused = tiny.post("/v1/completions", asks(1))
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert tiny.metric("requests_refused_total") == 1
        assert tiny.post("/v1/completions", asks(1, n=3)).status_code == 400, "more than ever fit"
        assert [one.result().status_code for one in held] == [200, 200]
        assert tiny.post("/v1/completions", asks(1)).status_code == 200


def test_an_answer_that_takes_too_long_is_ended(folder: Path) -> None:
    with served(folder, limits=ServerLimits(n_slots=1, context_length=4096, seconds=0.2)) as tiny:
        late = tiny.post("/v1/completions", dict(LONG, max_tokens=4000))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        tiny.wait_until_idle(2)
        streamed = tiny.post("/v1/completions", dict(LONG, max_tokens=4000, stream=True)).text
        *_, error, done = [line for line in streamed.splitlines() if line]
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
        assert done == "data: [DONE]"


# -- who sends rubbish -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"prompt": NaN}', b'{"prompt":' + b"[" * 100_000, b"\x00" * 10],
    ids=["empty", "open", "list", "text", "no utf-8", "nan", "deep", "zeros"],
)
def test_a_body_that_is_no_json_object_is_one_clear_error(tiny: Served, raw: bytes) -> None:
    refused = httpx.post(f"{tiny.url}/v1/completions", content=raw)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    "prompt", [[[]], [], "", [1, "a"], [[1], "a"], {"a": 1}, [-1], [10_000], [1.5], [True], None], ids=str
)
def test_a_prompt_that_is_none_is_refused(tiny: Served, prompt: object) -> None:
    refused = tiny.post("/v1/completions", {"prompt": prompt})
    if prompt == "":  # begins a new text, with the token for that
        assert refused.status_code == 200
    else:
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["message"]


def test_a_body_without_end_is_not_waited_for(tiny: Served) -> None:
    refused = httpx.post(f"{tiny.url}/v1/completions", content=b" " * (17 << 20))
    assert refused.status_code == 413


@pytest.mark.parametrize("text", ["你好 😀 naïve é", "\ud83d\ude00", "a\u0000b", "e\u0301 \u202e", "\U0010ffff"])
def test_any_text_is_taken(tiny: Served, text: str) -> None:
    raw = json.dumps({"prompt": text, "max_tokens": 3, "echo": True, "temperature": 0})  # with \ud83d and the like
    found = httpx.post(f"{tiny.url}/v1/completions", content=raw.encode())
    assert found.status_code == 200, found.text


def test_half_a_surrogate_is_refused_and_not_a_failure(tiny: Served) -> None:
    found = httpx.post(f"{tiny.url}/v1/completions", content=b'{"prompt": "\\ud83d", "max_tokens": 3}')
    assert found.status_code == 400
    found = httpx.post(f"{tiny.url}/v1/chat/completions", content=b'{"messages":[{"role":"user","content":"\\ud83d"}]}')
    assert found.status_code == 400


def test_other_routes_and_methods_are_errors_of_the_same_form(tiny: Served) -> None:
    assert "there is no /v2 here; there are /v1/chat" in httpx.get(f"{tiny.url}/v2").json()["error"]["message"]
    wrong = httpx.get(f"{tiny.url}/v1/completions")
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "/v1/completions does not take GET")
    named = httpx.get(f"{tiny.url}/v2", headers={"x-request-id": "mine-1"})
    assert named.headers["x-request-id"] == "mine-1"
    assert len(httpx.get(f"{tiny.url}/health").headers["x-request-id"]) == 32


# -- who may ask -------------------------------------------------------------------------------------------------------
def test_keys_origins_and_names(folder: Path) -> None:
    access = Access(keys=["one", "schlüssel"], origins=["https://friend.example"], hosts=["127.0.0.1", "localhost"])
    with served(folder, access=access) as tiny:
        models = f"{tiny.url}/v1/models"
        for given in ({}, {"Authorization": "Bearer two"}, {"Authorization": "Basic one"}, {"Authorization": "one"}):
            refused = httpx.get(models, headers=given)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        key = {"Authorization": "Bearer one"}
        assert httpx.get(models, headers=key).status_code == 200
        assert httpx.get(models, headers={"Authorization": "Bearer schlüssel".encode()}).status_code == 200
        assert httpx.get(f"{tiny.url}/health").status_code == 200, "a probe has no key"
        friend = httpx.get(models, headers={**key, "Origin": "https://friend.example"})
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        assert httpx.get(models, headers={**key, "Origin": "https://foe.example"}).status_code == 403
        assert httpx.get(models, headers={**key, "Origin": tiny.url}).status_code == 200, "its own page"
        assert httpx.get(models, headers={**key, "Host": "foe.example"}).status_code == 403, "a rebound name"
        asked = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
        assert httpx.options(models, headers=asked).status_code == 200


# -- the engine and its end --------------------------------------------------------------------------------------------
def test_a_failure_of_the_engine_ends_its_texts_and_no_more(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with served(folder) as tiny, ThreadPoolExecutor(2) as pool:
        held = [pool.submit(tiny.post, "/v1/completions", LONG) for _ in range(2)]
        while tiny.metric("num_requests_running") < 2:
            time.sleep(0.005)

        def fail() -> None:
            raise RuntimeError("out of memory")

        tiny.server.service.engine.step = fail  # type: ignore[assignment, method-assign]
        for one in held:
            assert (one.result().status_code, one.result().json()["error"]["code"]) == (500, "engine_failed")
        assert tiny.post("/v1/completions", asks(1)).status_code == 200
        assert tiny.server.service.n_open == 0


def test_texts_end_with_the_weights_they_began_with(folder: Path, tmp_path: Path) -> None:
    from launchyard.model.weights.load import load
    from tests.model.serve.served import chat_model

    other = load(str(chat_model(tmp_path / "other", seed=1)))
    with served(folder) as tiny, ThreadPoolExecutor(1) as pool:
        body = dict(LONG, seed=3, max_tokens=400)
        expected = tiny.post("/v1/completions", body).json()["choices"][0]["text"]
        held = pool.submit(tiny.post, "/v1/completions", body)
        while not tiny.metric("num_requests_running"):
            time.sleep(0.005)
        tiny.server.service.replace(other)
        after = tiny.post("/v1/completions", body).json()["choices"][0]["text"]
        assert held.result().json()["choices"][0]["text"] == expected
        assert after != expected
        assert tiny.server.model is other


def test_a_server_that_ends_lets_what_runs_end_and_takes_nothing_new(folder: Path) -> None:
    with served(folder) as tiny, ThreadPoolExecutor(1) as pool:
        held = pool.submit(tiny.post, "/v1/completions", LONG)
        while not tiny.metric("num_requests_running"):
            time.sleep(0.005)
        tiny.server.service.close(0)  # as at the end of a grace that is over
        assert held.result().json()["error"]["code"] == "stopping"
        assert tiny.post("/v1/completions", asks(1)).json()["error"]["code"] == "stopping"
        assert httpx.get(f"{tiny.url}/health").status_code == 503


# -- other routes ------------------------------------------------------------------------------------------------------
def test_predict_and_generate_as_the_documents_have_them(tiny: Served) -> None:
    body = {"prompt": "the tale", "temperature": 0, "max_new_tokens": 12}
    output = tiny.post("/predict", body).json()["output"]
    lines = tiny.post("/predict", dict(body, stream=True))
    assert "".join(json.loads(line)["output"] for line in lines.text.splitlines()) == output
    response = httpx.post(f"{tiny.url}/generate", params={"prompt": "the tale", "max_tokens": 12, "temperature": 0})
    assert response.json() == {"response": output}
    assert tiny.post("/generate", {"prompt": "the tale", "max_tokens": 12, "temperature": 0}).json() == response.json()
    wrong = httpx.post(f"{tiny.url}/generate", params={"prompt": "the tale", "max_tokens": "many"})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "max_tokens")
    assert tiny.post("/predict", {"text": "x"}).json()["error"]["message"].startswith("text is no field")


def test_docs_and_openapi_name_every_field(tiny: Served) -> None:
    api = httpx.get(f"{tiny.url}/openapi.json").json()
    assert "min_p" in api["components"]["schemas"]["ChatBody"]["properties"]
    page = httpx.get(f"{tiny.url}/docs")
    assert "repetition_penalty" in page.text and "{{nonce}}" not in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]


def test_memory_is_flat_under_load(tiny: Served) -> None:
    """A smoke test of what benchmarks/serve.py does for a minute."""

    def burst() -> None:
        def one(seed: int) -> None:
            tiny.post("/v1/completions", asks(seed, max_tokens=40, n=2))

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(one, range(24)))

    burst()
    process = psutil.Process()
    before = process.memory_info().rss
    burst()
    assert process.memory_info().rss - before < 40e6
    assert threading.active_count() < 60
