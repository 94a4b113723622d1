"""What a result must say so that it can be compared with another: of which weights, and by which rules."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

from launchyard.model.evaluate.perplexity import length_limit, prefix_id
from launchyard.model.loaded import LoadedModel
from launchyard.model.weights.load import digest_in_memory
from launchyard.run.own_code import package_version


def result_facts(loaded: LoadedModel, *, max_length: int | None = None) -> dict[str, object]:
    prefix = prefix_id(loaded)
    tokenizer = loaded.tokenizer
    return {
        "model": loaded.source.folder,
        "adapter": loaded.source.adapter,
        "weights": digest_in_memory(loaded.transformer),
        "dtype": str(loaded.transformer.embed.weight.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "max_length": length_limit(loaded, max_length),
        "prefix_token": {"id": prefix, "text": tokenizer.raw.id_to_token(prefix)},
        "added_tokens": [tokenizer.raw.id_to_token(token) for token in tokenizer.encode("")],
    }


def template_facts(loaded: LoadedModel) -> dict[str, object]:
    """ValueError if the model has no chat template."""
    text = loaded.chat.template(tools=False).text
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()}


def package_versions(*more: str) -> dict[str, str]:
    return {"launchyard": package_version(), **{name: version(name) for name in ("torch", *more)}}
