"""Which operations may stay float: none, but for those that the user names.

A regular expression is looked for in the operation's name and in the path of its module. What is named is computed
between a DequantizeLinear and a QuantizeLinear, and reported; everything else without an integer form is refused.
"""

from __future__ import annotations

import re

from gdfq_export.errors import Reason, UsageError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.ops import FLOAT_ONLY
from gdfq_export.reasons import divides_by_a_norm, refusal

NORMALISING = frozenset({"constant", "add", "sub", "mul", "div", "add_scalar", "mul_scalar"})


def _normalises_input(graph: Graph, node: Node) -> bool:
    """Whether a node reads only constants and the input, of which sums and products with constants are made."""
    reached, names = set[str](), {node.name}
    while names:
        current = graph[names.pop()]
        reached.add(current.op)
        names.update(current.inputs)
    return INPUT in reached and reached <= {INPUT, *NORMALISING}


def float_parts(graph: Graph, allowed: str | None) -> tuple[Node, ...]:
    """The operations that will run in float; an error for those that the user did not name."""
    if reasons := float_reasons(graph, allowed):
        raise refusal(reasons)
    return tuple(graph.of(*FLOAT_ONLY))


def float_reasons(graph: Graph, allowed: str | None) -> list[Reason]:
    """Why operations without an integer form cannot be, but for those that the user named."""
    try:
        pattern = None if allowed is None else re.compile(allowed)
    except re.error as error:
        raise UsageError(f"--allow-float {allowed!r} is no regular expression: {error}") from error
    reasons = []
    for node in graph.of(*FLOAT_ONLY):
        by_name = pattern is not None and bool(pattern.search(node.op))
        if node.op == "div" and not by_name and _normalises_input(graph, node):
            advice = "take (x - mean) / std out of the model, and pass --mean and --std"
            reasons.append(Reason(node.op, node.place, "normalises the input of the network itself", advice))
        elif by_name or (pattern is not None and pattern.search(node.place)):
            continue
        elif node.op != "div" or not divides_by_a_norm(graph, node):
            advice = f"replace it in the model, or leave it in float with --allow-float {node.op}"
            reasons.append(Reason(node.op, node.place, "has no exact integer form", advice))
    return reasons
