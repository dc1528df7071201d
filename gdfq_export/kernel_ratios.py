"""Ratios of scales that ONNX Runtime's kernels take, and scales that grow until all of them are taken.

    sum                sa / sc, sb / sc  < 256           arm64's fixed point ends there, int32 on x86 at 2^22
    product            sa sb / sc        < 256           int32 on x86 ends at 2^15
    mean of a window   sx / sc           < 256           int32 on x86 ends at 2^22
    mean of a map      2^-32 <= sx / (sc N) < 256        the kernel refuses to run elsewhere

Layers and tables clamp before they leave float32, and take all ratios. A result gains nothing by steps that are 128
times smaller than those of what it is made of, so its scale grows until they are not: a few codes are left unused.
Where its saturation is a clip of the network, a larger scale would move the clip: there a sum with a constant becomes a
table, an operand of a sum that nothing else reads loses what the clip cuts away in any case, and everything else is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from gdfq_export.errors import UnsupportedModelError
from gdfq_export.graph import Graph, Node
from gdfq_export.integer import constant_tensor
from gdfq_export.plan import Plan
from gdfq_export.quantizers import Affine

MOST = 128.0  # half of what the kernels take, so that scales may grow a little afterwards
LEAST_MEAN = 2.0**-31  # twice that
SLACK = 1.05  # how far a clip may move: a little more than by the steps of `agreement.py`
NEARLY = 0.999  # rounding to float32 is no reason to grow


def grow_scales(graph: Graph, plan: Plan, affines: Mapping[str, Affine], scales: dict[str, np.float32]) -> set[str]:
    """Raises scales of groups, in place, until every kernel takes them; returns the sums that must become tables."""
    ceilings = ceilings_of(graph, plan, affines)
    tables: set[str] = set()
    for _ in range(len(scales) + 1):  # what grows can make others grow, each group after the last
        grown = False
        for node in graph.nodes:
            for name, least in () if node.name in tables else _least_scales(graph, node, plan, scales):
                group, wanted = plan.tensors[name].group, least / plan.tensors[name].factor
                if scales[group] >= wanted * NEARLY:
                    continue
                if wanted <= ceilings.get(group, math.inf) * SLACK:
                    scales[group], grown = np.float32(wanted), True
                elif node.op == "add_scalar":
                    tables.add(node.name)
                elif node.op == "add" and _shrink_operands(graph, node, plan, scales):
                    grown = True
                else:
                    raise _too_far_apart(node)
        if not grown:
            return tables
    raise UnsupportedModelError(
        "the values of some tensors are so much larger than those of others that no scales suit all kernels: "
        "look for very large weights"
    )


def ceilings_of(graph: Graph, plan: Plan, affines: Mapping[str, Affine]) -> dict[str, float]:
    """Group -> the scale at which its codes end where a clip of the network does that the quantizer stands for."""
    found: dict[str, float] = {}
    for spec in plan.tensors.values():
        node = graph[spec.name]
        if node.op != "clip" or node.inputs[0] not in plan.absorbed:
            continue
        zero_point = affines[spec.group].zero_point
        for limit, codes in ((node.attributes["high"], spec.qmax - zero_point), (-node.attributes["low"], zero_point)):
            if 0.0 < limit < math.inf and codes > 0:
                scale = limit / codes / spec.factor
                found[spec.group] = min(scale, found.get(spec.group, math.inf))
    return found


def _least_scales(
    graph: Graph, node: Node, plan: Plan, scales: Mapping[str, np.float32]
) -> Iterator[tuple[str, float]]:
    """Tensors that the node's kernel reads or writes, and the least scale of each that it takes."""
    made = plan.absorbed.get(node.name, node.name)
    if made not in plan.tensors or any(name not in plan.tensors for name in node.inputs):
        return

    def scale(name: str) -> float:
        return float(scales[plan.tensors[name].group]) * plan.tensors[name].factor

    sources = [scale(name) for name in node.inputs]
    if node.op == "add":
        yield made, max(sources) / MOST
    elif node.op == "add_scalar":
        yield made, max(*sources, float(constant_tensor(node.attributes["value"]).scale)) / MOST
    elif node.op == "mul":
        yield made, math.prod(sources) / MOST
    elif node.op in ("avg_pool", "global_avg_pool"):
        space = graph[node.inputs[0]].shape[1:]
        whole = node.op == "global_avg_pool" or tuple(node.attributes["kernel"]) == space
        count = math.prod(space) if whole else 1
        yield made, sources[0] / count / MOST
        if whole:
            yield node.inputs[0], scale(made) * count * LEAST_MEAN


def _shrink_operands(graph: Graph, node: Node, plan: Plan, scales: dict[str, np.float32]) -> bool:
    """Lowers the scales of operands that are too large for a sum with a clip behind it; whether that could be done.

    A step of such an operand is more than half of what the clip keeps. It still spans 128 times the result's range.
    """
    made, users = plan.tensors[plan.absorbed.get(node.name, node.name)], graph.users()
    most = MOST * float(scales[made.group]) * made.factor
    for spec in (plan.tensors[name] for name in node.inputs):
        group = spec.group
        if float(scales[group]) * spec.factor * NEARLY <= most:
            continue
        members = [name for name, other in plan.tensors.items() if other.group == group]
        if {user.name for name in members for user in users[name]} - {node.name, *members}:
            return False
        scales[group] = np.float32(most / spec.factor)
    return True


def _too_far_apart(node: Node) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"what {node.op} at {node.place or node.name} reads is so much larger than what the clip behind it keeps "
        "that no kernel computes it in integers: look for very large weights there, or remove the clip"
    )
