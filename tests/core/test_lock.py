"""One run at a time writes a file; a lock ends with its process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gdfq_export import lock as module
from gdfq_export.errors import OutputFileError
from gdfq_export.lock import alone, lock_path

HOLDS = """
import sys
from pathlib import Path
from gdfq_export.lock import alone
with alone([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.read()  # until it is killed
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


def holder(out: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_run_is_refused_with_the_number_of_the_first_process(out: Path) -> None:
    process = holder(out)
    try:
        with pytest.raises(OutputFileError, match=rf"process {process.pid}\) is writing {out}"), alone([out]):
            pass
    finally:
        process.kill()
        process.wait()


def test_a_lock_ends_with_a_process_that_is_killed(out: Path) -> None:
    process = holder(out)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert lock_path(out).exists()
    with alone([out]):
        pass
    assert not lock_path(out).exists()


def test_a_lock_leaves_nothing_behind_after_an_error(out: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone([out, out.with_suffix(".work")]):
        1 / 0  # noqa: B018
    assert list(out.parent.iterdir()) == []


def test_two_files_in_one_folder_are_written_at_the_same_time(out: Path) -> None:
    with alone([out]), alone([out.with_name("other.onnx")]):
        pass


def test_a_link_to_the_output_is_the_output(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with alone([out]), pytest.raises(OutputFileError), alone([tmp_path / "link" / out.name]):
        pass


def test_a_child_that_survives_does_not_hold_the_lock(out: Path) -> None:
    with alone([out]):
        child = os.fork()
        if child == 0:  # as a worker of a data loader is born
            signal.pause()
            os._exit(0)
    try:
        with alone([out]):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_whose_file_was_removed_in_between_is_taken_on_the_new_file(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([False, True])
    monkeypatch.setattr(module, "_is_still", lambda file, handle: next(answers))
    with alone([out]):
        assert next(answers, None) is None


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_error(out: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(module.fcntl, "flock", refuses)
    with alone([out]), alone([out]):
        pass


def test_a_folder_that_does_not_exist_is_left_to_others(tmp_path: Path) -> None:
    with alone([tmp_path / "none" / "model.onnx"]):
        pass
