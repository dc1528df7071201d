"""Accuracy of a model on labelled images.

    top-k = share of the images whose label is among the k largest outputs, in percent

Equal outputs, which a quantized network has more often, rank by class index, as argmax ranks them. One output is a
decision between the classes 0 and 1: it is right where it is above its threshold for class 1 and not for class 0.
Several decisions (behind sigmoids) may all be yes, while a folder names one class: they are ranked like any outputs,
and `decisions` is the share of all of them that are right where the folder's class alone is a yes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gdfq_export.runtime_checks.errors import UnsupportedGraphError
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.images import LabelledImage, list_images, network_input
from gdfq_export.runtime_checks.input_spec import Preprocessing, input_spec, preprocessing_of
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY, load_model
from gdfq_export.runtime_checks.metadata import read_provenance
from gdfq_export.runtime_checks.output_spec import OutputSpec, output_spec
from gdfq_export.runtime_checks.sessions import Session

BATCH = 32  # where the model's batch is dynamic
READERS = 4  # threads that decode images while the network runs
TOP = 5
ONE_CLASS_A_FOLDER = (
    "each output is a decision of its own, and a folder names one class: top-1 and top-5 rank the outputs, and "
    "decisions count as right where the folder's class alone is a yes"
)


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images."""

    top1: float
    top5: float
    images: int
    outputs: int
    decisions: float | None  # right ones of all outputs of all images, where each output is a decision
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
    labels: Sequence[str] | None = None,
) -> Accuracy:
    """Runs the model on every image of `data`; options override the file's own preprocessing and labels."""
    model = load_model(path, max_memory)
    graph, provenance = graph_from_model(model), read_provenance(model)
    spec = input_spec(graph, provenance)
    preprocessing, notes = preprocessing_of(spec, path.name, mean, std, resize)
    session = Session(model, threads=threads)
    empty = _outputs(session, np.zeros((spec.batch or 1, *spec.shape), spec.dtype), path)
    output = output_spec(graph, provenance, empty.shape[1])
    if output.threshold is not None and empty.dtype.kind != "f":
        raise UnsupportedGraphError(
            f"{path}: its output is {empty.dtype.name}, codes whose zero is not known: dequantize it in the file"
        )
    images = list_images(data, output.classes, labels or output.labels)
    hits = np.zeros(3, dtype=np.int64)  # top 1, top 5, decisions
    done = 0
    for batch, pixels in _batches(images, preprocessing, spec.batch):
        found = _outputs(session, pixels, path)[: len(batch)]
        hits += _hits(found, np.array([image.label for image in batch]), output)
        done += len(batch)
        if on_progress:
            on_progress(done, len(images))
    several = output.threshold is not None and output.count > 1
    return Accuracy(
        top1=100 * int(hits[0]) / done,
        top5=100 * int(hits[1]) / done,
        images=done,
        outputs=output.count,
        decisions=None if output.threshold is None else 100 * int(hits[2]) / (done * output.count),
        notes=(*notes, ONE_CLASS_A_FOLDER) if several else notes,
    )


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


def _hits(outputs: npt.NDArray[Any], labels: npt.NDArray[Any], output: OutputSpec) -> npt.NDArray[np.int64]:
    """How many images have their label first, and among the first five; and how many decisions are right."""
    right = 0
    if output.threshold is not None:
        wanted = labels[:, None] == (1 if output.count == 1 else np.arange(output.count))  # (N, outputs)
        right = int(((outputs > output.threshold) == wanted).sum())
    if output.count == 1:
        return np.array([right, len(labels), right])  # both classes are among the first five
    ranked = np.argsort(-outputs.astype(np.float64), axis=1, kind="stable")[:, :TOP]  # (N, 5)
    found = ranked == labels[:, None]
    return np.array([found[:, 0].sum(), found.sum(), right])
