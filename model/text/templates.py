"""Chat templates as they lie beside weights: in tokenizer_config.json, in chat_template.jinja and in files of a name.

Reads and writes them; renders none. Light.
"""

from __future__ import annotations

import json

from launchyard.model.text.companions import (
    CHAT_TEMPLATE,
    MORE_TEMPLATES,
    TOKENIZER_CONFIG,
    Companions,
    is_companion,
    is_template,
    json_companion,
)

DEFAULT = "default"


def read_templates(companions: Companions) -> dict[str, str]:
    """Name -> template; the one of no name is `default`. A file wins over tokenizer_config.json, as in transformers."""
    found = configured_templates(companions)
    for name, raw in companions.items():
        if is_template(name):
            key = DEFAULT if name == CHAT_TEMPLATE else name.removeprefix(f"{MORE_TEMPLATES}/").removesuffix(".jinja")
            found[key] = raw.decode()
    return found


def configured_templates(companions: Companions) -> dict[str, str]:
    """Those of tokenizer_config.json, where they are a string, or a list of names and templates."""
    given = json_companion(companions, TOKENIZER_CONFIG).get("chat_template")
    if isinstance(given, str):
        return {DEFAULT: given}
    listed = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return {str(one["name"]): str(one["template"]) for one in listed if {"name", "template"} <= one.keys()}


def with_templates(companions: Companions, templates: dict[str, str]) -> dict[str, bytes]:
    """The companions with these templates in both places: some programs read only one of them."""
    if not templates:
        return dict(companions)
    only_default = list(templates) == [DEFAULT]
    listed = [{"name": name, "template": template} for name, template in templates.items()]
    settings = {
        **json_companion(companions, TOKENIZER_CONFIG),
        "chat_template": templates[DEFAULT] if only_default else listed,
    }
    return {
        **companions,
        **template_files(templates),
        TOKENIZER_CONFIG: (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def template_files(templates: dict[str, str]) -> dict[str, bytes]:
    """As files of their own; without one whose name is that of no file."""
    names = {name: CHAT_TEMPLATE if name == DEFAULT else f"{MORE_TEMPLATES}/{name}.jinja" for name in templates}
    return {names[key]: text.encode() for key, text in templates.items() if is_companion(names[key])}
