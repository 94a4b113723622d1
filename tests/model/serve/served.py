"""A small chat model on a disk, and a server of it in a thread: real sockets, real HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from launchyard.model.loaded import LoadedModel
from launchyard.model.serve.http.app import Access
from launchyard.model.serve.http.measures import Measures
from launchyard.model.serve.http.run import event_loop, listen
from launchyard.model.serve.http.server import Server
from launchyard.model.serve.http.service import ServerLimits, Service
from launchyard.model.weights.hf_export import save_hf
from launchyard.model.weights.load import load
from tests.support.tiny_models import llama, random_model, weights_of

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 320


def chat_model(folder: Path, *, seed: int = 0, context: int = 4096, template: str | None = TEMPLATE) -> Path:
    """An HF folder of a random Llama with a tokenizer of bytes and words, and a chat template."""
    config = llama(vocab_size=VOCABULARY, padded_vocab_size=VOCABULARY, max_seq_len=context)
    save_hf(weights_of(random_model(config, seed=seed)), config, str(folder))
    _tokenizer(folder / "tokenizer.json")
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = ["the user and the assistant, the end of the tale: hello there", "äöü é ñ 你好 😀 naïve"]
    tokenizer.train_from_iterator(text * 5, trainer)
    tokenizer.save(str(path))


@dataclass
class Served:
    url: str
    server: Server
    model: LoadedModel

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)  # type: ignore[arg-type]

    def metric(self, name: str, **labels: str) -> float:
        """Of our own series."""
        page = httpx.get(self.url + "/metrics").text
        found = [line for line in page.splitlines() if line.startswith(f"launchyard_serve_{name}{{")]
        own = [line for line in found if all(f'{key}="{value}"' in line for key, value in labels.items())]
        return sum(float(line.rpartition(" ")[2]) for line in own)

    def wait_until_idle(self, seconds: float = 10) -> None:
        end = time.monotonic() + seconds
        while self.metric("num_requests_running") or self.metric("num_requests_waiting"):
            assert time.monotonic() < end, "the server never became idle"
            time.sleep(0.01)


@contextmanager
def served(
    folder: Path, *, name: str = "tiny", limits: ServerLimits | None = None, access: Access | None = None
) -> Iterator[Served]:
    model = load(str(folder))
    limits = limits or ServerLimits(n_slots=4, context_length=2048)
    server = Server(Service(model, limits, Measures(name)), name, "v1")
    listener = listen("127.0.0.1", 0)
    loop = event_loop(server, access=access or Access(), grace_seconds=1)
    thread = threading.Thread(target=lambda: asyncio.run(loop.serve(sockets=[listener])), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield Served(url, server, model)
    finally:
        loop.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive(), "the server did not stop"
