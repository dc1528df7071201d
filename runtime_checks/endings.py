"""What stands behind the last exact number: a softmax, in float, which machines round differently."""

from __future__ import annotations

from gdfq_export.runtime_checks.graph import Graph

ENDINGS = ("Softmax", "LogSoftmax")


def before_endings(graph: Graph) -> dict[str, str]:
    """Output -> the tensor that its ending is computed from, for the outputs that have one."""
    found = {}
    for output in graph.outputs:
        name = output
        while (node := graph.producers.get(name)) is not None and node.op in ENDINGS:
            name = node.inputs[0]
        if name != output and name in graph.producers:
            found[output] = name
    return found
