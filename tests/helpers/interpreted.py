"""A plugin of pytest (`-p interpreted`) for a process with TRITON_INTERPRET=1: small parts, large tiles.

What an interpreted kernel computes does not depend on its tile, but how long it takes does.
"""

from collections.abc import Iterator

import numpy as np
import pytest

from gatv2.triton import launch
from gatv2.triton.shape import Tile


@pytest.fixture(autouse=True, scope="session")
def _small_parts() -> None:
    launch.SPLIT, launch.CHUNKS = 4, 2
    launch.TILE = Tile(rows=16, edges=16, warps=1)


@pytest.fixture(autouse=True)
def _silent_infinities() -> Iterator[None]:
    """NumPy warns where a GPU computes on."""
    with np.errstate(invalid="ignore", over="ignore"):
        yield


def _patch_once() -> None:
    """Have `triton.language` prepared once a launch, and not for each of our helpers that it calls."""
    from triton.runtime.interpreter import InterpretedFunction

    prepare_and_call = InterpretedFunction.__call__

    def call(self: InterpretedFunction, *arguments: object, **options: object) -> object:
        if self.fn.__module__.startswith("gatv2."):
            return self.rewrite()(*arguments, **options)
        return prepare_and_call(self, *arguments, **options)

    InterpretedFunction.__call__ = call


_patch_once()
