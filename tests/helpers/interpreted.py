"""A plugin of pytest (`-p interpreted`) for a process with TRITON_INTERPRET=1: small parts, large tiles.

What an interpreted kernel computes does not depend on its tile, but how long it takes does. It rounds
as a compiled one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl

from gatv2.triton import launch, passes
from gatv2.triton.shape import Tile


@pytest.fixture(autouse=True)
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts and tiles that show all and take little time: for many edges, all are larger."""
    split, rows, edges = 4, Tile(rows=64, edges=4, warps=1), Tile(rows=64, edges=1, warps=1)
    if request.node.get_closest_marker("many_edges"):
        split, rows, edges = 256, Tile(512, 8, 1), Tile(2048, 1, 1)
    monkeypatch.setattr(launch, "SPLIT", split)
    monkeypatch.setattr(launch, "CHUNKS", 2)
    monkeypatch.setattr(launch, "row_tile", lambda *_: rows)
    monkeypatch.setattr(passes, "edge_tile", lambda *_: edges)


@pytest.fixture(autouse=True)
def _silent_infinities() -> Iterator[None]:
    """NumPy warns where a GPU computes on."""
    with np.errstate(invalid="ignore", over="ignore"):
        yield


def _round_to_bfloat16() -> None:
    """Have a number that becomes bfloat16 rounded, as GPUs do; the interpreter cuts it off."""
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        if (given, wanted) != (tl.float32, tl.bfloat16):
            return convert(values, given, wanted, rounding)
        rounded = torch.from_numpy(values.copy()).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16)

    interpreter._convert_float = converted


def _patch_once() -> None:
    """Have `triton.language` prepared once a launch, and not for each of our helpers that it calls."""
    from triton.runtime.interpreter import InterpretedFunction

    prepare_and_call = InterpretedFunction.__call__

    def call(self: InterpretedFunction, *arguments: object, **options: object) -> object:
        if self.fn.__module__.startswith("gatv2."):
            return self.rewrite()(*arguments, **options)
        return prepare_and_call(self, *arguments, **options)

    InterpretedFunction.__call__ = call


_round_to_bfloat16()
_patch_once()
