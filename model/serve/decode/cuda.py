"""CUDA graphs by torch. Untried: no GPU was at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch


class CudaGraphRecorder:
    """All of its graphs are recorded on one stream, so that they share the memory of one pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, run: Callable[[], None]) -> None:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run()
        current.wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may read weights meanwhile. The stream of the caller is entered once more since
        # torch.cuda.graph does not leave its own one where the recording fails.
        with (
            torch.cuda.device(self._device),
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            run()

        def play() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return play
