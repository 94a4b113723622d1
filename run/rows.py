"""Rows of steps, validations and events, one JSON object a line."""

from __future__ import annotations

import json
from typing import Any


def parse_jsonl(raw: bytes) -> list[dict[str, Any]]:
    """Rows of a JSONL file; a last line that a kill cut short is left out."""
    return [json.loads(line) for line in raw.split(b"\n")[:-1] if line.strip()]
