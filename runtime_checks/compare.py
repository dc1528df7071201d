"""How far two tensors are apart: integers in steps of one code, floats in units of the last place of the largest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gdfq_export.runtime_checks.graph import Array

_FAR = 1 << 40  # the most steps that are told apart


@dataclass(frozen=True)
class Difference:
    """Elements compared, elements that differ, and the largest difference in steps."""

    elements: int = 0
    mismatches: int = 0
    max_steps: int = 0

    def __add__(self, other: Difference) -> Difference:
        return Difference(
            self.elements + other.elements,
            self.mismatches + other.mismatches,
            max(self.max_steps, other.max_steps),
        )


def compare(expected: Array, found: Array) -> Difference:
    """The difference of two tensors; those of another shape or kind differ everywhere."""
    size = max(expected.size, found.size)
    if expected.shape != found.shape or expected.dtype.kind != found.dtype.kind:
        return Difference(size, size, size)
    if expected.dtype == found.dtype and expected.tobytes() == found.tobytes():
        return Difference(size)
    steps = _float_steps(expected, found) if expected.dtype.kind == "f" else _integer_steps(expected, found)
    return Difference(size, int(np.count_nonzero(steps)), int(steps.max(initial=0)))


def _integer_steps(expected: Array, found: Array) -> Array:
    return np.abs(expected.astype(np.int64) - found.astype(np.int64))


def _float_steps(expected: Array, found: Array) -> Array:
    """At least one step wherever the two differ; NaN equals NaN and is far from everything else."""
    finite = expected[np.isfinite(expected)]
    unit = np.spacing(np.abs(finite).max(initial=0).astype(np.float32)).astype(np.float64)
    different = (expected != found) & ~(np.isnan(expected) & np.isnan(found))
    with np.errstate(invalid="ignore"):
        steps = np.rint(np.abs(expected.astype(np.float64) - found) / unit)
    bounded = np.clip(np.nan_to_num(steps, nan=_FAR, posinf=_FAR), 1, _FAR)
    return np.where(different, bounded, 0).astype(np.int64)
