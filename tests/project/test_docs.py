"""Every code block in README and docs runs, and says what happens; commands name what exists."""

import doctest
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.example import SybilFailure
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser

import gatv2
import gatv2.jax

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if "_build" not in p.parts)]
)
READMES = sorted(ROOT.glob("gatv2/*/README.md"))
MARKUP = {"", "text", "eval-rst", "bibtex"}
FENCE = re.compile(r"^```[ ]*\{?([\w-]*)\}?.*?^```$", re.DOTALL | re.MULTILINE)


def check_commands(example: Example) -> None:
    """A shell block: its make targets, extras, scripts and modules exist."""
    makefile = (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in filter(
        None, (line.partition("#")[0].strip() for line in example.parsed.splitlines())
    ):
        if match := re.fullmatch(r"make ([\w-]+)", line):
            exists = re.search(rf"^{match[1]}:", makefile, re.MULTILINE) is not None
        elif match := re.fullmatch(r'pip install "?(\.|[\w-]+)(?:\[([\w,]+)\])?"?', line):
            extras = set(match[2].split(",") if match[2] else ())
            exists = match[1] in (".", project["name"])
            exists &= extras <= set(project["optional-dependencies"])
        elif match := re.fullmatch(r"(?:python|torchrun(?: --\S+ \d+)*) (\S+\.py)(?: .*)?", line):
            exists = (ROOT / match[1]).is_file()
        else:
            exists = line == "python -m gatv2" and (ROOT / "gatv2/__main__.py").is_file()
        if not exists:
            raise AssertionError(f"{example.path}, line {example.line}: there is no {line!r}")


DOCUMENT = Sybil(
    parsers=[
        PythonCodeBlockParser(doctest_optionflags=doctest.ELLIPSIS),
        CodeBlockParser(language="sh", evaluator=check_commands),
    ],
    name="docs",
)


def run_blocks(page: Path) -> int:
    """Run the blocks of a page in order, in one namespace; returns how many there are."""
    examples = list(DOCUMENT.parse(page).examples())
    for example in examples:
        example.evaluate()
    return len(examples)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks(page: Path) -> None:
    languages = [match[1] for match in FENCE.finditer(page.read_text())]
    unknown = set(languages) - {"python", "sh", "toctree", "include"} - MARKUP
    assert not unknown, f"blocks in {unknown} are not run"
    run_blocks(page)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        ("```python\n>>> 1 + 1\n3\n\n```\n", SybilFailure),
        ("```python\nimport gatv2.nothing\n```\n", ModuleNotFoundError),
        ("```sh\nmake nothing\n```\n", AssertionError),
        ('```sh\npip install "gatv2-layers[nothing]"\n```\n', AssertionError),
        ('```sh\npip install ".[scipy,nothing]"\n```\n', AssertionError),
        ("```sh\npython examples/nothing.py\n```\n", AssertionError),
        ("```sh\ntorchrun --nproc-per-node 2 examples/nothing.py\n```\n", AssertionError),
    ],
)
def test_a_wrong_block_is_noticed(block: str, error: type[Exception], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{block}")
    with pytest.raises(error):
        run_blocks(page)


def missing_files(text: str, *folders: Path) -> list[str]:
    """Files that a text names, from the root, from gatv2/ or from `folders`, and that do not exist."""
    names = re.findall(r"`([\w./]+\.(?:py|md|csv))`", text)
    folders = (ROOT, ROOT / "gatv2", *folders)
    return [name for name in names if not any((folder / name).exists() for folder in folders)]


def test_files_that_contributors_are_told_of_exist() -> None:
    for page in [*PAGES, *READMES]:
        assert missing_files(page.read_text(), page.parent) == [], page
    assert missing_files("see `numba_nothing.py` and `layer.py`") == ["numba_nothing.py"]


def untold(text: str, folder: Path) -> list[str]:
    """Files and packages of a folder that a text about it does not name."""
    files = [path.name for path in folder.glob("*.py") if path.name != "__init__.py"]
    packages = [f"{path.parent.name}/" for path in folder.glob("*/__init__.py")]
    return sorted(name for name in files + packages if f"`{name}`" not in text)


def test_contributors_are_told_of_every_file() -> None:
    assert untold((ROOT / "CONTRIBUTING.md").read_text(), ROOT / "gatv2") == []
    for page in READMES:
        assert untold(page.read_text(), page.parent) == [], page
    assert len(READMES) == 2
    told = READMES[0].read_text().replace("`team.py`", "`dream.py`")
    assert untold(told, READMES[0].parent) == ["team.py"]


def missing_tests(text: str) -> list[str]:
    """Tests, `file::test`, that a text names and that do not exist; features that have no test."""
    missing = []
    for file, name in re.findall(r"`(test_\w+)::(test_\w+)`", text):
        paths = list(ROOT.glob(f"tests/*/{file}.py"))
        if not any(f"def {name}(" in path.read_text() for path in paths):
            missing.append(f"{file}::{name}")
    claimed = re.findall(r"^\| ([^|]+) \| Y", text, re.MULTILINE)
    shown = re.findall(r"^\| ([^|]+) \| `test_\w+::", text, re.MULTILINE)
    return missing + [feature for feature in claimed if feature not in shown]


def test_features_are_backed_by_tests() -> None:
    text = (ROOT / "docs/features.md").read_text()
    assert missing_tests(text) == []
    assert text.count("::test_") > 40
    wrong = "| flies | Y | N |\n| swims | Y⁹ | N |\n| flies | `test_docs::test_it_flies` |"
    assert missing_tests(wrong) == ["test_docs::test_it_flies", "swims"]


DIRECTIVE = re.compile(
    r"^\.\. (auto\w+|py:(?!current)\w+):: ([\w.]+)(?:\(.*\))?\n(?:   :members: *(.*)\n)?",
    re.MULTILINE,
)


def unimportable(page: str) -> list[str]:
    """Names that a page of the reference documents, and that no user can import from there."""
    names = []
    for _, name, members in DIRECTIVE.findall(page):
        names += [name, *(f"{name}.{member}" for member in members.split(", ") if member)]
    return [name for name in names if not is_importable(name)]


def is_importable(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


def test_public_names_are_in_the_reference() -> None:
    reference = "".join(page.read_text() for page in ROOT.glob("docs/api/*.md"))
    documented = {name for _, name, _ in DIRECTIVE.findall(reference)}
    assert {f"gatv2.{name}" for name in gatv2.__all__} <= documented
    in_tables = set(re.findall(r"^   ([\w.]+)$", reference, re.MULTILINE))
    assert {*gatv2.__all__, *gatv2.jax.__all__} - {"Params"} <= {
        name.removeprefix("gatv2.") for name in in_tables
    }


def test_documented_names_are_importable() -> None:
    pages = [page.read_text() for page in ROOT.glob("docs/api/*.md")]
    assert [unimportable(page) for page in pages] == [[]] * len(pages)
    assert sum(len(DIRECTIVE.findall(page)) for page in pages) > 30
    wrong = (
        ".. autoclass:: gatv2.Grapf\n\n.. automodule:: gatv2.graph\n   :members: Graph, KeyOdor\n"
    )
    assert unimportable(wrong) == ["gatv2.Grapf", "gatv2.graph.KeyOdor"]
