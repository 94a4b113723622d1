"""Text to chunks, side by side with a plain loop over `encode_batch_fast` that writes uint16 to one file.

    python benchmarks/prepare.py [--megabytes 8.4] [--tokenizer FILE] [--rounds 5]

The text is the quickstart's, repeated with its paragraphs in random orders. Both are fresh processes and are timed
from start to end, imports included; they take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from results import over, tell

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"

PLAIN = """
import json, sys
import numpy as np
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(sys.argv[2])
end = [tokenizer.token_to_id("<|endoftext|>")]
texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
with open(sys.argv[3], "wb") as out:
    for start in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False):
            np.array(encoding.ids + end, dtype=np.uint16).tofile(out)
"""


def write_text(path: Path, megabytes: float) -> None:
    """Documents of a few paragraphs."""
    draw, size = random.Random(0), 0
    texts = [file.read_text() for file in sorted(QUICKSTART.glob("*.txt"))]
    paragraphs = [part for text in texts for part in text.split("\n\n") if part.strip()]
    with path.open("w") as file:
        while size < megabytes * 1e6:
            line = json.dumps({"text": "\n\n".join(draw.choices(paragraphs, k=6))}) + "\n"
            size += len(line)
            file.write(line)


def timed(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=8.4)
    parser.add_argument("--tokenizer", default=str(QUICKSTART / "tokenizer.json"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        source = place / "text.jsonl"
        write_text(source, options.megabytes)
        plain, ours = [], []
        for number in range(options.rounds):
            tail = [str(source), options.tokenizer, str(place / "flat.bin")]
            plain.append(timed([sys.executable, "-c", PLAIN, *tail]))
            out = str(place / f"out{number}")
            call = "from launchyard.launcher.cli.data import prepare; prepare()"
            arguments = [str(source), "--tokenizer", options.tokenizer, "--out", out]
            ours.append(timed([sys.executable, "-c", call, *arguments]))
        size = source.stat().st_size / 1e6
        figures = {
            "plain, s": plain,
            "ours, s": ours,
            "speed of ours / plain": over(plain, ours),
            "MB of text a second": [size / seconds for seconds in ours],
        }
    for name, values in figures.items():
        print(f"{name:24} {statistics.median(values):8.3g}  ({min(values):.3g} to {max(values):.3g})")
    tell(figures)


if __name__ == "__main__":
    main()
