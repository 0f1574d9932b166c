"""`python -m gatv2` reports every kernel, and notices one that disagrees."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runnable import RUNNABLE

from gatv2 import __main__ as report
from gatv2 import dispatch
from gatv2.dispatch import KERNELS, Kernel
from gatv2.numba import compile as numba_compile
from gatv2.numba.tiles import tiles_of
from gatv2.precompile import compile_kernels, shapes_to_compile

PLAIN = next(kernel for kernel in KERNELS if (kernel.name, kernel.backend) == ("torch", "dense"))


def test_every_kernel_is_reported_and_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([]) == 0
    printed = capsys.readouterr().out
    for kernel in RUNNABLE:
        lines = re.findall(rf"^{kernel.backend} {kernel.name} +float.*$", printed, re.MULTILINE)
        assert len(lines) == 2
        assert all(line.endswith("  agrees") for line in lines)
    assert f"torch {torch.__version__}" in printed


def test_it_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "gatv2"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("gatv2 ")


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_a_wrong_kernel_is_noticed(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = PLAIN

    def attention(*inputs: Any, **options: Any) -> Any:
        out, *others = right.attention(*inputs, **options)
        return out * factor, *others

    wrong = replace(right, name="wrong", attention=attention)
    monkeypatch.setattr(dispatch, "KERNELS", (wrong, right))
    assert report.main([]) == 1
    assert capsys.readouterr().out.count("DISAGREES") == 2


def test_what_is_not_available_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Kernel("missing", "dense", PLAIN.attention, lambda *_: ["no such device"])
    monkeypatch.setattr(dispatch, "KERNELS", (missing, PLAIN))
    assert report.main([]) == 0
    assert "not available: no such device" in capsys.readouterr().out


def test_a_jax_that_cannot_be_imported_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr(report, "find_spec", lambda name: name)
    monkeypatch.setattr(dispatch, "KERNELS", (PLAIN,))
    assert report.main([]) == 0
    assert re.search(r"^JAX +float32 +not available: ", capsys.readouterr().out, re.MULTILINE)


def test_an_option_that_there_is_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["--nonsense"])
    told = capsys.readouterr()
    assert not told.out
    assert "--nonsense" in told.err


def test_the_environment_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SECRET", "of nobody's business")
    report.print_environment()
    printed = capsys.readouterr().out
    assert "OMP_NUM_THREADS=1" in printed
    assert "SECRET" not in printed
    assert str(Path(report.__file__).parent) in printed


def test_kernels_are_compiled_ahead(tmp_path: Path) -> None:
    """What has been compiled is there for the next process, which compiles nothing."""
    command = [sys.executable, "-m", "gatv2", "compile", "2x4", "--backend", "sparse"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for is_first in (True, False):
        result = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=True
        )
        assert result.stdout == "sparse, 2 heads of 4, float32\n"
        assert ("compiling kernels" in result.stderr) is is_first


def test_kernels_that_are_not_kept_are_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(numba_compile, "not_kept", ["the disk is full"])
    assert report.main(["compile", "2x4", "--backend", "sparse"]) == 1
    told = capsys.readouterr()
    assert not told.out
    assert "compiled kernels are not kept: the disk is full" in told.err


@pytest.mark.parametrize("shape", ["8", "8x", "0x4", "8x-1", "axb"])
def test_a_shape_that_is_none_is_refused(shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        report.main(["compile", shape])
    assert "must be heads x features, such as 8x8" in capsys.readouterr().err


@pytest.mark.parametrize("backends", ["sparse", ["sparse", "fast"]])
def test_a_backend_that_there_is_not_is_refused(backends: Any) -> None:
    with pytest.raises(ValueError, match="`backends` must be a list of some of"):
        next(compile_kernels(backends=backends))


@pytest.mark.parametrize("shape", [(0, 1), (1, -1)])
def test_sizes_of_no_kernel_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="must be positive; got"):
        next(compile_kernels([shape]))


def test_each_kind_of_shape_is_compiled() -> None:
    def kind(shape: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        tiles = tiles_of(*shape, dtype == torch.float64)
        return tiles.group, tiles.lanes

    for dtype in (torch.float32, torch.float64):
        kinds = {kind(shape, dtype) for shape in shapes_to_compile(dtype)}
        assert len(kinds) == len(shapes_to_compile(dtype))
        for shape in ((1, 1), (3, 7), (8, 8), (4, 32), (1, 256), (12, 64), (64, 2), (16, 16)):
            assert kind(shape, dtype) in kinds
