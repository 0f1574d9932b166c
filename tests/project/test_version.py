"""The version is written once, in `gatv2/__init__.py`; what can't read it there says the same."""

import re
import tomllib
from pathlib import Path

import gatv2

ROOT = Path(__file__).parents[2]


def cited_version(text: str) -> str:
    """The version that a citation file names."""
    (version,) = re.findall(r"^version: (\S+)$", text, re.MULTILINE)
    return str(version)


def test_the_package_is_built_with_it() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert metadata["project"]["dynamic"] == ["version"]
    assert metadata["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "gatv2.__version__"}


def test_it_is_cited() -> None:
    assert cited_version((ROOT / "CITATION.cff").read_text()) == gatv2.__version__
    assert cited_version("cff-version: 1.2.0\nversion: 0.0.1\n") == "0.0.1" != gatv2.__version__


def test_the_changelog_has_it() -> None:
    assert f"\n## [{gatv2.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
