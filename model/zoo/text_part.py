"""The language model inside a model of images and text: its part of config.json, and its keys. Light."""

from __future__ import annotations

from collections.abc import Iterable

from launchyard.model.zoo.hf_config import HFKeys, Written

# Before its keys in files, and what stands there in files of the language model alone.
_PREFIXES = {"language_model.": "", "model.language_model.": "model."}
_OTHER_PARTS = ("vision_tower.", "vision_model.", "multi_modal_projector.")


def text_config(hf: HFKeys, model_type: str) -> Written:
    """Its config.json. Of the tie of head and table the outer one knows, since it holds the head."""
    outer = {} if hf.get("tie_word_embeddings") is None else {"tie_word_embeddings": hf["tie_word_embeddings"]}
    return {**(hf.get("text_config") or {}), **outer, "model_type": model_type}


def text_keys(keys: Iterable[str]) -> dict[str, str]:
    """Key as a file of the language model alone has it -> as this one has it; without those of the other parts."""
    found = {}
    for key in keys:
        if key.removeprefix("model.").startswith(_OTHER_PARTS):
            continue
        prefix = next((prefix for prefix in _PREFIXES if key.startswith(prefix)), "")
        found[_PREFIXES.get(prefix, "") + key.removeprefix(prefix)] = key
    return found
