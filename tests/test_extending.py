"""docs/extending.md: its blocks of code are one script, and it works."""

import re
import subprocess
import sys
from pathlib import Path

import checkpoint
import journal

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_is_a_script_that_works(tmp_path, cache):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "cache").symlink_to(cache)
    page = (ROOT / "docs" / "extending.md").read_text()
    (tmp_path / "mine.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    path = {"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    updates = {name: journal.updates(journal.read(tmp_path / "out" / name)) for name in ("excess", "back-and-forth")}
    goal = checkpoint.read_config(tmp_path / "out" / "excess")["flags"]["goal"]
    assert all(abs(r["alpha"] - max(0, 1 + r["loss"] - goal)) < 1e-9 for r in updates["excess"])
    batches = [r["batch"] for r in updates["back-and-forth"]]
    n = max(batches) + 1
    assert n < 15 and batches[: 2 * n] == [*range(n), *reversed(range(n))][: len(batches)]
    assert re.search(r"agreement +(0|100)\.0", done.stdout)
    assert re.search(r"batch 0 repeats \d+ loss \d", done.stdout)
