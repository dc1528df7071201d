"""Saved states: whole or not at all, and only for the run that they belong to."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from gdfq_export import checkpoint as module
from gdfq_export.checkpoint import DIVERGED, REFUSED, Checkpoint, WorkDirectory, is_writing, open_checkpoint
from gdfq_export.errors import InputFileError, OutputFileError
from gdfq_export.files import remove_leftovers, work_directory

FACTS = {"model": "small", "bits.weight": 4, "schedule.student_lr": 1e-4, "seed": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model.work"


def resumed(folder: Path, **changes: object) -> Checkpoint:
    return open_checkpoint(WorkDirectory(folder, resume=True), {**FACTS, **changes})


def saved(folder: Path) -> Checkpoint:
    checkpoint = open_checkpoint(WorkDirectory(folder), FACTS)
    checkpoint.save("training", {"step": 7, "weights": {"a": torch.arange(3.0)}, "counts": [1, 2.5, None]})
    return checkpoint


def test_the_work_directory_stands_beside_the_output() -> None:
    assert work_directory(Path("x/model.onnx")) == Path("x/model.work")
    assert work_directory(Path("x/model.v1")) == Path("x/model.v1.work")


def test_a_saved_state_is_found_again(folder: Path) -> None:
    saved(folder)
    state = resumed(folder).load("training")
    assert state is not None
    assert (state["step"], state["counts"]) == (7, [1, 2.5, None])
    assert torch.equal(state["weights"]["a"], torch.arange(3.0))
    assert resumed(folder).load("another stage") is None


def test_nothing_is_written_before_the_first_state(folder: Path) -> None:
    open_checkpoint(WorkDirectory(folder), FACTS)
    assert not folder.exists()


def test_without_a_folder_nothing_is_saved_and_nothing_found() -> None:
    checkpoint = Checkpoint()
    checkpoint.save("training", {"step": 1})
    assert checkpoint.load("training") is None
    assert not checkpoint.is_due()


def test_a_stage_holds_its_newest_state_only(folder: Path) -> None:
    checkpoint = saved(folder)
    checkpoint.save("training", {"step": 8})
    assert checkpoint.load("training") == {"step": 8}
    assert sorted(path.name for path in folder.iterdir()) == ["settings.json", "training.state"]


def test_a_finished_run_leaves_nothing(folder: Path) -> None:
    saved(folder).remove()
    assert not folder.exists()


def test_removing_leaves_files_of_others_alone(folder: Path) -> None:
    checkpoint = saved(folder)
    (folder / "notes.txt").write_text("mine")
    checkpoint.remove()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_states_of_a_run_with_other_settings_are_refused_by_the_first_that_differs(folder: Path) -> None:
    saved(folder)
    with pytest.raises(InputFileError, match=r"bits\.weight = 4, and now it is 8") as caught:
        resumed(folder, **{"bits.weight": 8, "seed": 5})
    assert caught.value.exit_code == 4


def test_after_a_divergence_the_learning_rate_may_differ_and_the_width_may_not(folder: Path) -> None:
    saved(folder).save(DIVERGED, {})
    with pytest.raises(InputFileError, match=r"bits\.weight"):
        resumed(folder, **{"bits.weight": 8})
    again = resumed(folder, **{"schedule.student_lr": 1e-5})
    assert again.load("training") is not None
    with pytest.raises(InputFileError, match="student_lr"):  # from now on it is a run with the new rate
        resumed(folder)


def test_the_learning_rate_of_a_run_that_did_not_diverge_may_not_differ(folder: Path) -> None:
    saved(folder)
    with pytest.raises(InputFileError, match="student_lr"):
        resumed(folder, **{"schedule.student_lr": 1e-5})


def test_work_is_not_lost_by_leaving_out_resume(folder: Path) -> None:
    saved(folder)
    with pytest.raises(OutputFileError, match="--resume"):
        open_checkpoint(WorkDirectory(folder), FACTS)
    assert resumed(folder).load("training") is not None


def test_a_run_can_be_started_anew_on_request(folder: Path) -> None:
    saved(folder)
    assert open_checkpoint(WorkDirectory(folder, discard=True), FACTS).load("training") is None


def test_a_run_that_was_refused_leaves_its_states_to_one_with_another_budget(folder: Path) -> None:
    for found in (None, 10_000):
        checkpoint = open_checkpoint(WorkDirectory(folder), {**FACTS, "size_budget": found})
        checkpoint.save("images", {"count": 3})
        checkpoint.mark(REFUSED)
    again = open_checkpoint(WorkDirectory(folder), {**FACTS, "size_budget": 20_000})
    assert again.load("images") == {"count": 3}
    with pytest.raises(OutputFileError, match="interrupted"):  # from now on it is a run like any other
        open_checkpoint(WorkDirectory(folder), {**FACTS, "size_budget": 20_000})


def test_a_run_that_was_refused_is_not_in_the_way_of_one_with_other_settings(folder: Path) -> None:
    saved(folder).mark(REFUSED)
    for resume, bits in ((False, 8), (True, 6)):
        again = open_checkpoint(WorkDirectory(folder, resume=resume), {**FACTS, "bits.weight": bits})
        assert again.load("training") is None
        again.save("training", {})
        again.mark(REFUSED)


def test_a_run_that_was_refused_before_it_saved_anything_leaves_nothing(folder: Path) -> None:
    open_checkpoint(WorkDirectory(folder), FACTS).mark(REFUSED)
    assert not folder.exists()


def test_a_folder_of_another_purpose_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(OutputFileError, match="no work directory"):
            open_checkpoint(WorkDirectory(tmp_path, resume=resume), FACTS)


def test_resuming_where_nothing_was_saved_starts_from_the_beginning(folder: Path) -> None:
    assert resumed(folder).load("training") is None
    folder.mkdir()  # killed between this and the first file
    assert resumed(folder).load("training") is None


def test_a_damaged_state_is_one_sentence(folder: Path) -> None:
    saved(folder)
    (folder / "training.state").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(InputFileError, match="start anew"):
        resumed(folder).load("training")


def test_a_state_cannot_run_code(folder: Path) -> None:
    checkpoint = saved(folder)
    checkpoint.save("training", {"path": Path("x")})  # any class of Python's would do
    with pytest.raises(InputFileError):
        checkpoint.load("training")


def test_a_full_disk_leaves_the_state_before(folder: Path) -> None:
    checkpoint = saved(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputFileError, match="free some space"):
            checkpoint.save("training", {"step": 8, "large": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    state = checkpoint.load("training")
    assert state is not None
    assert state["step"] == 7
    assert sorted(path.name for path in folder.iterdir()) == ["settings.json", "training.state"]


def test_what_a_killed_process_was_writing_is_removed_with_the_next_save(folder: Path) -> None:
    checkpoint = saved(folder)
    (folder / ".training.abcd1234.state").write_bytes(b"half")
    checkpoint.save("training", {"step": 8})
    assert sorted(path.name for path in folder.iterdir()) == ["settings.json", "training.state"]


def test_only_leftovers_of_that_very_file_are_removed(tmp_path: Path) -> None:
    names = [".model.abcd1234.onnx", ".model.fp32.abcd1234.onnx", ".model.onnx", "model.abcd1234.onnx"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "model.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_saving_takes_a_small_share_of_the_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoint = open_checkpoint(WorkDirectory(folder), FACTS)
    assert not checkpoint.is_due()
    now[0] += 6
    assert checkpoint.is_due()
    checkpoint._saved, checkpoint._cost = now[0], 2.0  # a save that took two seconds
    now[0] += 30
    assert not checkpoint.is_due()
    now[0] += 11
    assert checkpoint.is_due()


def test_a_run_that_began_to_write_is_known_by_its_directory(folder: Path) -> None:
    checkpoint = saved(folder)
    assert not is_writing(folder)
    checkpoint.save("writing", {})
    assert is_writing(folder)
