"""What a program says, whatever its terminal is: control characters, encodings, dead pipes, closed streams, Ctrl-C."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); import terminal; terminal.prepare('x.py')\n"


def start(code: str, **more) -> subprocess.Popen:
    """A program of these lines, with a prepared terminal."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen([sys.executable, "-c", PROGRAM + code, ROOT], text=True, **pipes)


def test_what_steers_a_terminal_is_spelt_out_and_bars_are_not():
    code = "print('a\\x1b[31mb\\x9b\\u202e\\tc\\rd\\n\u00e9'); sys.stderr.write('\\r 50%|#'); sys.exit('x\\x07')"
    out, err = start(code, env=os.environ | {"PYTHONUTF8": "1"}).communicate()
    assert out == "a\\x1b[31mb\\x9b\\u202e\tc\\rd\n\u00e9\n" and err == "\r 50%|#x\\x07\n".replace("\r", "\n")


def test_what_the_encoding_lacks_is_spelt_out():
    out, err = start("print('caf\\xe9 \\ud800')", env=os.environ | {"PYTHONIOENCODING": "ascii"}).communicate()
    assert (out, err) == ("caf\\xe9 \\ud800\n", "")


def test_a_dead_pipe_ends_nothing(tmp_path):
    code = f"for i in range(99999): print(i)\nopen({str(tmp_path / 'done')!r}, 'w'); sys.exit(3)"
    process = start(code)
    process.stdout.close()
    assert process.wait() == 3 and (tmp_path / "done").exists() and process.stderr.read() == ""


def test_closed_streams_are_no_trouble_and_no_file_takes_their_place(tmp_path):
    code = f"print(1); f = open({str(tmp_path / 'file')!r}, 'w')\nimport os; os.write(2, b'2'); sys.exit(f.fileno())"
    process = start(code, preexec_fn=lambda: (os.close(1), os.close(2)))
    assert process.wait() > 2 and (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize(("code", "status", "line"), [
    ("raise KeyboardInterrupt", 130, "x.py: interrupted\n"),
    ("open('no\\x1b/where')", 1, "x.py: [Errno 2] No such file or directory: 'no\\x1b/where'\n"),
])  # fmt: skip
def test_ctrl_c_and_trouble_are_one_line(code, status, line):
    process = start(code)
    assert process.communicate()[1] == line and process.returncode == status


@pytest.mark.parametrize("words", [["train.py"], ["evaluate.py", "out/x"], ["sample.py", "out/x"], ["toy.py"]])
def test_ctrl_c_in_every_program_is_one_line_while_it_loads_too(words):
    """It comes with the first import after the command line was read."""
    code = f"""
import builtins, runpy, terminal
real, prepare = builtins.__import__, terminal.prepare

def late(name):
    prepare(name)
    builtins.__import__ = interrupted

def interrupted(*names, **more):
    builtins.__import__ = real
    raise KeyboardInterrupt

terminal.prepare, sys.argv = late, {words!r}
runpy.run_path({words[0]!r}, run_name="__main__")
"""
    process = start(code, cwd=ROOT)
    out, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGINT, f"{words[0]}: interrupted\n")
