"""The version is the same in the package's metadata, the changelog and the citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

import bpfree

ROOT = Path(__file__).parents[2]

#: A section of the changelog: its version, and the date of its release or "unreleased".
HEADING = re.compile(r"^## (?P<version>\d+\.\d+\.\d+) \((?P<date>unreleased|\d{4}-\d\d-\d\d)\)$")


def sections() -> list[tuple[str, str]]:
    """(version, date) of each section of the changelog, the newest first."""
    lines = [line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    found = [HEADING.match(line) for line in lines]
    wrong = [line for line, match in zip(lines, found, strict=True) if match is None]
    assert not wrong, f"expected `## 1.2.3 (unreleased)` or `## 1.2.3 (2030-12-31)`: {wrong}"
    return [(match["version"], match["date"]) for match in found if match is not None]


def citation() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "CITATION.cff")
    return loaded


def test_package_changelog_and_citation_have_one_version() -> None:
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    versions = {
        "bpfree": bpfree.__version__,
        "changelog": sections()[0][0],
        "citation": str(citation()["version"]),
    }
    assert versions == dict.fromkeys(versions, packaged)


def test_versions_of_the_changelog_descend_and_the_newest_alone_is_unreleased() -> None:
    numbers = [tuple(map(int, version.split("."))) for version, _ in sections()]
    assert numbers == sorted(set(numbers), reverse=True)
    assert all(date != "unreleased" for _, date in sections()[1:])


def test_the_citation_has_the_date_of_the_release() -> None:
    assert str(citation().get("date-released", "unreleased")) == sections()[0][1]
