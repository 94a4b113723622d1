"""Which files of a repository are fetched."""

from __future__ import annotations

import pytest

from launchyard.errors import UserError
from launchyard.launcher.hub.selection import Choice, choose

FACTS = ["LICENSE", "config.json", "generation_config.json", "tokenizer.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
GGUFS = ["m-F16-00001-of-00002.gguf", "m-F16-00002-of-00002.gguf", "m-Q4_K_M.gguf"]
OTHERS = [".gitattributes", "flax_model.msgpack", "onnx/model.onnx", "tf_model.h5", "training_args.bin"]
# Weights of a repository -> those that are taken.
WEIGHTS = {
    "shards": ([*SHARDS, "pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"], SHARDS),
    "one file": (["model.safetensors", "model.fp16.safetensors", "m.gguf"], ["model.safetensors"]),
    "another name": (["adapter_model.safetensors"], ["adapter_model.safetensors"]),
    "pickle only": (["pytorch_model.bin"], ["pytorch_model.bin"]),
    "one gguf": (["m-Q4_K_M.gguf", "mmproj-m-F16.gguf"], ["m-Q4_K_M.gguf"]),
    "one gguf in parts": (GGUFS[:2], GGUFS[:2]),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_each_kind_of_weights_comes_once(name: str) -> None:
    held, taken = WEIGHTS[name]
    assert choose([*FACTS, *OTHERS, *held], Choice(), repo="org/m") == sorted([*FACTS, *taken])


def test_options_change_the_choice() -> None:
    paths = [*FACTS, *OTHERS, *SHARDS, *GGUFS, "tokenizer.model", "additional_chat_templates/tool_use.jinja"]

    def chosen(**options: object) -> list[str]:
        return choose(paths, Choice(**options), repo="org/m")  # type: ignore[arg-type]

    tokenizer = ["additional_chat_templates/tool_use.jinja", "config.json", "tokenizer.json", "tokenizer.model"]
    assert chosen(tokenizer_only=True) == tokenizer
    assert chosen(file="q4_k_m") == ["m-Q4_K_M.gguf"]
    assert chosen(file="m-F16-00001-of-00002.gguf") == GGUFS[:2]
    assert chosen(file="LICENSE") == ["LICENSE"]
    assert chosen(include=["onnx/*", "*.h5"]) == ["onnx/model.onnx", "tf_model.h5"]
    assert set(chosen()) - set(chosen(exclude=["*.safetensors"])) == set(SHARDS[:2])


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        (GGUFS, {}, "several GGUF files; name one of them:\n  org/m:m-F16-00001-of-00002.gguf\n  org/m:m-Q4_K_M.gguf"),
        (GGUFS, {"file": "Q8_0"}, "Q8_0 is no file there"),
        (["tf_model.h5", "config.json"], {}, "weights as .h5 only"),
        (["config.json"], {}, "holds no weights"),
        (["config.json"], {"include": ["*.py"]}, "no file that these options choose; it holds config.json"),
    ],
)
def test_what_cannot_be_taken_is_said(paths: list[str], options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        choose(paths, Choice(**options), repo="org/m")  # type: ignore[arg-type]
    assert message in str(caught.value)
