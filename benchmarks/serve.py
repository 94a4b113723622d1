"""Serving against `transformers serve`: tokens per CPU second of the server, its memory, and clients that misbehave.

    python benchmarks/serve.py MODEL [--clients 8 1] [--new 32] [--runs 3] [--sides launchyard transformers …]
    python benchmarks/serve.py MODEL --rough 60          # only ours: 32 clients for so many seconds, with cuts

Servers run one at a time, each on one thread, in turn; greedy chats of one line, all clients at once. CPU seconds are
the server's own. MODEL is a Hugging Face folder with a chat template. Needs transformers[serving] for their sides.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import psutil

from launchyard.host.ports import free_port

THEIRS = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
SIDES = {
    "launchyard": ["launch"],
    "launchyard bf16": ["launch", "--weights", "bf16"],
    "launchyard int8": ["launch", "--weights", "int8"],
    "launchyard int4": ["launch", "--weights", "int4"],
    "transformers": ["transformers"],
    "transformers continuous": ["transformers", "--continuous-batching"],
}
TOPICS = ("rivers", "glass", "clouds", "bridges", "violins", "salt", "maps", "owls", "tea", "iron", "moss", "tides")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sides", nargs="+", default=["launchyard", "transformers continuous"], choices=SIDES)
    parser.add_argument("--rough", type=float, metavar="SECONDS")
    options = parser.parse_args()
    result = rough(options) if options.rough else compare(options)
    print(json.dumps(result, indent=1))


# -- side by side ------------------------------------------------------------------------------------------------------
def compare(options: argparse.Namespace) -> dict[str, object]:
    speeds: dict[str, dict[int, list[float]]] = {side: {n: [] for n in options.clients} for side in options.sides}
    memory: dict[str, list[float]] = {side: [] for side in options.sides}
    for _ in range(options.runs):
        for side in options.sides:
            with server(side, options.model) as (url, process):
                chat(url, options.model, 0, 4)
                for n_clients in options.clients:
                    speeds[side][n_clients].append(burst(url, process, options, n_clients))
                memory[side].append(peak_bytes(process) / 1e9)
    return {
        "model": options.model,
        "new tokens": options.new,
        "runs": options.runs,
        "tokens per CPU second": {
            side: {f"{n} clients": spread(found) for n, found in own.items()} for side, own in speeds.items()
        },
        "peak GB": {side: spread(found) for side, found in memory.items()},
    }


def burst(url: str, process: psutil.Process, options: argparse.Namespace, n_clients: int) -> float:
    before = cpu_seconds(process)
    with ThreadPoolExecutor(n_clients) as pool:
        asked = [pool.submit(chat, url, options.model, n, options.new) for n in range(n_clients)]
        tokens = sum(one.result() for one in asked)
    return tokens / (cpu_seconds(process) - before)


def chat(url: str, model: str, n: int, new: int) -> int:
    """Tokens of one answer, which is as long as it may be."""
    content = f"Write a long story, number {n}, about {TOPICS[n % len(TOPICS)]}. Do not stop."
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": new, "temperature": 0}
    found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600)
    found.raise_for_status()
    return int(found.json()["usage"]["completion_tokens"])


@contextmanager
def server(side: str, model: str, *more: str) -> Iterator[tuple[str, psutil.Process]]:
    kind, *flags = SIDES[side]
    port = str(free_port())
    if kind == "launch":
        command = [sys.executable, "-m", "launchyard", "serve", model, "--name", model, "--port", port, *flags, *more]
    else:
        command = [*THEIRS, model, "--port", port, "--dtype", "float32", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, child)
        yield url, psutil.Process(child.pid)
    finally:
        child.terminate()
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def wait_until_ready(url: str, child: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 180
    while time.monotonic() < end:
        if child.poll() is not None:
            raise SystemExit(f"the server ended with {child.returncode}: {child.args}")
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise SystemExit(f"{url} never became ready")


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def peak_bytes(process: psutil.Process) -> float:
    with open(f"/proc/{process.pid}/status") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


# -- rough clients -----------------------------------------------------------------------------------------------------
def rough(options: argparse.Namespace) -> dict[str, object]:
    """32 clients: streams, whole answers, cuts, prompts of 60,000 words, rubbish. Each whole answer is compared."""
    counts: dict[str, int] = {}
    lock = threading.Lock()
    faults: list[str] = []
    with server("launchyard", options.model) as (url, process):
        expected = {seed: answer(url, options.model, seed) for seed in range(16)}
        start = process.memory_info().rss
        marks = [start]
        end = time.monotonic() + options.rough

        def client(number: int) -> None:
            rng = random.Random(number)
            while time.monotonic() < end:
                kind = rng.choices(list(KINDS), weights=[6, 4, 4, 1, 1])[0]
                try:
                    fault = KINDS[kind](url, options.model, rng, expected)
                except Exception as error:  # a client that fails is what is looked for
                    fault = f"{kind}: {type(error).__name__}: {error}"
                with lock:
                    counts[kind] = counts.get(kind, 0) + 1
                    if fault:
                        faults.append(fault)
                    marks.append(process.memory_info().rss)

        threads = [threading.Thread(target=client, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        time.sleep(0.5)
        page = httpx.get(f"{url}/metrics").text
        running = next(line for line in page.splitlines() if line.startswith("launchyard_serve_num_requests_running{"))
        after = {seed: answer(url, options.model, seed) for seed in range(16)}
    return {
        "requests": counts,
        "faults": faults[:20],
        "n faults": len(faults),
        "running at the end": running.rpartition(" ")[2],
        "same answers before and after": sum(after[seed] == expected[seed] for seed in range(16)),
        "RSS MB": {
            "start": round(start / 1e6),
            "first half, most": round(max(marks[: len(marks) // 2]) / 1e6),
            "second half, most": round(max(marks[len(marks) // 2 :]) / 1e6),
        },
    }


def body_of(model: str, seed: int, **more: object) -> dict[str, object]:
    content = f"Tell me about {TOPICS[seed % len(TOPICS)]} and {seed}."
    return {
        "model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 24, "seed": seed,
        "temperature": 0.7, **more,
    }  # fmt: skip


def answer(url: str, model: str, seed: int) -> str:
    while True:
        found = httpx.post(f"{url}/v1/chat/completions", json=body_of(model, seed), timeout=300)
        if found.status_code != 429:
            return str(found.json()["choices"][0]["message"]["content"])
        time.sleep(float(found.headers["retry-after"]))


def whole(url: str, model: str, rng: random.Random, expected: dict[int, str]) -> str | None:
    seed = rng.randrange(16)
    found = answer(url, model, seed)
    return judged(found, seed, expected)


def judged(found: str, seed: int, expected: dict[int, str]) -> str | None:
    """A batch rounds otherwise, so a tie may flip the rest of a text; a text of another request begins otherwise."""
    if found == expected[seed]:
        return None
    other = next((one for one, text in expected.items() if text == found and text != expected[seed]), None)
    if other is not None:
        return f"the answer of seed {other} came for seed {seed}"
    return None if found[:8] == expected[seed][:8] or not found else f"seed {seed}: {found!r} not {expected[seed]!r}"


def streamed(url: str, model: str, rng: random.Random, expected: dict[int, str]) -> str | None:
    seed = rng.randrange(16)
    pieces = []
    with httpx.stream(
        "POST", f"{url}/v1/chat/completions", json=body_of(model, seed, stream=True), timeout=300
    ) as found:
        if found.status_code == 429:
            return None
        lines = [line for line in found.iter_lines() if line]
    if lines[-1] != "data: [DONE]":
        return f"a stream ended with {lines[-1]}"
    for line in lines[:-1]:
        pieces += [choice["delta"].get("content") or "" for choice in json.loads(line[6:])["choices"]]
    return judged("".join(pieces), seed, expected)


def cut(url: str, model: str, rng: random.Random, expected: dict[int, str]) -> str | None:
    body = body_of(model, rng.randrange(16), stream=rng.random() < 0.5, max_tokens=400)
    try:
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=rng.random() * 2) as found:
            for n, _ in enumerate(found.iter_lines()):
                if n > 5:
                    break
    except httpx.TimeoutException:
        pass
    return None


def too_long(url: str, model: str, rng: random.Random, expected: dict[int, str]) -> str | None:
    body = {"model": model, "messages": [{"role": "user", "content": "word " * 60_000}]}
    found = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    return None if found.status_code == 400 else f"60,000 words: {found.status_code}"


def rubbish(url: str, model: str, rng: random.Random, expected: dict[int, str]) -> str | None:
    raw = rng.choice([b"{", b"[1]", b'{"messages": 3}', b'{"messages":[{"role":"user","content":"\\ud800"}]}', b"\xff"])
    found = httpx.post(f"{url}/v1/chat/completions", content=raw, timeout=60)
    return None if found.status_code == 400 else f"{raw!r}: {found.status_code}"


KINDS = {"whole": whole, "streamed": streamed, "cut": cut, "60,000 words": too_long, "rubbish": rubbish}

if __name__ == "__main__":
    main()
