"""What an installation brings: the three ways to install ask for the same packages; what public CI runs."""

import ast
import os
import re
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
OURS = {file.stem for file in ROOT.glob("*.py")} | {"tools", "experiments"}


def pinned(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "file, wanted",
    [
        ("requirements.txt", PROJECT["dependencies"]),
        ("requirements-dev.txt", [*EXTRAS["dev"], *EXTRAS["plot"], *EXTRAS["export"], *EXTRAS["download"]]),
    ],
)
def test_the_pinned_versions_are_those_that_the_project_allows(file, wanted):
    allowed = {some.name: some for some in map(Requirement, wanted) if some.name != PROJECT["name"]}
    versions = pinned(file)
    assert versions and set(versions) <= set(allowed)
    assert [name for name, version in versions.items() if version not in allowed[name].specifier] == []


def test_what_the_programs_import_at_their_start_is_among_the_dependencies():
    needed = set()
    for file in ROOT.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            needed |= {name.split(".")[0] for name in names}
    needed -= OURS | set(sys.stdlib_module_names)
    assert needed and needed <= {Requirement(some).name for some in PROJECT["dependencies"]}
    assert PROJECT["requires-python"] == ">=3.11"


def test_public_continuous_integration_runs_what_ours_runs():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    (command,) = re.findall(r"^ +- run: (.+)$", workflow, re.MULTILINE)
    assert os.access(ROOT / command, os.X_OK)


def test_make_shows_what_pip_does():
    lines = [line for line in (ROOT / "Makefile").read_text().splitlines() if "pip install" in line and "-r " in line]
    assert len(lines) == 2 and not any("--quiet" in line for line in lines)
