"""The README says what the code says."""

import re
from pathlib import Path

import pytest

import evaluate
import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_the_lines_of_code_beside_the_formulas_stand_in_the_code():
    table = README[README.index("| step | poster | code |") : README.index("W_t,0, the *anchor*")]
    quoted = re.findall(r"`([^`]+)`", table)
    code = (ROOT / "bcp.py").read_text() + (ROOT / "train.py").read_text()
    assert len(quoted) == 10
    assert [line for line in quoted if line not in code] == []


def test_every_flag_that_it_names_is_one_and_every_training_command_parses():
    flags = {option for action in train.get_parser()._actions for option in action.option_strings}
    evaluating = {option for action in evaluate.get_parser()._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z][a-z-]*|--C)", README))
    assert len(named) > 20 and named <= flags | evaluating
    commands = re.findall(r"^    python train\.py (.*?)(?:#.*)?$", README, flags=re.MULTILINE)
    assert commands
    for command in commands:
        train.get_args(command.split())


@pytest.mark.parametrize("grid", ["regimes", "anchor", "chaos"])
def test_tables_of_results_are_those_that_the_commands_made(grid):
    assert (ROOT / "results" / f"{grid}.md").read_text() in README


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_files_that_it_links_to_exist(link):
    assert link.startswith("https://") or (ROOT / link).exists()
