"""What another runtime computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from gdfq_export.runtime_checks.graph import Array


@dataclass(frozen=True, eq=False)
class Answer:
    """The outputs over all images, by name, and who computed them how."""

    version: str
    settings: str
    outputs: Mapping[str, Array]


def joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """The outputs of single images as one array each."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
