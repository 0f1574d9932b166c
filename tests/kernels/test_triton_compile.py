"""What the Triton kernels become on a GPU, shown by compiling them ahead of time, without one.

The interpreter shows what they compute. It cannot see how registers are laid out, which compilers decide
anew in each version: that shows in the code for the GPU, and in nothing else.
"""

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("triton")

from ahead_of_time import Case, Compiled, compiled

from gatv2.triton.support import too_wide

CAPABILITIES = (80, 90)
PASSES = ("forward", "query", "key")

# registers of a thread, at most, forward, over queries and over keys
LIMITS: dict[tuple[int, int], tuple[int, int, int]] = {
    (8, 8): (96, 96, 124),
    (4, 32): (80, 88, 87),
    (1, 64): (96, 96, 128),
    (1, 256): (161, 96, 140),
    (8, 7): (96, 96, 124),
}
PLAIN = {
    Case(name, *size): limit
    for size, limits in LIMITS.items()
    for name, limit in zip(PASSES, limits, strict=True)
}


def cases_8x8(limits: tuple[int, ...], **options: object) -> dict[Case, int]:
    return {
        Case(name, 8, 8, **options): limit  # type: ignore[arg-type]
        for name, limit in zip((*PASSES, "edge"), limits, strict=False)
    }


ALLOWED = {
    **PLAIN,
    **cases_8x8((128, 128, 168), dropout=True),
    **cases_8x8((165, 128, 158, 168), has_edge_features=True),
    **cases_8x8((104, 96, 127), mask_heads=8),
    **cases_8x8((104, 104, 168), bias_heads=1),
    **cases_8x8((124, 104, 168), bias_heads=8),
    **cases_8x8((104, 96, 127), dtype=torch.bfloat16),
    **cases_8x8((128, 104, 168), dtype=torch.float64),
    **cases_8x8((168, 168, 168, 168), dtype=torch.float64, has_edge_features=True, mask_heads=8),
    **cases_8x8((104, 96, 127), has_parts=True),
    **cases_8x8((128, 96, 168), is_dense=True, mask_heads=1),
    Case("query", 8, 8, has_d_alpha=True): 96,
    Case("key", 8, 8, has_d_alpha=True): 168,
    Case("join", 8, 8, has_parts=True): 64,
    Case("join_queries", 8, 8, has_parts=True): 64,
    Case("join_keys", 8, 8, has_parts=True): 64,
}
"""Registers of a thread, at most."""
SPILLED = {
    (80, Case("key", 8, 8, dropout=True)): 8,
    (80, Case("key", 8, 8, is_dense=True, mask_heads=1)): 8,
    (80, Case("query", 8, 8, dtype=torch.float64)): 8,
}
"""Bytes that the assembler spills, so that more programs run at once; none elsewhere."""


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled here is compiled, whatever an earlier run has left."""
    from triton import knobs

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knobs.cache, "dir", str(tmp_path_factory.mktemp("triton")))
        yield


def assert_fits(kernel: Compiled, limit: int, spilled: int = 0) -> None:
    """No value is spilled to memory, and enough programs run at once."""
    assert kernel.spilled <= spilled, f"{kernel.spilled} bytes are spilled"
    assert kernel.registers <= limit, f"{kernel.registers} registers, allowed {limit}"


def assert_loads_16_bytes(kernel: Compiled) -> None:
    """Rows of features are read in whole pieces, as each lane reads best."""
    assert kernel.times("LDG.E.128") > 0, "no load is of 16 bytes"


def assert_no_barrier(kernel: Compiled) -> None:
    """The lanes of a program never wait for one another."""
    assert kernel.times("BAR") == 0, f"{kernel.times('BAR')} barriers"


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", ALLOWED, ids=str)
def test_passes(case: Case, capability: int) -> None:
    kernel = compiled(case, capability)
    assert_fits(kernel, ALLOWED[case], SPILLED.get((capability, case), 0))
    assert_loads_16_bytes(kernel)
    if case in PLAIN and case.n_hidden <= 32 and case.name != "key":
        assert_no_barrier(kernel)


LONGEST = [
    Case("edge", *size, dtype=dtype, has_edge_features=True)
    for dtype, sizes in {
        torch.float32: [(8, 64), (1, 512)],
        torch.bfloat16: [(5, 33)],
        torch.float64: [(8, 32), (1, 256)],
    }.items()
    for size in sizes
]
SHARED = 99 << 10
"""Bytes of shared memory that a program can have on any GPU of these capabilities."""


@pytest.mark.parametrize("case", LONGEST, ids=str)
def test_the_longest_rows_with_edge_features_fit_into_shared_memory(case: Case) -> None:
    assert too_wide(torch.empty(1, case.n_heads, case.n_hidden, dtype=case.dtype)) == []
    assert compiled(case, 80).shared <= SHARED
    longer = case._replace(n_hidden=2 * case.n_hidden)
    (reason,) = too_wide(torch.empty(1, longer.n_heads, longer.n_hidden, dtype=case.dtype))
    assert "rounded up to a power of two" in reason
    assert compiled(longer, 80).shared > SHARED


def test_the_checks_see_what_is_wrong() -> None:
    """Too large a tile, rows that are not padded, and heads that two warps share."""
    with pytest.raises(AssertionError, match="bytes are spilled"):
        assert_fits(compiled(Case("query", 8, 8), 90, edges=64), 255)
    with pytest.raises(AssertionError, match="registers, allowed 96"):
        assert_fits(compiled(Case("forward", 8, 8), 90, edges=16), 96)
    with pytest.raises(AssertionError, match="no load is of 16 bytes"):
        assert_loads_16_bytes(compiled(Case("forward", 8, 7), 90, n_hidden=7))
    with pytest.raises(AssertionError, match="barriers"):
        assert_no_barrier(compiled(Case("forward", 1, 256), 90))
