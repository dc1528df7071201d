"""Optimised images in a file of the user's: made once for a network, read again at every other width.

They depend on the network, the normalisation, the schedule and the seed, and not on what the network is to become. The
file says what it was made for (safetensors, facts in its metadata), and a run that would have asked for others refuses
it. The machine that made them is no part of that: images of a GPU serve on any.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from gdfq_export.distilled import Images
from gdfq_export.distributed import agreed, rank
from gdfq_export.errors import InputFileError
from gdfq_export.files import atomic_path, remove_leftovers
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import Graph, digest_of
from gdfq_export.meaning import meaning_of
from gdfq_export.settings import Distillation

FACTS = "gdfq_export.images"
OPTION = "--images"
FIXES = f"name another file with {OPTION} for this run"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageStore:
    """A file for images; without a path it keeps nothing and finds nothing."""

    path: Path | None = None

    def load(self, facts: dict[str, str]) -> Images | None:
        """What was saved for these facts, in all processes; None where there is no file yet."""
        return agreed(self._read(facts) if rank() == 0 else None)

    def _read(self, facts: dict[str, str]) -> Images | None:
        if self.path is None or not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                saved = json.loads((file.metadata() or {}).get(FACTS, "null"))
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is no mapping
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise InputFileError(f"cannot read the images in {self.path}: name another file with --images") from error
        if not isinstance(saved, dict) or set(tensors) != {"pixels", "labels"}:
            raise InputFileError(f"{self.path} holds no images that --images has saved: name another file")
        other = [name for name, value in facts.items() if saved.get(name) != value]
        if other:
            raise InputFileError(f"the images in {self.path} were made for another {' and '.join(other)}: {FIXES}")
        logger.info("images read from %s", self.path)
        return Images(tensors["pixels"], tensors["labels"])

    def save(self, images: Images, facts: dict[str, str]) -> None:
        """Writes the file, whole or not at all; one that is there already stays."""
        if self.path is None or rank() != 0 or self.path.exists():
            return
        tensors = {"pixels": images.pixels.contiguous(), "labels": images.labels.contiguous()}
        content = save(tensors, {FACTS: json.dumps(facts)})  # to memory first: a full disk is then an OSError
        remove_leftovers(self.path)
        with atomic_path(self.path, OPTION) as temporary:
            temporary.write_bytes(content)


def facts_of(graph: Graph, spec: ImageSpec, schedule: Distillation, seed: int) -> dict[str, str]:
    """What decides which images are asked for, by the name that a message uses."""
    pixels = dataclasses.replace(schedule, views=0)  # views are taken from the images later
    meaning = meaning_of(graph)
    answers = {"meaning of the outputs": f"{meaning.name} above {meaning.threshold}"} if meaning.decides else {}
    return {
        **answers,
        "network": digest_of(graph),
        "normalisation": json.dumps([spec.shape, spec.low, spec.high]),
        "preset or method": json.dumps(dataclasses.asdict(pixels)),
        "seed": str(seed),
        "version of PyTorch": torch.__version__,
    }
