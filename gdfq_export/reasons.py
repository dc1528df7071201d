"""Why a network is refused: what it returns first, then each operator once with its places, in one paragraph.

While a program is translated, an operator that cannot be becomes a *stand-in*, a node that keeps its inputs and its
shape, so that everything behind it is read as well. What stands around a stand-in decides the advice: what only stands
behind the logits can be computed there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gdfq_export.errors import Reason, UnsupportedModelError
from gdfq_export.graph import Graph, Node
from gdfq_export.ops import LAYERS, STAND_IN

NAMED_PLACES = 3
NORM = "linalg_vector_norm"
OUTPUT = "output"  # of what the network returns, see `errors.Reason`
CUT = "cut the last layers off, return what stands before it, and compute it behind the network"
NORMALISE = "normalise behind the network, and return what stands before it"
NORMALISE_LOGITS = "normalise behind the network: it changes all logits of an image by one factor, and not their order"
OF_A_NORM = frozenset({"clip", "expand", "reshape", "add_scalar", "mul_scalar"})  # x / (norm + eps), and the like
LINEAR = frozenset({"div", "linear", "mul_scalar", *OF_A_NORM})
ADVICE = {
    **dict.fromkeys(("group_norm", "layer_norm", "rms_norm"), "use batch norm, whose statistics stand in for data"),
    **dict.fromkeys(
        ("matmul", "bmm", "einsum", "scaled_dot_product_attention"),
        "replace products of two tensors of the image by layers, since only convolutions and linear layers have "
        "integer forms",
    ),
    **dict.fromkeys(("conv_transpose2d", "conv_transpose1d"), "replace it by nn.Upsample and a convolution"),
    "pow": "write a square as x * x",
}
"""Operator -> what to do, where there is more to say than that it is in the way."""


def refusal(reasons: Sequence[Reason]) -> UnsupportedModelError:
    """One error for all reasons; reasons that differ in their place alone are one."""
    groups: dict[Reason, list[str]] = {}
    for reason in reasons:
        places = groups.setdefault(dataclasses.replace(reason, place=""), [])
        if reason.place not in places:
            places.append(reason.place)
    sentences = [str(dataclasses.replace(reason, place=_listed(places))) for reason, places in groups.items()]
    if len(sentences) > 1:
        numbered = "; ".join(f"({index}) {sentence}" for index, sentence in enumerate(sentences, start=1))
        return UnsupportedModelError(f"the network is not supported, for {len(sentences)} reasons: {numbered}", reasons)
    return UnsupportedModelError(sentences[0], reasons)


def _listed(places: Sequence[str]) -> str:
    named = [*places[:NAMED_PLACES]]
    if len(places) > NAMED_PLACES:
        more = len(places) - NAMED_PLACES
        named.append(f"{more} more place{'s' if more > 1 else ''}")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def output_reasons(graph: Graph) -> list[Reason]:
    """Why what the network returns cannot be logits; none where each image gets one number for each class."""
    shape, image = graph[graph.output].shape, graph.input_shape
    if len(shape) == 1:
        return []
    if len(shape) == 3 and shape[1:] == (1, 1):
        advice = "flatten it at the end"
    elif len(shape) == 3 and len(image) == 3 and 2 * shape[1] >= image[1] and 2 * shape[2] >= image[2]:
        advice = "only classifiers are supported, and no networks that return an image or a mask"
    elif len(shape) == 3:
        advice = (
            "add the pooling and the classifier that belong behind these features, or wrap it in a module that does"
        )
    else:
        advice = "cut the last layers off, or wrap it in a module that returns those numbers"
    problem = (
        f"returns a tensor of shape {list(shape)} for each image, but a classifier returns one number for each class"
    )
    return [Reason(OUTPUT, graph[graph.output].place or "the model", problem, advice)]


def stand_in_reasons(graph: Graph) -> list[Reason]:
    """Those of all stand-ins, with the advice that what stands around each of them gives."""
    reasons: list[Reason] = []
    for node in graph.of(STAND_IN):
        reasons += [_advised(graph, node, reason) for reason in node.attributes["reasons"]]
    return reasons


def divides_by_a_norm(graph: Graph, node: Node) -> bool:
    """Whether a division belongs to a norm that is refused already."""
    divisor = graph[node.inputs[1]]
    while divisor.op in OF_A_NORM:
        divisor = graph[divisor.inputs[0]]
    return divisor.op == STAND_IN and any(reason.operator == NORM for reason in divisor.attributes["reasons"])


def _advised(graph: Graph, node: Node, reason: Reason) -> Reason:
    behind = _behind(graph, node)
    is_ending = bool(node.inputs) and not any(user.op in LAYERS for user in behind)
    if is_ending and all(len(graph[name].shape) == 1 for name in node.inputs):
        return dataclasses.replace(reason, advice=NORMALISE if reason.operator == NORM else CUT)
    if reason.operator == NORM and all(_keeps_factors(user) for user in behind):
        return dataclasses.replace(reason, advice=NORMALISE_LOGITS)
    return dataclasses.replace(reason, advice=ADVICE.get(reason.operator, reason.advice))


def _keeps_factors(node: Node) -> bool:
    """Whether the result of a multiple is the multiple of the result; what adds to a norm is part of it."""
    return node.op in LINEAR and not (node.op == "linear" and "bias" in node.parameters)


def _behind(graph: Graph, node: Node) -> list[Node]:
    """Everything that depends on a node."""
    reached, found = {node.name}, []
    for other in graph.nodes:
        if not reached.isdisjoint(other.inputs):
            reached.add(other.name)
            found.append(other)
    return found
