"""Accuracy of a model on labelled images.

    top-k = share of the images whose label is among the k largest outputs, in percent

Equal outputs, which a quantized network has more often, rank by class index, as argmax ranks them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfq_export.runtime_checks.errors import CheckError, UnsupportedGraphError
from gdfq_export.runtime_checks.image_input import ImageInput, image_input
from gdfq_export.runtime_checks.images import LabelledImage, Preprocessing, list_images, network_input
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY, load_model
from gdfq_export.runtime_checks.sessions import Session

BATCH = 32  # where the model's batch is dynamic
READERS = 4  # threads that decode images while the network runs
TOP = 5


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images."""

    top1: float
    top5: float
    images: int
    notes: tuple[str, ...]  # what had to be assumed


def evaluate(
    path: Path,
    data: Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    threads: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> Accuracy:
    """Runs the model on every image of `data`; options override the file's own preprocessing."""
    model = load_model(path, max_memory)
    spec = image_input(model, path)
    preprocessing, notes = preprocessing_of(spec, path, mean, std, resize)
    images = list_images(data)
    session = Session(model, threads=threads)
    hits = np.zeros(2, dtype=np.int64)  # top 1, top 5
    done = 0
    for batch, pixels in _batches(images, preprocessing, spec.shape[0]):
        hits += _hits(_outputs(session, pixels, path)[: len(batch)], batch, path)
        done += len(batch)
        if on_progress:
            on_progress(done, len(images))
    top1, top5 = (100 * int(count) / done for count in hits)
    return Accuracy(top1=top1, top5=top5, images=done, notes=notes)


def preprocessing_of(
    spec: ImageInput, path: Path, mean: Sequence[float] | None, std: Sequence[float] | None, resize: int | None
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How images are prepared for the model, and what was assumed because nothing says it."""
    if len(spec.shape) != 4:
        raise UnsupportedGraphError(f"{path}: input {spec.name} has {len(spec.shape)} dimensions; images need 4")
    channels, height, width = spec.image_size
    if channels not in (1, 3) or height is None or width is None:
        raise UnsupportedGraphError(
            f"{path}: input {spec.name} is {spec.shape}, which is no batch of images of one size"
        )
    if spec.channels_last != (spec.dtype == "uint8"):
        raise UnsupportedGraphError(f"{path}: input {spec.name} must be float (N, C, H, W) or uint8 (N, H, W, C)")
    notes = []
    if spec.dtype == "uint8" and (mean or std):
        notes.append("mean and std are ignored: the model takes pixels and normalises them itself")
    elif spec.dtype == "float32":
        for name, given, default in (("mean", mean or spec.mean, 0), ("std", std or spec.std, 1)):
            if given is None:
                notes.append(f"{path.name} does not say its {name}: assuming {default} for pixels in [0, 1]")
    return (
        Preprocessing(
            height=height,
            width=width,
            channels=channels,
            resize=resize or spec.resize,
            mean=_per_channel("mean", mean or spec.mean or (0.0,), channels),
            std=_per_channel("std", std or spec.std or (1.0,), channels),
            raw=spec.dtype == "uint8",
        ),
        tuple(notes),
    )


def _per_channel(name: str, values: Sequence[float], channels: int) -> tuple[float, ...]:
    values = tuple(values) * channels if len(values) == 1 else tuple(values)
    if len(values) != channels:
        raise CheckError(f"{name} has {len(values)} values where the model has {channels} channels")
    if name == "std" and min(values) <= 0:
        raise CheckError(f"std must be positive, not {min(values)}")
    return values


def _batches(
    images: Sequence[LabelledImage], preprocessing: Preprocessing, fixed: int | None
) -> Iterator[tuple[Sequence[LabelledImage], npt.NDArray[Any]]]:
    """Images and pixels (N, ...); decoding runs one batch ahead. A fixed batch is filled up with the last image."""
    size = fixed or BATCH
    with ThreadPoolExecutor(READERS) as pool:

        def start(batch: Sequence[LabelledImage]) -> tuple[Sequence[LabelledImage], list[Any]]:
            return batch, [pool.submit(network_input, image.path, preprocessing) for image in batch]

        pending = None
        for first in range(0, len(images), size):
            started = start(images[first : first + size])
            if pending:
                yield _collected(*pending, fixed)
            pending = started
        if pending:
            yield _collected(*pending, fixed)


def _collected(
    batch: Sequence[LabelledImage], futures: list[Any], fixed: int | None
) -> tuple[Sequence[LabelledImage], npt.NDArray[Any]]:
    pixels = [future.result() for future in futures]
    pixels += [pixels[-1]] * ((fixed or 0) - len(pixels))
    return batch, np.ascontiguousarray(np.stack(pixels))


def _outputs(session: Session, pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """The first output as (N, classes)."""
    first = np.asarray(next(iter(session.run(pixels).values())))
    if first.ndim < 2 or first.size != first.shape[0] * first.shape[1]:
        raise UnsupportedGraphError(f"{path}: its first output is {first.shape}; a classifier's is (N, classes)")
    return first.reshape(first.shape[0], -1)


def _hits(outputs: npt.NDArray[Any], batch: Sequence[LabelledImage], path: Path) -> npt.NDArray[np.int64]:
    """How many images have their label first, and among the first five."""
    labels = np.array([image.label for image in batch])
    if labels.max() >= outputs.shape[1]:
        image = batch[int(labels.argmax())]
        raise CheckError(
            f"{image.path}: class index {image.label} is beyond the {outputs.shape[1]} outputs of {path.name}: "
            "the folders are not this model's classes"
        )
    ranked = np.argsort(-outputs.astype(np.float64), axis=1, kind="stable")[:, :TOP]  # (N, 5)
    found = ranked == labels[:, None]
    return np.array([found[:, 0].sum(), found.sum()])
