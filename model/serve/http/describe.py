"""The routes in words: OpenAPI, and a page of it that needs no network. Both are made of the bodies themselves."""

from __future__ import annotations

import html
from collections.abc import Mapping

from pydantic import BaseModel

from launchyard.model.serve.http.bodies import ChatBody, CompletionBody, GenerateBody, PromptBody
from launchyard.model.text.companions import Json

_POSTED: Mapping[str, tuple[str, type[BaseModel]]] = {
    "/v1/chat/completions": ("Answers to a chat, as OpenAI has it", ChatBody),
    "/v1/completions": ("Texts behind prompts, as OpenAI has it", CompletionBody),
    "/predict": ("{prompt} gives {output}; with stream, lines of JSON", PromptBody),
    "/generate": ("{prompt} gives {response}; also as parameters of the address", GenerateBody),
}
_GOT = {
    "/v1/models": "The model that is served",
    "/health": "200 while requests are served",
    "/metrics": "Series for Prometheus",
    "/openapi.json": "This, for programs",
    "/": "A chat",
}


def openapi() -> Json:
    paths: Json = {}
    schemas: Json = {}
    for path, (summary, body) in _POSTED.items():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[body.__name__] = schema
        content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
        paths[path] = {"post": {"summary": summary, "requestBody": {"required": True, "content": content}, **_ANSWERS}}
    for path, summary in _GOT.items():
        paths[path] = {"get": {"summary": summary, **_ANSWERS}}
    info = {"title": "launchyard serve", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


_ANSWERS = {"responses": {"200": {"description": "done"}, "default": {"description": "an error, as OpenAI has it"}}}


def docs_page() -> str:
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        "<title>launchyard serve</title><style nonce='{{nonce}}'>body{font:16px/1.5 system-ui;max-width:60rem;",
        "margin:auto;padding:1rem}table{border-collapse:collapse;width:100%}td{border-top:1px solid #ccc;",
        "padding:.2rem .6rem;vertical-align:top}code{font-size:.95em}</style><h1>Routes</h1>",
    ]
    for path, summary in _GOT.items():
        parts.append(f"<p><code>GET <a href='{path}'>{path}</a></code> {html.escape(summary)}</p>")
    for path, (summary, body) in _POSTED.items():
        parts.append(f"<h2><code>POST {path}</code></h2><p>{html.escape(summary)}</p><table>")
        for name, field in body.model_fields.items():
            default = "needed" if field.is_required() else repr(field.get_default(call_default_factory=True))
            cells = (
                f"<code>{name}</code>",
                html.escape(field.description or ""),
                f"<code>{html.escape(default)}</code>",
            )
            parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        parts.append("</table>")
    return "".join(parts)
