from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from gdfq_export.errors import OutputFileError
from gdfq_export.files import atomic_path, check_output


def refusal(path: Path, *, force: bool = False) -> str:
    with pytest.raises(OutputFileError) as caught:
        check_output(path, force=force)
    assert caught.value.exit_code == 4
    return str(caught.value)


def test_a_free_place_is_accepted(tmp_path: Path) -> None:
    check_output(tmp_path / "m.onnx", force=False)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "no" / "m.onnx")


def test_a_folder_in_place_of_a_file_is_refused_even_by_force(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path, force=True)


def test_an_existing_file_is_refused_without_force(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")
    assert "--force" in refusal(path)
    check_output(path, force=True)
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(**options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", deny)  # root may write anywhere
    assert "Permission denied" in refusal(tmp_path / "m.onnx")


def test_a_file_appears_whole_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_no_trace(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "m.onnx") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write()
    assert path.read_text() == "old"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "m.onnx"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputFileError, match="No space left on device"):
        write()


def test_a_new_file_has_the_permissions_that_new_files_have(tmp_path: Path) -> None:
    path, plain = tmp_path / "m.onnx", tmp_path / "plain"
    plain.touch()
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.stat().st_mode == plain.stat().st_mode


def test_the_temporary_file_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "m.fakequant.pt2") as temporary:
        temporary.touch()
        assert temporary.suffix == ".pt2"
        assert temporary.parent == tmp_path
