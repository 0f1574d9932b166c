"""The source distribution holds all that its own tests need, and the wheel nothing but the package."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", ".github", "benchmarks", "docs", "examples", "gatv2", "tests")
NOT_OURS = {".git", ".DS_Store"}  # in a work tree of git, `.git` is a file
FILES = sorted(path.name for path in ROOT.iterdir() if path.is_file() and path.name not in NOT_OURS)
MADE = ("_figures", "gallery")  # by the documentation
IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc", *MADE)
BUILD = """
import sys
from setuptools import build_meta
folder = sys.argv[1]  # which a build overwrites
build_meta.build_sdist(folder)
build_meta.build_wheel(folder)
"""


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Names of the files in the source distribution and in the wheel."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=IGNORED)
    for file in FILES:
        shutil.copy(ROOT / file, source)
    command = [sys.executable, "-c", BUILD, str(built)]
    result = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (archive,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    return names, set(zipfile.ZipFile(wheel).namelist())


def files_of(*folders: str) -> set[str]:
    """The files in folders of the repository."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not {"__pycache__", *MADE} & {*path.parts}
    }


def strangers(names: Iterable[str]) -> list[str]:
    """What is in a wheel and belongs neither to the package nor to its metadata."""
    return [name for name in names if not name.startswith(("gatv2/", "gatv2_layers-"))]


def test_the_source_distribution_is_whole(distributions: tuple[set[str], set[str]]) -> None:
    source, _ = distributions
    assert files_of(*FOLDERS) - source == set()
    assert {*FILES} - source == set()
    assert "tests/conftest.py" in files_of(*FOLDERS)


def test_the_wheel_is_the_package(distributions: tuple[set[str], set[str]]) -> None:
    _, wheel = distributions
    assert strangers(wheel) == []
    assert files_of("gatv2") - wheel == set()
    assert strangers(["gatv2/layer.py", "tests/conftest.py"]) == ["tests/conftest.py"]
