"""What a verification found, as one list: layer, cause, detail; first what the file itself shows, then what ran."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdfq_export.runtime_checks.causes import CLIPPED_BIAS, NOT_FUSED, OVERFLOW, SATURATION
from gdfq_export.runtime_checks.hashes import GRAPH_GROUP, METADATA_GROUPS

if TYPE_CHECKING:
    from gdfq_export.runtime_checks.bisect import BisectResult
    from gdfq_export.runtime_checks.verify import VerifyResult

CHANGED_PARAMETERS = "changed parameters"
CHANGED_GRAPH = "changed graph"
CHANGED_FACTS = "changed metadata"
OVERRIDABLE = "can be overridden"
WRONG_BIAS_SCALE = "wrong bias scale"
MACHINE_DEPENDENT = "differs between machines"
GOLDEN_DIFFERS = "stored outputs differ"
MISMATCH = "differs from the reference"

_CAUSES = {
    "saturation": SATURATION,
    "overflow": OVERFLOW,
    "bias": CLIPPED_BIAS,
    "bias_scale": WRONG_BIAS_SCALE,
    "isa": MACHINE_DEPENDENT,
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a file, or that makes it slower than it should be."""

    layer: str  # "" for the graph as a whole
    cause: str
    detail: str


def findings_of(result: VerifyResult, first_difference: BisectResult | None = None) -> list[Finding]:
    """Everything that `result` shows; `first_difference` explains the mismatches where there are any."""
    found = []
    for group in result.changed_groups or ():
        if group == GRAPH_GROUP:
            found.append(Finding("", CHANGED_GRAPH, "the operators are not those that were hashed"))
        elif group in METADATA_GROUPS:
            found.append(Finding("", CHANGED_FACTS, f"'{group}' is not what was hashed"))
        else:
            found.append(Finding(group, CHANGED_PARAMETERS, "the parameters are not those that were hashed"))
    for row in result.proofs:
        if not row.proved:
            found.append(Finding(row.layer, _CAUSES[row.property], f"{row.detail}: {row.number:.10g}"))
    for operator in result.coverage.float_operators:
        found.append(Finding(operator.name, NOT_FUSED, operator.reason))
    if first_difference is not None:
        found.append(Finding(first_difference.layer, first_difference.cause, first_difference.detail))
    else:
        for level, tensors in result.levels.items():
            differing = [item.name for item in tensors.tensors if item.difference.mismatches and not item.in_float]
            if level == "all" and differing:
                found.append(Finding(differing[0], MISMATCH, f"{len(differing)} tensors, the first in order named"))
    found += [Finding("", OVERRIDABLE, f"'{name}' is an input of the graph as well") for name in result.overridable]
    if result.golden is not None and result.golden.mismatches:
        found.append(Finding("", GOLDEN_DIFFERS, f"{result.golden.mismatches} of {result.golden.elements} elements"))
    return found
