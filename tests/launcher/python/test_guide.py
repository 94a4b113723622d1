"""The guide's own lines of Python, on a smaller model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[3] / "docs/guides/python.md"
TINY = {
    "model.dim": 32, "model.n_layers": 1, "model.n_heads": 2, "model.ffn_dim": 64, "data.seq_len": 16,
    "train.max_steps": 3, "train.device": "cpu", "metrics.prometheus": False,
}  # fmt: skip


@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 1, 2, 3])
def test_it_runs_as_it_stands(number: int, capsys: pytest.CaptureFixture[str], tmp_path: Path, novel: str) -> None:
    """Apart from the first it takes no processes of its own."""
    (tmp_path / "novel.txt").write_text(novel[:40_000])
    blocks = re.findall(r"```py\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert len(blocks) == 4, "say here which of them are slow"
    block = re.sub(r"overrides=\{[^}]*\}", "overrides=TINY", blocks[number])
    block = block.replace('build("quickstart")', 'build("quickstart", overrides=TINY)')
    assert "TINY" in block
    exec(block, {"TINY": {**TINY, "data.source": str(tmp_path / "novel.txt")}})
    assert capsys.readouterr().out or number == 3
