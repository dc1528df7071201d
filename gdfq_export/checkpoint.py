"""Saved states of a run, so that `--resume` continues where a killed one stood.

A work directory holds `settings.json`, which says whose it is, and one file for each stage:

    model.work/settings.json         the settings of the run, by name
    model.work/training.state        the newest state of the stage "training"

A method asks for a stage and saves it as often as it likes; every save replaces the one before it as a whole, so a
kill at any moment leaves the old or the new state, and the directory never holds more than one state a stage:

    state = task.checkpoint.load("generator")       # None: this stage starts from the beginning
    if task.checkpoint.is_due():                    # now and then, so that saving costs little
        task.checkpoint.save("generator", {"step": 7, "model": model.state_dict()})

A state is made of tensors, numbers, strings, lists and mappings. It is read without running code (`weights_only`).
"""

from __future__ import annotations

import io
import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gdfq_export.distributed import agreed, rank
from gdfq_export.errors import InputFileError, OutputFileError
from gdfq_export.files import atomic_path, remove_leftovers
from gdfq_export.stopwatch import Stopwatch

SETTINGS = "settings.json"
SUFFIX = ".state"
FEWEST_SECONDS = 5.0  # between two saves of a running stage
LARGEST_SHARE = 0.05  # of the time may go into saving
DIVERGED = "diverged"
WRITING = "writing"
REFUSED = "refused"
SPENT = "seconds spent"  # in every state
CHANGEABLE = ("schedule.generator_lr", "schedule.student_lr", "schedule.beta", "schedule.gamma", "schedule.temperature")
"""Settings that may differ from the saved ones after training has diverged: they are what there is to change."""
REFUSABLE = ("size_budget", "bit_operations_budget")
"""Settings that no state depends on before they are refused: the images of a refused run serve one with others."""


def is_writing(folder: Path) -> bool:
    """Whether the run of this directory had begun to write its results, so that they may be written again."""
    return (folder / f"{WRITING}{SUFFIX}").exists()


