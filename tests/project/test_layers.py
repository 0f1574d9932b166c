"""Imports point one way: a file imports what stands below it, local imports counted."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "gatv2"

# From the top down. A folder is one room; rooms of one line know nothing of one another.
ORDER = (
    ("__main__",),
    ("gatv2",),  # whose names come lazily, and which nothing but the report asks for its version
    ("model", "pyg"),
    ("convert", "dictionary_lookup", "inference", "precompile", "ranking"),
    ("control", "layer"),
    ("base", "distributed"),
    ("functional",),
    ("dispatch",),
    ("jax", "locality"),
    ("dense", "sparse"),
    ("operator", "sparse_features"),
    ("graph",),
    ("numba", "random", "tensor_file", "testing", "triton"),
    (
        "checks",
        "optional",
        "options",
        "philox",
        "precision",
        "projection",
        "scores",
        "torch_internals",
    ),
)
LINE = {room: line for line, rooms in enumerate(ORDER) for room in rooms}
MOST_FLOORS = 11

Imports = Mapping[str, set[str]]
"""The files of ours that each file imports."""


def sources() -> dict[str, str]:
    """The text of each file of the package, by its module's name."""
    texts = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        texts[".".join(parts).removesuffix(".__init__")] = path.read_text()
    return texts


def imports_of(texts: Mapping[str, str]) -> Imports:
    return {file: set(_imported([ast.parse(text)], texts)) for file, text in texts.items()}


def _imported(nodes: Iterable[ast.AST], files: Iterable[str]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports say the whole name"
            assert not node.level, "imports say the whole name"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found = {name if name in files else node.module for name in names}
            yield from found.intersection(files)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from _imported(node.orelse, files)
        else:
            yield from _imported(ast.iter_child_nodes(node), files)


def room_of(file: str) -> str:
    return file.split(".")[1] if "." in file else file


def wrong_imports(imports: Imports) -> list[str]:
    """Imports of what does not stand below, and files without a place in the order."""
    pairs = [(file, other) for file, others in imports.items() for other in others]
    wrong = [f"{file} has no place" for file in imports if room_of(file) not in LINE]
    wrong += [
        f"{file} imports {other}"
        for file, other in pairs
        if (a := room_of(file)) != (b := room_of(other)) and LINE.get(a, 0) >= LINE.get(b, 0)
    ]
    return sorted(wrong)


def floors(imports: Imports) -> int:
    """How many rooms stand on one another, each of which imports the next."""

    @cache
    def height(room: str) -> int:
        below = {room_of(x) for file in imports if room_of(file) == room for x in imports[file]}
        return 1 + max((height(other) for other in below - {room}), default=0)

    return max(height(room_of(file)) for file in imports)


def check(imports: Imports) -> None:
    assert wrong_imports(imports) == []
    list(TopologicalSorter(imports).static_order())  # an error if there is a circle
    assert floors(imports) <= MOST_FLOORS


def test_imports_point_down() -> None:
    check(imports_of(sources()))


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("gatv2.functional", "from gatv2.layer import x", AssertionError),
        ("gatv2.functional", "def f():\n    import gatv2.layer", AssertionError),
        ("gatv2.functional", "if True:\n    from gatv2 import layer", AssertionError),
        ("gatv2.dense.reference", "from gatv2.sparse import reference", AssertionError),
        ("gatv2.jax.layer", "from gatv2.layer import x", AssertionError),
        ("gatv2.attic", "", AssertionError),
        ("gatv2.layer", "from . import model", AssertionError),
        # no arrow up between rooms, and yet a circle
        ("gatv2.graph.graph", "def f():\n    from gatv2.graph.self_loops import x", CycleError),
        ("gatv2.graph.graph", "from gatv2.graph import Graph", CycleError),
    ],
)
def test_what_points_elsewhere_is_noticed(file: str, text: str, error: type[Exception]) -> None:
    below = {
        "gatv2.graph": "from gatv2.graph.graph import Graph",
        "gatv2.graph.graph": "",
        "gatv2.graph.self_loops": "from gatv2.graph.graph import x",
        "gatv2.layer": "if TYPE_CHECKING:\n    from gatv2.model import x",
        "gatv2.model": "from gatv2.layer import x",
        "gatv2.sparse.reference": "from gatv2.graph import Graph",
    }
    check(imports_of(below))
    with pytest.raises(error):
        check(imports_of({**below, file: text}))


def test_floors_are_counted() -> None:
    chain = [rooms[0] for rooms in ORDER]
    imports = {f"gatv2.{room}.file": {f"gatv2.{below}.file"} for room, below in pairwise(chain)}
    imports[f"gatv2.{chain[-1]}.file"] = set()
    assert floors(imports) == len(ORDER) > MOST_FLOORS
    with pytest.raises(AssertionError):
        check(imports)
