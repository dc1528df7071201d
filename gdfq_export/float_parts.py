"""Which operations may stay float: none, but for those that the user names.

A regular expression is looked for in the operation's name and in the path of its module. What is named is computed
between a DequantizeLinear and a QuantizeLinear, and reported; everything else without an integer form is refused.
"""

from __future__ import annotations

import re

from gdfq_export.errors import UnsupportedModelError, UsageError
from gdfq_export.graph import Graph, Node
from gdfq_export.ops import FLOAT_ONLY


def float_parts(graph: Graph, allowed: str | None) -> tuple[Node, ...]:
    """The operations that will run in float; an error for the first one that the user did not name."""
    try:
        pattern = None if allowed is None else re.compile(allowed)
    except re.error as error:
        raise UsageError(f"--allow-float {allowed!r} is no regular expression: {error}") from error
    parts = tuple(graph.of(*FLOAT_ONLY))
    for node in parts:
        if pattern is None or not (pattern.search(node.op) or pattern.search(node.place)):
            raise UnsupportedModelError(
                f"{node.op} at {node.place} has no exact integer form: replace it in the model, or leave it in float "
                f"with --allow-float {node.op}"
            )
    return parts
