"""The order of the house: who imports whom, where the loop stands, how long a function may be."""

import ast
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

FILES = {file.stem: file for file in ROOT.glob("*.py")}
LATE = {("flags", "checkpoint")}  # imported within a function, when a run is resumed: checkpoint knows flags, too


def imports(name: str) -> set[str]:
    """The files of ours that a file imports, in functions too; what only type checkers import does not count."""
    found, nodes = set(), [ast.parse(FILES[name].read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found.add(node.module.split(".")[0])
        nodes += ast.iter_child_nodes(node)
    return found & {*FILES, "tools", "tests"}


def test_imports_run_one_way_and_nothing_imports_train_or_the_tools():
    graph = {name: {other for other in imports(name) if (name, other) not in LATE} for name in FILES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(FILES) and graph["train"] >= {"bcp", "curriculum", "flags", "model"}
    assert [name for name in graph if "train" in graph[name]] == []


def test_the_loop_stands_near_the_top_of_train():
    lines = FILES["train"].read_text().splitlines()
    loops = [number for number, line in enumerate(lines, 1) if line.strip().startswith("while ")]
    assert len(loops) == 1 and loops[0] <= 110


@pytest.mark.parametrize("name", FILES)
def test_no_function_is_longer_than_60_lines(name):
    functions = [n for n in ast.walk(ast.parse(FILES[name].read_text())) if isinstance(n, ast.FunctionDef)]
    lengths = {f"{name}.{function.name}": function.end_lineno - function.lineno + 1 for function in functions}
    assert functions and [n for n, length in lengths.items() if length > 60 and n != "flags.get_parser"] == []
