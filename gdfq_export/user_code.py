"""Where an error stands in the user's files, and what it says in one line."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

import torch

import gdfq_export

TORCH = str(Path(torch.__file__).parent)
OURS = (str(Path(gdfq_export.__file__).parent), str(Path(gdfq_export.__file__).parents[1] / "models"))
PYTHON = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
INSTALLED = (*PYTHON, *{sysconfig.get_path(name) for name in ("purelib", "platlib")})
LONGEST = 200  # characters of somebody else's message


def place_of_error(error: BaseException) -> str:
    """`net.py:12`: the last line of the user's own files that ran, or else of a library's; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{Path(error.filename).name}:{error.lineno}"
    frames = [
        (Path(frame.filename), frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", TORCH, *OURS))
    ]
    own = [frame for frame in frames if not str(frame[0]).startswith(INSTALLED)]
    libraries = [frame for frame in frames if "site-packages" in str(frame[0])]
    chosen = own or libraries
    return f"{chosen[-1][0].name}:{chosen[-1][1]}" if chosen else ""


def described(error: BaseException) -> str:
    """`ValueError at net.py:12: too small`: kind, place and first line of an error of the user's code."""
    place = place_of_error(error)
    at = f" at {place}" if place else ""
    if isinstance(error, SystemExit):
        code = "" if error.code is None else repr(error.code)
        return f"it ends the program with sys.exit({code}){at}"
    said = first_line(error)
    return f"{type(error).__name__}{at}" + (f": {said}" if said else "")


def first_line(error: BaseException) -> str:
    """The first line that says something, cut to a length that fits into a sentence."""
    text = str(error.msg) if isinstance(error, SyntaxError) else str(error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= LONGEST else line[:LONGEST] + " ..."
