"""The README and docs/ say what the code says, and their commands run."""

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {file: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(DOCS.values())
COMMANDS = re.findall(r"^    (\S.*)$", README, flags=re.MULTILINE)
PROGRAMS = re.findall(r"^    ((?:python|torchrun) .*)$", TEXT, flags=re.MULTILINE)
# What needs a GPU, a network, other data or many minutes is parsed and not run.
LONG = ("babylm-", "117m", "../shared", "tools.compare", "tools.bench", "experiments.", "tests/chaos", "tests.official",
        "tools.calibrate", "torchrun", "make test", "e5-gpu.sh")  # fmt: skip


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def is_long(command: str) -> bool:
    return any(part in command for part in LONG)


def test_the_lines_of_code_beside_the_formulas_stand_in_the_code():
    table = README[README.index("| for each batch X_t") : README.index("The pull-back is the gradient")]
    quoted = re.findall(r"\| `([^`]+)` \|$", table, flags=re.MULTILINE)
    code = (ROOT / "bcp.py").read_text() + (ROOT / "train.py").read_text()
    assert len(quoted) == 10
    assert [line for line in quoted if line not in code] == []
    assert " and self.alpha < self.threshold`: a batch is left" in README and "self.alpha < self.threshold" in code


def test_every_flag_that_is_named_is_one():
    flags = {option for action in train.get_parser()._actions for option in action.option_strings}
    evaluating = {option for action in evaluate.get_parser()._actions for option in action.option_strings}
    named = set(re.findall(r"`(--[a-z][a-z-]*|--C)", TEXT))
    assert len(named) > 20 and named - {"--quick"} <= flags | evaluating


@pytest.mark.parametrize(
    "table", ["e1-lr", "e1", "e2", "e3", "e3-mix", "e3-best", "e3s", "e3s-random", "e4", "e5", "e5-tasks", "chaos"]
)
def test_tables_of_results_are_those_that_the_commands_made(table):
    for part in (ROOT / "results" / f"{table}.md").read_text().split("\n\n"):
        assert part.strip() in TEXT


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_files_that_are_linked_to_exist(file):
    for link in set(re.findall(r"\]\(([^)#]+)[^)]*\)", DOCS[file])):
        assert link.startswith("https://") or (file.parent / link).exists(), link
    headings = {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-")
                for line in re.findall(r"^#+ (.*)$", DOCS[file], flags=re.MULTILINE)}  # fmt: skip
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCS[file])) <= headings


class Parsed(Exception):
    """The arguments were understood, or the parser was seen."""


@pytest.fixture
def parser_of(monkeypatch):
    """A function that starts a program up to where its arguments are parsed, and returns the parser."""

    def start(program: str, arguments: list[str]) -> argparse.ArgumentParser:
        found = []
        parse = argparse.ArgumentParser.parse_args

        def parse_only(self, *args, **more):
            parse(self, *args, **more)
            found.append(self)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        monkeypatch.chdir(ROOT)
        with pytest.raises(Parsed):
            if program.endswith(".py"):
                runpy.run_path(program, run_name="__main__")
            else:
                runpy.run_module(program, run_name="__main__")
        return found[0]

    return start


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_command_is_understood_by_its_program(command, parser_of):
    words = [word for word in words_of(command) if not word.startswith("--resume")]
    if words[1] == "-m":
        parser_of(words[2], words[3:])
    else:
        program = next(i for i, word in enumerate(words) if word.endswith(".py"))
        parser_of(words[program], words[program + 1 :])


ARGUMENTS = {"evaluate.py": "run", "sample.py": "run", "tools.plot": "run", "tools.compare": "grid.toml",
             "tools.export": "run folder", "tests.official": "run folder", "experiments.e5": "prepare ."}  # fmt: skip
OTHERS = ["train.py", "data.py", "toy.py", "model.py", "tests/chaos.py", "tools.bench", "tools.calibrate",
          "experiments.e2"]  # fmt: skip


@pytest.mark.parametrize("program", [*ARGUMENTS, *OTHERS])
def test_every_flag_says_its_default(program, parser_of):
    for action in parser_of(program, ARGUMENTS.get(program, "").split())._actions:
        if action.dest != "help":
            assert action.help and (not action.option_strings or "default" in action.help), action.dest


def test_its_commands_run_in_order(tmp_path, cache, eval_files, text_file):
    """All that a reader can run in a few minutes, with three updates instead of the budget."""
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "a.txt").write_text(text_file.read_text())
    (tmp_path / "EVAL").symlink_to(eval_files)
    for file in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / file).symlink_to(ROOT / file)
    ran = []
    for command in COMMANDS:
        words = words_of(command)
        if words[0] == "make":  # what it would run at last
            words = ["make", "--no-print-directory", "-n", "-f", str(ROOT / "Makefile"), *words[1:]]
            dry = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
            words = words_of(dry.stdout.splitlines()[-1])
        if words[0] == "source" or is_long(command):
            continue
        assert words[0] in ("python", ".venv/bin/python"), command
        words = [sys.executable, *(str(ROOT / word) if word.endswith(".py") else word for word in words[1:])]
        if words[1] == str(ROOT / "train.py"):
            words += [f"--max-updates={4 if '--resume' in command else 3}", f"--cache={cache}"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        ran.append(command)
    assert len(ran) >= 8
    assert (tmp_path / "out" / "bcp-p1-1" / "figures" / "batch.png").exists()
