"""Random tokens as one chunk in the format that `launch prepare` writes, for benchmarks that need no text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def write_chunks(folder: Path, tokens: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    """litdata's layout: u32 N, u32 offset[N + 1], raw tokens; one item, one chunk."""
    folder.mkdir(parents=True)
    size = 12 + tokens.nbytes
    header = np.array([1, 12, size], dtype="<u4").tobytes()
    (folder / "chunk-0-0.bin").write_bytes(header + tokens.astype("<u2").tobytes())
    chunk = {"filename": "chunk-0-0.bin", "chunk_bytes": tokens.nbytes, "chunk_size": 1, "dim": len(tokens)}
    config = {"data_format": ["no_header_numpy:5"], "item_loader": "TokensLoader", "compression": None}
    (folder / "index.json").write_text(json.dumps({"chunks": [chunk], "config": config}))
