"""llama.cpp as the reader of our GGUF files: it gives each next token the probability that we give it.

It is the package xllamacpp, a build of llama.cpp for the CPU that `make test-llama-cpp` fetches.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launchyard.model.text.companions import companions_beside
from launchyard.model.text.to_gguf import gguf_tokenizer_keys
from launchyard.model.weights.gguf_export import save_gguf
from tests.model.weights.test_gguf import NAMES, MadeWeights, gguf_shaped
from tests.support.tiny_models import byte_tokenizer, random_model, weights_of

pytestmark = pytest.mark.llamacpp
# It computes these another way: yarn by whole dimensions, longrope by the length of its cache, a plain router.
OTHERWISE = {"gpt-oss", "phi3-long", "phi3-partial", "phimoe", "phimoe-long"}
PROMPT = [5, 9, 41, 77, 100, 3, 64, 12]
TOP = 8
DRAWN = 40  # a letter: of half a character the server gives no probabilities
READER = """
import json, math, sys
import xllamacpp as x
wanted = json.loads(sys.stdin.read())
params = x.CommonParams()
params.model.path = wanted["path"]
params.n_ctx = 64
params.n_parallel = 1
params.cpuparams.n_threads = 1
params.warmup = False
params.fit_params = False
params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
asked = {"prompt": wanted["ids"], "n_predict": 1, "temperature": 1, "top_k": 0, "logprobs": wanted["top"],
         "cache_prompt": False, "logit_bias": [[wanted["drawn"], 1000]]}
answer = x.Server(params).handle_completions(asked)
first = answer["choices"][0]["logprobs"]["content"][0]
print("ANSWER", json.dumps({one["id"]: math.exp(one["logprob"]) for one in first["top_logprobs"]}))
"""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERWISE])
def test_the_next_token_is_as_likely_there(name: str, tmp_path: Path) -> None:
    config = gguf_shaped(name, vocab_size=300)
    tokenizer = byte_tokenizer(tmp_path / "tokenizer.json")
    keys = gguf_tokenizer_keys(companions_beside(tokenizer), config.padded_vocab_size)
    model = random_model(config)
    path = str(tmp_path / "model.gguf")
    save_gguf(MadeWeights(weights_of(model)), config, path, dtype="F32", more_keys=keys)
    with torch.inference_mode():
        ours = torch.softmax(model(torch.tensor([PROMPT]))[0, -1].float(), -1)
    theirs = answer_of(path)
    assert len(theirs) == TOP
    assert max(abs(ours[number].item() - likely) for number, likely in theirs.items()) < 1e-3
    assert math.isclose(sum(theirs.values()), ours.topk(TOP).values.sum().item(), abs_tol=2e-3)


def answer_of(path: str) -> dict[int, float]:
    """Id -> probability of the likeliest next tokens. A process of its own: it ends the whole process by an error."""
    question = json.dumps({"path": path, "ids": PROMPT, "top": TOP, "drawn": DRAWN})
    done = subprocess.run(
        [sys.executable, "-c", READER], input=question, capture_output=True, text=True, timeout=60, check=False
    )
    found = [line.removeprefix("ANSWER ") for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert found, done.stderr[-2000:]
    return {int(number): likely for number, likely in json.loads(found[0]).items()}
