"""What a user's own code prints goes to stderr: stdout is for results, with `--json` for one object alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from user_folder import GOOD, HEAD, SIZE

from gdfq_export.cli import main

LOUD = """
import atexit, ctypes, os, subprocess, sys, threading

def shout(where):
    print("print in", where)
    sys.__stdout__.write(f"__stdout__ in {where}\\n")
    os.write(1, f"write in {where}\\n".encode())
    subprocess.run(["echo", f"child in {where}"])
    ctypes.CDLL(None).printf(f"printf in {where}\\n".encode())

shout("file")
atexit.register(shout, "exit")

class Loud(nn.Sequential):
    def forward(self, x):
        shout("forward")
        return super().forward(x)

def loud():
    shout("factory")
    return Loud(*build())

def broken():
    shout("factory")
    raise ValueError("no")

def interrupted():
    shout("factory")
    raise KeyboardInterrupt
"""
TALKS = """
class Talks(nn.Sequential):
    def forward(self, x):
        print("in the forward")
        return super().forward(x)

def talks():
    print("in the factory")
    return Talks(*build())
"""


def quantize(folder: Path, factory: str, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "net.py").write_text(HEAD + GOOD + LOUD)
    words = ("--model", f"{folder}/net.py:{factory}", *SIZE, "--out", str(folder / "x.onnx"), "--dry-run", *words)
    return command("quantize", *words)


def command(*words: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "gdfq_export", *words]
    return subprocess.run(whole, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


@pytest.mark.parametrize(
    ("factory", "code", "key"), [("loud", 0, "plan"), ("broken", 4, "error"), ("interrupted", 130, "error")]
)
def test_what_users_code_prints_in_any_way_goes_to_stderr(factory: str, code: int, key: str, tmp_path: Path) -> None:
    done = quantize(tmp_path, factory, "--json")
    assert done.returncode == code, done.stderr
    assert key in json.loads(done.stdout)
    places = ["file", "factory", "exit", *(["forward"] if factory == "loud" else [])]
    for what in ("print", "__stdout__", "write", "child", "printf"):
        for place in places:
            assert f"{what} in {place}" in done.stderr, done.stderr


def test_without_json_stdout_holds_the_results_alone_too(tmp_path: Path) -> None:
    done = quantize(tmp_path, "loud")
    assert done.returncode == 0, done.stderr
    assert " in factory" not in done.stdout
    assert "nothing was written" in done.stdout


def test_a_whole_run_keeps_stdout_for_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "net.py").write_text(HEAD + GOOD + TALKS)
    words = ["quantize", "--model", f"{tmp_path}/net.py:talks", *SIZE, "--method", "calibrate", "--json"]
    assert main([*words, "--out", str(tmp_path / "x.onnx")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["method"] == "calibrate"
    assert "in the factory" in captured.err


def test_a_reader_that_goes_away_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = command("models", "--json", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_behind_stdout_is_one_sentence() -> None:
    if not Path("/dev/full").exists():
        return
    with Path("/dev/full").open("wb") as full:
        done = command("models", "--json", stdout=full.fileno())
    assert done.returncode == 4
    assert done.stderr.startswith("gdfq-export: cannot write to standard output: ")
