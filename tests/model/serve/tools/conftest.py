from __future__ import annotations

import pytest

from launchyard.model.network.transformer import Transformer
from launchyard.model.text.tokenizer import Tokenizer
from tests.model.serve.tools.calling import V
from tests.support.tiny_models import byte_tokenizer, llama, random_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(byte_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"))


@pytest.fixture(scope="module")
def marked_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """With markers as tokens: those of Mistral and of GLM's values are special, that of Hermes is none."""
    import tokenizers

    path = byte_tokenizer(tmp_path_factory.mktemp("marked") / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(path)
    raw.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<arg_key>", "</arg_value>"])
    raw.add_tokens(["<tool_call>", "</tool_call>"])
    raw.save(path)
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(llama(vocab_size=V, padded_vocab_size=V, max_seq_len=1024))
