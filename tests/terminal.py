"""Commands on a pseudo-terminal, and what stands on its screen at the end."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROWS = 50
CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")


@dataclass(frozen=True)
class Screen:
    """What a command wrote to a terminal.

    Attributes:
        status: Exit status.
        written: All that was written, with the sequences that move the cursor.
        lines: Lines that stand on the screen at the end, with those that have left it at the top.
    """

    status: int
    written: str
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def on_terminal(
    line: Sequence[str | Path], folder: Path, columns: int, environment: Mapping[str, str], term: str = "xterm-256color"
) -> Screen:
    """Runs a command on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    hidden = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    variables = {name: value for name, value in os.environ.items() if name not in hidden}
    with subprocess.Popen(
        [str(part) for part in line],
        cwd=folder,
        env={**variables, **environment, "TERM": term},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        written = bytearray()
        while part := _read(ours):
            written += part
    os.close(ours)
    text = written.decode()
    return Screen(process.returncode, text, standing(text))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the last process has closed it
        return b""


def standing(written: str) -> list[str]:
    """Returns the lines that stand after the cursor's movements that rich uses: up, erase line, to the beginning."""
    lines, row, column = [""], 0, 0
    for match in CONTROL.finditer(written):
        count, letter = match[1], match[2]
        if match[0] == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif match[0] == "\r":
            column = 0
        elif letter == "A":
            row = max(0, row - int(count or 1))
        elif letter == "K":
            lines[row] = "" if count == "2" else lines[row][:column]
        elif letter is None:
            lines[row] = lines[row][:column].ljust(column) + match[0] + lines[row][column + len(match[0]) :]
            column += len(match[0])
    return [line.rstrip() for line in lines]
