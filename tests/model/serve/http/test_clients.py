"""Two more clients that people have: LangChain, and lm-evaluation-harness over /v1/completions."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.serve.served import Served

pytestmark = pytest.mark.filterwarnings("default")  # of packages that these clients bring


def test_langchain(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from langchain_openai import ChatOpenAI

    options: dict[str, Any] = {"model": "tiny", "base_url": f"{tiny.url}/v1", "api_key": "none", "max_retries": 0}
    model = ChatOpenAI(**options, temperature=0, max_completion_tokens=12)
    answer = model.invoke([("system", "the tale"), ("human", "hello there")])
    chunks = list(model.stream([("system", "the tale"), ("human", "hello there")], stream_usage=True))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content
    (told,) = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert answer.usage_metadata is not None and told is not None
    assert told["output_tokens"] == answer.usage_metadata["output_tokens"] > 0
    assert model.batch(["a", "b", "a"])[2].content == model.invoke("a").content


def test_lm_eval_over_completions(tiny: Served, tmp_path: Path) -> None:
    """Log-likelihoods by echo, with ids as prompts, are those of the model itself."""
    logging.disable(logging.WARNING)
    try:
        from lm_eval.api.instance import Instance
        from lm_eval.models.openai_completions import LocalCompletionsAPI

        model = LocalCompletionsAPI(
            base_url=f"{tiny.url}/v1/completions", model="tiny", tokenizer_backend="huggingface",
            tokenizer=tiny.model.source.folder, batch_size=4, max_length=512,
        )  # fmt: skip
        pairs = [
            ("the end of", " the tale"),
            ("hello", " there"),
            ("the user and", " the assistant, é 😀"),
            ("", "the"),
        ]
        asked = [Instance("loglikelihood", {}, pair, n) for n, pair in enumerate(pairs)]
        found = model.loglikelihood(asked, disable_tqdm=True)
    finally:
        logging.disable(logging.NOTSET)
    tokenizer = tiny.model.tokenizer
    for (context, continuation), (logprob, is_greedy) in zip(pairs, found, strict=True):
        ids = tokenizer.encode(context + continuation)
        n_context = len(tokenizer.encode(context))
        if not context:
            ids = [model.prefix_token_id, *ids]
            n_context = 1
        with torch.no_grad():
            logits = tiny.model.transformer(torch.tensor([ids]))[0, :, : tiny.model.transformer.config.vocab_size]
        odds = logits.log_softmax(-1)
        expected = sum(odds[place - 1, ids[place]].item() for place in range(n_context, len(ids)))
        assert logprob == pytest.approx(expected, abs=1e-3)
        assert is_greedy == all(odds[n - 1].argmax() == ids[n] for n in range(n_context, len(ids)))
    assert json.dumps(found)
