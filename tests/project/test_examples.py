"""The examples run: each once, with sizes as small as they allow."""

import json
from pathlib import Path

from example_runs import run_example

HELPERS = Path(__file__).parents[1] / "helpers"


def test_demo(tmp_path: Path) -> None:
    output = run_example(
        "demo.py",
        *("--output", str(tmp_path)),
        *("--k", "4", "--lookup-epochs", "1", "--digits-epochs", "1"),
    )
    assert "the same prediction for 1797 of 1797 images" in output
    for picture in ("dictionary_lookup.png", "digits.png"):
        assert str(tmp_path / picture) in output
        assert (tmp_path / picture).stat().st_size > 10_000


NAMES = (
    "lookup.py",
    "digits.py",
    "demo.py",
    "planetoid.py",
    "neighbor_sampling.py",
    "learned_graph.py",
    "jax_graphs.py",
    "distributed_full_graph.py",
)


def test_help() -> None:
    told = json.loads(run_example(str(HELPERS / "help_of_examples.py"), *NAMES, path=[HELPERS]))
    assert tuple(told) == NAMES
    for name, text in told.items():
        assert text.startswith(f"usage: {name} "), text
        assert "--seed" in text
