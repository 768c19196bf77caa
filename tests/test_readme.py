"""The README and docs/ say what the code says, and their commands run."""

import argparse
import json
import os
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import e6 as answers
from experiments import e7 as few
from tools.compare import late, paired, spread

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCS = {file: file.read_text() for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(DOCS.values())
# What needs a GPU, a network, other data, other runs or many minutes is parsed and not run.
LONG = ("babylm-", "117m", "../shared", "tools.compare", "tools.bench", "experiments.", "tests/chaos", "tests.official",
        "tools.calibrate", "tools.doctor", "tools.law", "tools.aoa", "tools.leaderboard",
        "torchrun", "make test", "out/fig-", "out/kept", "--compare",
        "unigram")  # fmt: skip


def words_of(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def is_long(command: str) -> bool:
    return any(part in command for part in LONG)


def commands_of(text: str) -> list[str]:
    """The indented lines, without their comments, each once and in order."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return list(dict.fromkeys(shlex.join(words_of(line)) for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE)))


COMMANDS = commands_of(TEXT)
PROGRAMS = [command for command in COMMANDS if command.startswith(("python ", "torchrun "))]


def test_the_lines_of_code_beside_the_algorithm_stand_in_the_code():
    _, table, _ = README.split("<!-- algorithm -->")
    rows = table.strip().splitlines()[2:]
    quoted = [re.fullmatch(r"\| .+ \| `([^`]+)` \|", row) for row in rows]
    assert rows and all(quoted)
    code = [(ROOT / name).read_text() for name in ("bcp.py", "train.py")]
    assert [row for row, line in zip(rows, quoted, strict=True) if line[1] not in code[" * |" in row]] == []


@pytest.mark.parametrize(
    "table",
    [
        "e1-lr",
        "e1",
        "e2",
        "e3",
        "e3-mix",
        "e3-best",
        "e3s",
        "e3s-random",
        "e4",
        "e5",
        "e5-tasks",
        "e6-answer",
        "e6-facts",
        "e6-text",
        "e7-scores",
        "e8-rates",
        "dual-scores",
        "chaos",
        "goal",
        "laws",
    ],
)
def test_tables_of_results_are_those_that_the_commands_made(table):
    for part in (ROOT / "results" / f"{table}.md").read_text().split("\n\n"):
        assert part.strip() in TEXT


def recorded(grid: str, run: str, seeds: list[str] | None = None) -> dict[str, dict]:
    """Seed -> what a run of results/<grid>.json reached; only these seeds, if any are given."""
    found = json.loads((ROOT / "results" / f"{grid}.json").read_text())["results"][run]
    return {seed: found[seed] for seed in seeds or found}


def gap(runs: dict, reference: dict, value, digits: int) -> str:
    """The mean difference of two runs over the seeds that both have, and its interval, as tools.compare writes it."""
    both = [seed for seed in runs if seed in reference]
    return paired([value(runs[seed]) for seed in both], [value(reference[seed]) for seed in both], digits)


def table_in(text: str, start: str) -> list[list[str]]:
    """The cells of the Markdown table that begins so, row by row, without its head."""
    rows = re.match(r"(?:\|.*\n)+", text[text.index(start) :])[0].splitlines()[2:]
    assert rows
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_table_of_the_readme_is_that_of_the_results():
    new = ["6", "7", "8", "9", "10"]  # the seeds that no flag of the last run was chosen with
    runs = {"`random`": ("e1", "random"), "`curriculum`": ("e1", "curriculum"),
            "`curriculum-repeat`": ("e1", "curriculum-repeat"), "`bcp`, p = 1": ("e1", "bcp, p = 1"),
            "`bcp`, p = 2": ("e1", "bcp, p = 2"), "`bcp`, p = 1, shuffled once": ("e1", "bcp, p = 1, random order"),
            "`bcp`, within reach": ("e3-best", "bcp, the recipe", new)}  # fmt: skip
    rows = table_in(README, "| run | minimal pairs")
    assert [row[0] for row in rows] == list(runs)
    for name, pairs, loss, difference, passes in rows:
        grid, run, *seeds = runs[name]
        own, random = recorded(grid, run, *seeds), recorded(grid, "random", *seeds)
        assert pairs == spread([late(run, "toy") for run in own.values()], 1)
        assert loss == spread([late(run, "val_loss") for run in own.values()], 2)
        assert difference == ("" if run == "random" else gap(own, random, lambda run: late(run, "toy"), 1))
        assert passes == f"{statistics.fmean(run['passes'] for run in own.values()):.1f}"


def test_the_sentences_of_the_answer_are_those_of_the_results():
    e6 = json.loads((ROOT / "results" / "e6.json").read_text())["results"]
    last, mean = ({run: statistics.fmean(answers.pairs(seeds, of).values()) for run, seeds in e6.items()}
                  for of in (None, "mean of all"))  # fmt: skip
    good = {(run, what): answers.recovered(e6, run, what).split()[0].lstrip("+")
            for run in e6 for what in ("toy", "val_loss") if run not in (answers.PAPER, answers.BEST)}  # fmt: skip
    carried, one, goal = "bcp, p = 1, random order, moments carried", "one repeat", "left at a goal within reach"
    both = "one repeat, moments carried"
    pairs = {run: statistics.fmean(late(one, "toy") for one in recorded("e1", run).values())
             for run in ("random", "bcp, p = 1", "bcp, p = 1, random order")}  # fmt: skip
    clean = [late(run, "toy") for run in recorded("e3-best", "random", ["6", "7", "8", "9", "10"]).values()]
    order = (pairs["bcp, p = 1, random order"] - pairs["bcp, p = 1"]) / (pairs["random"] - pairs["bcp, p = 1"])
    e7 = json.loads((ROOT / "results" / "e7-scores.json").read_text())
    plain, idle = e7["e7"]["random, 2e-3"].values(), e7["e7"]["recipe and idle, 4e-3"].values()
    best, end = (statistics.fmean(one[at]["loss"] for one in plain) for at in ("best", "end"))
    stopped = min(statistics.fmean(one["end"]["loss"] for one in e7["e7-size"][f"random gives up {p} % (8)"].values())
                  for p in (5, 10, 20))  # fmt: skip
    again = statistics.fmean(few.trained_again(e7, "8").values())
    sentences = [
        f"overfits from {best:.2f} nats to {end:.2f}, and",
        f"stops by itself at {statistics.fmean(one['end']['loss'] for one in idle):.2f}",
        f"to be stopped in time ends at {stopped:.2f} or more, or at {again:.2f} if it is then trained again",
        f"plain training has {last['random']:.0f} % of the minimal pairs, "
        f"p = 1 has {last[answers.PAPER]:.0f} % in random order "
        f"and {last['bcp, p = 1']:.0f} % sorted, and p = 2 has {last['bcp, p = 2, random order']:.0f} %",
        f"it takes plain training from {last['random']:.0f} to {mean['random']:.0f} %",
        f"carried on make good {good[carried, 'toy']} % of the pairs and {good[carried, 'val_loss']} % of the loss",
        f"one repeat instead of ten {good[one, 'toy']} and {good[one, 'val_loss']} %",
        f"leaving at a goal within reach {good[goal, 'toy']} and {good[goal, 'val_loss']} %",
        f"the first two together make good {good[both, 'toy']} % of both",
        f"sorting costs most of its loss and {100 * order:.0f} % of its errors",
        f"On these seeds `random` has {spread(clean, 1)}",
        f"learns more, {pairs['bcp, p = 1']:.1f} % over whole passes",
    ]
    assert good[both, "toy"] == good[both, "val_loss"]
    assert [sentence for sentence in sentences if sentence not in " ".join(README.split())] == []


def test_the_differences_beside_the_tables_are_those_of_the_results():
    text = DOCS[ROOT / "docs" / "experiments.md"]
    for file, run, reference, when, pairs, loss in table_in(text, "| file | run |"):
        both = [recorded(file.removesuffix(".json"), name) for name in (run, reference)]
        value = late if when == "whole passes" else lambda run, measure: run[measure]
        assert pairs == gap(*both, lambda run, value=value: value(run, "toy"), 1)
        assert loss == gap(*both, lambda run, value=value: value(run, "val_loss"), 3)


def test_the_table_of_evaluations_is_that_of_the_results():
    text = DOCS[ROOT / "docs" / "experiments.md"]
    both = [recorded("e3-best", name) for name in ("bcp, the recipe", "random")]
    rows = table_in(text, "| update | passes")
    assert len(rows) == len(both[0]["0"]["evaluations"]) - 1
    for number, row in enumerate(rows, 1):
        at = [{seed: run["evaluations"][number] for seed, run in runs.items()} for runs in both]
        means = [f"{statistics.fmean(one[key] for one in runs.values()):.{digits}f}"
                 for runs in at for key, digits in (("passes", 1), ("toy", 1), ("val_loss", 3))]  # fmt: skip
        gaps = [gap(*at, lambda one, key=key: one[key], digits) for key, digits in (("toy", 1), ("val_loss", 3))]
        assert row == [str(at[0]["0"]["update"]), *means, *gaps]


def headings_of(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", line.lower()).strip().replace(" ", "-") for line in headings}


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_files_and_headings_that_are_linked_to_exist(file):
    for link, heading in set(re.findall(r"\]\(([^)#]*)#?([^)]*)\)", DOCS[file])):
        if not link.startswith("https://"):
            target = (file.parent / link).resolve() if link else file
            assert target.exists(), link
            assert not heading or heading in headings_of(target.read_text()), f"{link}#{heading}"


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

        with monkeypatch.context() as patched:
            patched.setattr(argparse.ArgumentParser, "parse_args", parse_only)
            patched.setattr(sys, "argv", [program, *arguments])
            patched.chdir(ROOT)
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
             "tools.export": "run folder", "tools.average": "run --all", "tests.official": "run folder",
             "experiments.e5": "prepare .", "experiments.stages": "--figure", "tools.law": "fit run",
             "experiments.law": "tables", "tools.aoa": "run --data=.", "tools.leaderboard": "run"}  # fmt: skip
OTHERS = ["train.py", "data.py", "toy.py", "model.py", "tests/chaos.py", "tools.bench", "tools.calibrate",
          "tools.doctor", "experiments.e2"]  # fmt: skip


@pytest.mark.parametrize("program", [*ARGUMENTS, *OTHERS])
def test_every_flag_says_its_default(program, parser_of):
    parser = parser_of(program, ARGUMENTS.get(program, "").split())
    for action in parser._actions:
        if action.dest != "help":
            shown = parser.formatter_class("")._get_help_string(action)  # which may add the default
            assert shown and (not action.option_strings or "default" in shown), action.dest


def test_every_flag_that_is_named_is_one(parser_of):
    options = set()
    for program in [*ARGUMENTS, *OTHERS]:
        for action in parser_of(program, ARGUMENTS.get(program, "").split())._actions:
            options |= set(action.option_strings)
    named = set(re.findall(r"`(--[A-Za-z][A-Za-z0-9-]*)", TEXT))
    assert len(named) > 20 and named <= options


# In place of the virtual environment's python: nothing is installed, and trainings are short.
VENV = """#!/bin/sh
case "$1 $2" in "-m pip") exit;; esac
case "$1" in
train.py) shift; exec {python} {root}/train.py "$@" --preset=nano --max-updates=3 --cache={cache};;
*.py) script=$1; shift; exec {python} {root}/"$script" "$@";;
esac
exec {python} "$@"
"""


def test_its_commands_run_in_order(tmp_path, cache, eval_files, text_file):
    """All that a reader can run in a few minutes, README first, with three updates of the smallest model."""
    (tmp_path / "my_texts").mkdir()
    (tmp_path / "my_texts" / "a.txt").write_text(text_file.read_text())
    (tmp_path / "EVAL").symlink_to(eval_files)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    venv = tmp_path / ".venv" / "bin" / "python"
    venv.write_text(VENV.format(python=sys.executable, root=ROOT, cache=cache))
    venv.chmod(0o755)
    for file in ("requirements.txt", "requirements-dev.txt", ".venv/ready", ".venv/ready-dev"):
        (tmp_path / file).touch()
    ran = []
    for command in COMMANDS:
        words = words_of(command)
        if words[0] == "source" or is_long(command):
            continue
        assert words[0] in ("python", "make"), command
        if words[0] == "make":
            words = ["env", "make", "-f", str(ROOT / "Makefile"), *words[1:]]
        else:
            words = [sys.executable, *(str(ROOT / word) if word.endswith(".py") else word for word in words[1:])]
            words = [word.replace("--untrained=5", "--untrained=1") for word in words]
        if words[1] == str(ROOT / "train.py"):
            words += ["--preset=nano", f"--max-updates={4 if '--resume' in command else 3}", f"--cache={cache}"]
        env = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        ran.append(command)
    assert len(ran) >= 8
    assert (tmp_path / "out" / "bcp-p1-1" / "figures" / "batch.png").exists()
