"""The parts of a compiled block that run as they are: a graph ends before such a function and goes on behind it."""

from __future__ import annotations

from torch._compile import _disable_dynamo  # torch.compiler.disable imports the compiler: a second of every start

uncompiled = _disable_dynamo
