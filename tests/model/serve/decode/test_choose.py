"""Graphs are taken where they can be, and else why not is said. There is no GPU here: a CPU is called one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from launchyard.model.config import ModelConfig
from launchyard.model.parallel.holding import LayersOverDevices
from launchyard.model.serve.decode import choose
from launchyard.model.serve.decode.choose import new_decoding
from launchyard.model.serve.decode.cuda import CudaGraphRecorder
from launchyard.model.serve.decode.eager import EagerDecoding
from launchyard.model.serve.engine import Engine
from launchyard.model.weights.load import build
from launchyard.model.zoo import config_from_hf
from tests.model.parallel.held import Held
from tests.support.architectures import ARCHITECTURES
from tests.support.tiny_models import llama, random_model


def test_a_cpu_has_none_and_says_nothing() -> None:
    model = random_model(llama())
    engine = Engine(model)
    assert isinstance(engine.decoding, EagerDecoding) and engine.decoding.words == ""
    with pytest.raises(ValueError, match="graphs is True, and there are none on cpu; leave it out"):
        Engine(model, graphs=True)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The words for a model on a GPU of this capability."""

    def words(config: ModelConfig, *, capability: int = 9, dtype: torch.dtype = torch.bfloat16, **options: Any) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
        monkeypatch.setattr(choose, "_GPU", "cpu")
        monkeypatch.setattr(choose, "CudaGraphRecorder", lambda device: None)
        return new_decoding(random_model(config).to(dtype), n_slots=2, length=20, **options).words

    return words


def test_a_gpu_has_them(gpu: Callable[..., str]) -> None:
    assert gpu(llama()) == gpu(llama(), graphs=True) == "by CUDA graphs"
    assert gpu(llama(), graphs=False) == "without CUDA graphs"


def test_experts_have_them_where_their_product_asks_nothing(gpu: Callable[..., str]) -> None:
    experts = config_from_hf(ARCHITECTURES["mixtral"])
    why = "without CUDA graphs: none of experts but in bf16 on a GPU of compute capability 9"
    assert gpu(experts) == "by CUDA graphs"
    assert gpu(experts, capability=8) == gpu(experts, dtype=torch.float32) == why
    with pytest.raises(ValueError, match="there are none of experts but in bf16"):
        gpu(experts, capability=8, graphs=True)


def test_layers_on_several_devices_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    config = llama()
    devices = [torch.device("cpu"), torch.device("meta")]
    model = build(config, Held(random_model(config)), device=LayersOverDevices(config, devices), dtype=None)
    monkeypatch.setattr(choose, "_GPU", "cpu")
    words = new_decoding(model, n_slots=2, length=20).words
    assert words == "without CUDA graphs: none where a model lies on several devices"


# -- torch.cuda, of which only the order of its calls can be seen here -------------------------------------------------
class Said:
    """Stands for streams, graphs and contexts: each call goes into the list."""

    def __init__(self, said: list[str], name: str) -> None:
        self.said = said
        self.name = name

    def wait_stream(self, other: Said) -> None:
        self.said.append(f"{self.name} waits for {other.name}")

    def replay(self) -> None:
        self.said.append("play")

    def __enter__(self) -> None:
        self.said.append(f"enter {self.name}")

    def __exit__(self, *error: object) -> None:
        self.said.append(f"leave {self.name}")


def test_the_stream_of_the_caller_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def graph(graph: Said, *, pool: str, stream: Said, capture_error_mode: str) -> Said:
        return Said(said, f"{graph.name} on {stream.name} in {pool}, {capture_error_mode}")

    fakes = {
        "Stream": lambda device: Said(said, "side"),
        "current_stream": lambda device: Said(said, "own"),
        "stream": lambda stream: Said(said, stream.name),
        "device": lambda device: Said(said, str(device)),
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: Said(said, "graph"),
        "graph": graph,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    recorder = CudaGraphRecorder(torch.device("cuda:1"))
    recorder.warm(lambda: said.append("run"))
    assert said == ["side waits for own", "enter side", "run", "leave side", "own waits for side"]
    said.clear()
    play = recorder.record(lambda: said.append("run"))
    recording = "graph on side in pool, thread_local"
    assert said[:4] == ["enter cuda:1", "enter own", f"enter {recording}", "run"]
    assert said[4:] == [f"leave {recording}", "leave own", "leave cuda:1"]
    said.clear()
    play()
    assert said == ["enter cuda:1", "play", "leave cuda:1"]