class Checkpoint:
    """The stages of one run; without a folder it saves nothing and finds nothing."""

    def __init__(
        self, folder: Path | None = None, facts: Mapping[str, Any] | None = None, stopwatch: Stopwatch | None = None
    ) -> None:
        self.folder = folder
        self.facts = dict(facts or {})
        self.stopwatch = stopwatch or Stopwatch(None)
        self._own: set[str] = set()  # stages that this process has saved
        self._saved = time.monotonic()
        self._cost = 0.0

    def load(self, stage: str) -> dict[str, Any] | None:
        """The newest state of a stage, or None; that of process 0 where several train together.

        What was spent on it counts from now on.
        """
        state = agreed(self._read(stage) if rank() == 0 else None)
        if state is not None:
            spent = state.pop(SPENT, 0.0)
            if stage not in self._own:
                self.stopwatch.carry(spent)
        return state

    def _read(self, stage: str) -> dict[str, Any] | None:
        if self.folder is None or not (path := self._path(stage)).exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise InputFileError(f"cannot read {path}: remove the folder {self.folder} to start anew") from error
        return state

    def save(self, stage: str, state: Mapping[str, Any]) -> None:
        """Replaces the stage's state, whole or not at all."""
        if self.folder is None or rank() != 0:
            return
        start = time.monotonic()
        self._claim()
        buffer = io.BytesIO()  # to memory first: a full disk is then an OSError
        torch.save({**state, SPENT: self.stopwatch.own_seconds}, buffer)
        self._write(self._path(stage), buffer.getvalue())
        self._own.add(stage)
        self._saved = time.monotonic()
        self._cost = self._saved - start

    def mark(self, stage: str) -> None:
        """Notes how the run ended, where it has left states at all."""
        if self.folder is not None and rank() == 0 and any(self.folder.glob(f"*{SUFFIX}")):
            self.save(stage, {})

    def has(self, stage: str) -> bool:
        """Whether a state of this stage was saved; to be asked by process 0."""
        return self.folder is not None and self._path(stage).exists()

    def is_due(self) -> bool:
        """Whether enough time has passed since the last save."""
        wait = max(FEWEST_SECONDS, self._cost / LARGEST_SHARE)
        return self.folder is not None and agreed(time.monotonic() - self._saved > wait)

    def drop(self, stage: str) -> None:
        """Forgets a stage that later ones make superfluous."""
        if self.folder is not None and rank() == 0:
            self._path(stage).unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the directory: the run is finished."""
        if self.folder is None or rank() != 0 or not self.folder.is_dir():
            return
        for path in [*self.folder.glob(f"*{SUFFIX}"), self.folder / SETTINGS]:
            path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, stage: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{stage}{SUFFIX}"

    def _claim(self) -> None:
        """Makes the directory ours before the first state is put there."""
        assert self.folder is not None
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputFileError(f"cannot make the work directory {self.folder} ({error.strerror})") from error
        if not (self.folder / SETTINGS).exists():
            self.write_settings()

    def write_settings(self) -> None:
        """Says whose directory this is."""
        assert self.folder is not None
        self._write(self.folder / SETTINGS, json.dumps(self.facts, indent=1).encode())

    def _write(self, path: Path, content: bytes) -> None:
        remove_leftovers(path)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)


@dataclass(frozen=True)
class WorkDirectory:
    """Where states are saved, and what to do with those of an interrupted run that are there."""

    folder: Path
    resume: bool = False  # continue
    discard: bool = False  # start anew; with neither the directory is refused, so that no work is lost by mistake


def open_checkpoint(work: WorkDirectory, facts: Mapping[str, Any], stopwatch: Stopwatch | None = None) -> Checkpoint:
    """The checkpoint of a run with these settings; nothing is written before the first state is saved."""
    folder, plain = work.folder, json.loads(json.dumps(facts))
    checkpoint = Checkpoint(folder, plain, stopwatch)
    if rank() == 0 and folder.exists():
        _check_directory(checkpoint, folder, work)
    return checkpoint


def _check_directory(checkpoint: Checkpoint, folder: Path, work: WorkDirectory) -> None:
    """Refuses a directory of another purpose or run, and empties one that is to be discarded."""
    path = folder / SETTINGS
    if not folder.is_dir() or (not path.exists() and any(entry.name[0] != "." for entry in folder.iterdir())):
        raise OutputFileError(f"{folder} is no work directory of this tool: choose another one with --work-dir")
    if checkpoint.has(REFUSED) and not work.discard:
        _take_over(checkpoint, path)
    elif not work.resume:
        if not work.discard and any(folder.glob(f"*{SUFFIX}")):
            raise OutputFileError(
                f"{folder} holds the work of an interrupted run: continue it with --resume, "
                "or start from the beginning with --force"
            )
        checkpoint.remove()
    elif path.exists():
        _refuse_other_run(checkpoint, path)


def _take_over(checkpoint: Checkpoint, path: Path) -> None:
    """Goes on with the images of a run that was refused, where they serve this one; otherwise begins anew."""
    if all(name in REFUSABLE for name, _, _ in _differences(checkpoint, path)):
        checkpoint.write_settings()
        checkpoint.drop(REFUSED)
    else:
        checkpoint.remove()


def _differences(checkpoint: Checkpoint, path: Path) -> list[tuple[str, Any, Any]]:
    """The settings that are not those of the saved run, each with its old and its new value."""
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputFileError(f"cannot read {path}: remove the folder {path.parent} to start anew") from error
    names = [*checkpoint.facts, *(saved.keys() - checkpoint.facts.keys())]
    pairs = [(name, saved.get(name), checkpoint.facts.get(name)) for name in names]
    return [(name, old, new) for name, old, new in pairs if old != new]


def _refuse_other_run(checkpoint: Checkpoint, path: Path) -> None:
    """Names the first setting that differs; after a divergence some may."""
    diverged = checkpoint.has(DIVERGED)
    for name, old, new in _differences(checkpoint, path):
        if not (diverged and name in CHANGEABLE):
            raise InputFileError(
                f"{path.parent} belongs to a run with {name} = {old}, and now it is {new}: resume with the same "
                "settings, or start from the beginning with --force"
            )
    if diverged:
        checkpoint.write_settings()
        checkpoint.drop(DIVERGED)
