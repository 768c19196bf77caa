"""What a program begins with, before torch: a terminal that does no harm, and threads that wait without harm.

Ctrl-C and trouble of the machine are one line.
"""

import contextlib
import os
import re
import sys
from pathlib import Path

# What steers a terminal, but for tabs, line ends, and the carriage return that a progress bar begins with.
STEERING = re.compile(r"(?!^\r)[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Output:
    """A stream in which what steers a terminal, or is not in its encoding, is spelt out, such as \\x1b.

    Once the terminal is closed, or the pipe's reader gone, what is written is dropped: it is no reason to end.
    """

    def __init__(self, stream):
        self.stream = stream
        with contextlib.suppress(AttributeError, OSError):  # a StringIO has no encoding
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str):
        return getattr(self.stream, name)

    def write(self, text: str, then: str = "write") -> None:
        try:
            self.stream.write(STEERING.sub(lambda match: ascii(match[0])[1:-1], text))
            if then == "flush":
                self.stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what waits in its buffer goes there, too

    def flush(self) -> None:
        self.write("", then="flush")


def wait_politely() -> None:
    """Threads of torch that wait for each other spin; on a core that somebody else wants, they hold up all.

    So they spin shortly, and not at all if the machine is busy (docs/speed.md). A user's own setting stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        others = 0.0
        with contextlib.suppress(OSError, ValueError):  # only Linux has it, and GNU's threads
            load, _, _, running, _ = Path("/proc/loadavg").read_text().split()
            others = min(float(load), int(running.split("/")[0]) - 1)  # the load alone is that of the last minute, too
        os.environ.setdefault("GOMP_SPINCOUNT", "0" if others > 0.25 * (os.cpu_count() or 1) else "10000")


def prepare(program: str) -> None:
    """To be called at the start of a program, which may be done again."""
    wait_politely()

    def told(kind: type, error: BaseException, trace: object) -> None:
        if not issubclass(kind, KeyboardInterrupt | OSError):
            return sys.__excepthook__(kind, error, trace)
        stopped = issubclass(kind, KeyboardInterrupt)
        print(f"{program}: {'interrupted' if stopped else ' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(130 if stopped else 1)

    sys.excepthook = told
    while None in (sys.stdout, sys.stderr) and os.open(os.devnull, os.O_RDWR) < 2:
        pass  # closed ones get their numbers back, lest a file of ours gets them, and messages with them
    if not isinstance(sys.stderr, Output):
        streams = [stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
        sys.stdout, sys.stderr = map(Output, streams)
