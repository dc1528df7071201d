"""Images that are made once and read again."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stages import captured, folded

from gdfq_export.checkpoint import Checkpoint
from gdfq_export.distilled import Images
from gdfq_export.errors import InputFileError, OutputFileError
from gdfq_export.generator import image_spec
from gdfq_export.graph import rebuild
from gdfq_export.image_store import ImageStore, facts_of
from gdfq_export.methods import Task
from gdfq_export.methods.recon import make_images
from gdfq_export.passes import canonicalize
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.progress import silent
from gdfq_export.settings import Distillation, Schedule, Settings
from gdfq_export.stopwatch import Stopwatch
from gdfq_export.synthesis import Teacher

FEW = Distillation(images=4, batch=4, steps=2, shift=1)
HALF = (0.5, 0.5, 0.5)


def task(path: Path, bits: int = 8, **changes: object) -> Task:
    network = canonicalize(captured("residual"))
    spec = image_spec(network.input_shape, HALF, HALF)
    schedule = Schedule(batch=4, warmup_steps=1, steps=1, steps_per_epoch=1)
    settings = Settings("recon", BitWidths(bits, bits), schedule, "mse", "portable", seed=0, distillation=FEW)
    settings = dataclasses.replace(settings, **changes)  # type: ignore[arg-type]
    plan = make_plan(folded("residual"), settings.bits, (-1.0, 1.0))
    return Task(network, folded("residual"), plan, spec, settings, silent, store=ImageStore(path))


def made(task: Task) -> Images:
    return make_images(task, Teacher(task.captured, "cpu"), Stopwatch(None))


def test_images_of_one_width_are_read_at_another(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    first = made(task(path))
    before = path.read_bytes()
    again = made(task(path, bits=4))
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert path.read_bytes() == before


def test_images_in_a_file_are_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    first, asked = made(task(path)), task(path)
    facts = facts_of(asked.captured, asked.image, asked.settings.distillation, 0)
    path.unlink()
    ImageStore(path).save(Images(first.pixels + 1, first.labels), facts)
    assert torch.equal(made(asked).pixels, first.pixels + 1)


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"seed": 1}, "seed"), ({"distillation": dataclasses.replace(FEW, steps=3)}, "preset or method")],
)
def test_images_of_another_run_are_refused_by_what_differs(
    changes: dict[str, object], what: str, tmp_path: Path
) -> None:
    path = tmp_path / "images.safetensors"
    made(task(path))
    with pytest.raises(InputFileError, match=f"another {what}:"):
        made(task(path, **changes))


def test_images_of_another_network_are_refused(tmp_path: Path) -> None:
    asked = task(tmp_path / "images.safetensors")
    other = facts_of(canonicalize(captured("plain")), asked.image, FEW, 0)
    asked.store.save(Images(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)), other)
    with pytest.raises(InputFileError, match="another network"):
        made(asked)


def test_the_same_weights_in_another_network_are_another_network() -> None:
    network = canonicalize(captured("residual"))
    (first, *_) = network.of("relu")
    other = rebuild(network, [node.replace(op="hard_swish") if node is first else node for node in network.nodes])
    spec = image_spec(network.input_shape, HALF, HALF)
    assert facts_of(network, spec, FEW, 0)["network"] != facts_of(other, spec, FEW, 0)["network"]


def test_a_resumed_run_goes_on_with_its_own_images(tmp_path: Path) -> None:
    asked = task(tmp_path / "images.safetensors")
    asked = dataclasses.replace(asked, checkpoint=Checkpoint(tmp_path / "x.work"))
    first = made(asked)
    (tmp_path / "images.safetensors").unlink()
    facts = facts_of(asked.captured, asked.image, FEW, 0)
    asked.store.save(Images(first.pixels + 1, first.labels), facts)
    assert torch.equal(made(asked).pixels, first.pixels)
    fresh = dataclasses.replace(asked, checkpoint=Checkpoint(tmp_path / "y.work"))
    assert torch.equal(made(fresh).pixels, first.pixels + 1)
    asked.store.path.unlink()  # type: ignore[union-attr]
    assert torch.equal(made(fresh).pixels, first.pixels + 1)  # what was read is saved too


def test_a_full_disk_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises(OutputFileError, match="--images"):
        made(task(tmp_path / "images.safetensors"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"nothing of the kind"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match=r"images\.safetensors"):
        made(task(path))


def test_another_file_of_tensors_is_no_file_of_images(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputFileError, match="holds no images"):
        made(task(path))


def test_the_number_of_views_does_not_matter_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "images.safetensors"
    first = made(task(path))
    assert torch.equal(made(task(path, distillation=dataclasses.replace(FEW, views=2))).pixels, first.pixels)
