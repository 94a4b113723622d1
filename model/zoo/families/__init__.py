"""The families, a file each; see docs/guides/add-a-family.md. To add one: its file, and its name in the list here."""

from __future__ import annotations

from launchyard.model.zoo.families import cohere, gemma, gpt_neox, llama, mistral, olmo, qwen2, qwen3

MODULES = (gpt_neox, llama, gemma, mistral, qwen2, qwen3, olmo, cohere)
