"""folded graph -> quantization plan: for every tensor its bits, signedness, symmetry, granularity and group.

The plan is a value. Nothing about quantization hides in the graph's nodes, so that what `--dry-run` prints is what
training simulates and lowering emits. Rules:

- A tensor whose only reader is a ReLU or Clip is *absorbed*: the reader's quantizer saturates where the
  activation clips, so the activation costs nothing and the producer stays one integer kernel.
- Data movement (reshape, max pool, concat, ...) shares the range of its input: the codes move unchanged.
- A concat joins the ranges of its inputs when all of them are unsigned or none is; otherwise the concat kernel
  requantizes through tables.
- A ReLU or Clip that cannot be absorbed clips the codes, so it shares its input's range too.
- A product with a positive constant reads the same codes with another scale (*derived*).
- What only functions and products read is a step inside an activation or a gate: it keeps 8 bits at any width, as
  codes of kernels do anyway. What layers read and sums add has the stated width.
- Logits of a linear layer leave as accumulators times scale: nothing is rounded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gdfq_export.errors import UnsupportedModelError, UsageError
from gdfq_export.graph import INPUT, Graph, Node
from gdfq_export.groups import Groups
from gdfq_export.ops import ENDINGS, FUNCTIONS, LAYERS, MOVEMENT

Symmetry = Literal["unsigned", "affine"]
MIN_BITS, MAX_BITS = 2, 8
OUTPUT_BITS = 8
CODE_CLIPS = frozenset({"relu", "clip"})
INNER = FUNCTIONS | {"mul", "add_scalar"}  # what activations and gates are made of
NON_NEGATIVE = frozenset({"relu", "sigmoid", "softplus", "exp", "reciprocal"})


@dataclass(frozen=True)
class BitWidths:
    """What the user asked for."""

    weight: int
    activation: int
    first_last: int | None = None  # other width for the first and last layer
    image: int = 8  # of the input: pixels have 8 bits, and the paper does not round them at all
    sums: int | None = None  # other width for residual sums

    def __post_init__(self) -> None:
        for value in dataclasses.astuple(self):
            if value is not None and not MIN_BITS <= value <= MAX_BITS:
                raise UsageError(f"{value} bits cannot be had: choose {MIN_BITS} to {MAX_BITS}")

    @property
    def narrow(self) -> bool:
        """Whether anything is rounded to less than 8 bits."""
        return any(width not in (None, MAX_BITS) for width in dataclasses.astuple(self))


@dataclass(frozen=True)
class TensorSpec:
    """How one activation tensor is held: `bits` wide unsigned codes with one scale and zero point."""

    name: str
    bits: int
    symmetry: Symmetry  # unsigned: zero point 0; affine: any zero point
    group: str  # the tensor whose range all members of the group share
    low: float  # bounds that the range may not exceed
    high: float
    factor: float  # derived: scale = factor * scale of the group
    reason: str

    @property
    def qmax(self) -> int:
        """Largest code; the smallest is 0."""
        return (1 << self.bits) - 1


def holds_pixels(members: Sequence[TensorSpec]) -> bool:
    """Whether a group is the image with all bits of its pixels: every code is used, and the scale is given."""
    first = members[0]
    return first.group == INPUT and first.bits == MAX_BITS and math.isfinite(first.high - first.low)


@dataclass(frozen=True)
class WeightSpec:
    """How one layer's weights are held: symmetric narrow range, one scale for each output channel."""

    layer: str
    bits: int
    reason: str

    @property
    def qmax(self) -> int:
        """Codes are -qmax..qmax."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Plan:
    """Every quantized tensor and layer of a graph; a tensor that is not listed is absorbed or leaves as float."""

    tensors: dict[str, TensorSpec]
    weights: dict[str, WeightSpec]
    absorbed: dict[str, str]  # producer -> the activation whose quantizer does its clipping
    sources: frozenset[str]  # tensors that are rounded when they are made; the others move codes
    observed: frozenset[str]  # tensors with values of their own: the sources, and what padding brings in

    def groups(self) -> dict[str, list[TensorSpec]]:
        """Group -> its members in graph order."""
        table: dict[str, list[TensorSpec]] = {}
        for spec in self.tensors.values():
            table.setdefault(spec.group, []).append(spec)
        return table

    def rows(self) -> list[tuple[str | int, ...]]:
        """The plan as a table: tensor, kind, bits, sign, symmetry, granularity, shares with, reason."""
        rows: list[tuple[str | int, ...]] = []
        for spec in self.tensors.values():
            share = "" if spec.group == spec.name else spec.group
            rows.append((spec.name, "tensor", spec.bits, "unsigned", spec.symmetry, "per tensor", share, spec.reason))
        for weight in self.weights.values():
            rows.append((weight.layer, "weight", weight.bits, "signed", "symmetric", "per channel", "", weight.reason))
            reason = "scale = input's scale * weight's scale"
            rows.append((weight.layer, "bias", 32, "signed", "symmetric", "per channel", "", reason))
        return rows


def quantized_part(graph: Graph) -> tuple[list[Node], str]:
    """The nodes up to the logits, and the tensor that is the last of the integer part."""
    names = set()
    output = graph.output
    while graph[output].op in ENDINGS:
        names.add(output)
        output = graph[output].inputs[0]
    return [node for node in graph.nodes if node.name not in names], output


def without_endings(graph: Graph) -> tuple[Graph, tuple[Node, ...]]:
    """The graph up to its logits, and what stands behind them."""
    nodes, output = quantized_part(graph)
    kept = {node.name for node in nodes}
    endings = tuple(node for node in graph.nodes if node.name not in kept)
    return (Graph(tuple(nodes), graph.parameters, output), endings) if endings else (graph, ())


def with_endings(graph: Graph, endings: tuple[Node, ...]) -> Graph:
    """The inverse: puts a softmax back behind the logits."""
    if not endings:
        return graph
    nodes, output = list(graph.nodes), graph.output
    for ending in endings:
        nodes.append(ending.replace(inputs=(output,)))
        output = ending.name
    return Graph(tuple(nodes), graph.parameters, output)


def find_absorbed(graph: Graph) -> dict[str, str]:
    """Producer -> activation, where the activation is the producer's only reader and can be left to the quantizer."""
    users, (nodes, output) = graph.users(), quantized_part(graph)
    absorbed = {}
    for node in nodes:
        source = graph[node.inputs[0]] if node.inputs else None
        if (
            node.op in CODE_CLIPS
            and source is not None
            and source.op not in MOVEMENT | CODE_CLIPS | {INPUT, "mul_scalar"}
            and len(users[source.name]) == 1
            and source.name != output
            and (node.op == "relu" or node.attributes["low"] <= 0.0 <= node.attributes["high"])
        ):
            absorbed[source.name] = node.name
    return absorbed


def non_negative_tensors(graph: Graph) -> set[str]:
    """Tensors that can hold no negative value, by what makes them."""
    found: set[str] = set()
    for node in graph.nodes:
        inputs = [name in found for name in node.inputs]
        keeps = node.op in MOVEMENT | {"avg_pool", "global_avg_pool", "add", "mul", "max"}
        if node.op in ("add_scalar", "mul_scalar"):
            keeps = node.attributes["value"] >= 0
        if node.op == "pad":
            keeps = node.attributes["value"] >= 0
        clipped = node.op == "clip" and node.attributes["low"] >= 0
        if node.op in NON_NEGATIVE or clipped or (keeps and bool(inputs) and all(inputs)):
            found.add(node.name)
    return found


def make_plan(graph: Graph, bits: BitWidths, pixels: tuple[float, float] = (-math.inf, math.inf)) -> Plan:
    """Decides the form of every tensor of a folded graph; `pixels` are the values of black and white, normalised."""
    nodes, output = quantized_part(graph)
    absorbed = find_absorbed(graph)
    positive = non_negative_tensors(graph)
    bounds = {node.name: _bounds(graph, node, absorbed, pixels) for node in nodes}
    groups = _join_groups(graph, nodes, absorbed, positive, bounds)
    signed = {groups.find(node.name) for node in nodes if node.name not in positive and node.name not in absorbed}
    float_logits = graph[output].op == "linear"
    layers = [node for node in nodes if node.op in LAYERS]
    if not layers:
        raise UnsupportedModelError("the network has no convolution or linear layer: there is nothing to quantize")
    ends = {layers[0].name, layers[-1].name}
    inside = _inside_activations(graph, nodes, absorbed, groups)
    widths = dict.fromkeys(inside, MAX_BITS)
    if bits.sums is not None:
        widths |= {groups.find(absorbed.get(node.name, node.name)): bits.sums for node in nodes if node.op == "add"}
    if bits.first_last is not None:
        widths[groups.find(layers[-1].inputs[0])] = bits.first_last
    widths |= {groups.find(output): OUTPUT_BITS, groups.find(INPUT): bits.image}
    tensors: dict[str, TensorSpec] = {}
    factors: dict[str, float] = {}
    for node in nodes:
        if node.name in absorbed or (node.name == output and float_logits):
            continue
        group = groups.find(node.name)
        derived = node.op == "mul_scalar" and node.attributes["value"] > 0
        moved = bool(node.inputs) and groups.find(node.inputs[0]) == group
        factor = factors.get(node.inputs[0], 1.0) if moved else 1.0
        factors[node.name] = factor * node.attributes["value"] if derived else factor
        low, high, reason = bounds[node.name]
        if group in inside and bits.activation < MAX_BITS:
            reason += "; no layer reads it"
        width = widths.get(group, bits.activation)
        symmetry: Symmetry = "affine" if group in signed else "unsigned"
        tensors[node.name] = TensorSpec(node.name, width, symmetry, group, low, high, factors[node.name], reason)
    weights = {}
    for node in layers:
        wide = bits.first_last is not None and node.name in ends
        width = bits.first_last if wide and bits.first_last is not None else bits.weight
        reason = "first or last layer" if wide else f"weights of {node.op}"
        if "bits" in node.attributes:
            width, reason = node.attributes["bits"], "a fixed linear map, not the network's weights"
        weights[node.name] = WeightSpec(node.name, width, reason)
    movers = {name for name in tensors if _moves_codes(graph[name], tensors)}
    sources = frozenset(tensors.keys() - movers)
    padded = {node.name for node in nodes if node.op == "pad" and node.attributes["value"] != 0.0}
    return Plan(tensors, weights, absorbed, sources, sources | padded)


def _inside_activations(graph: Graph, nodes: list[Node], absorbed: dict[str, str], groups: Groups) -> set[str]:
    """Groups that only functions and products read: steps of an activation or of a gate, which no layer sees."""
    users, outer = graph.users(), {groups.find(graph.output)}
    for node in nodes:
        group = groups.find(node.name)
        readers = [] if node.name in absorbed else users[node.name]
        if any(reader.op not in INNER and groups.find(reader.name) != group for reader in readers):
            outer.add(group)
    return {groups.find(node.name) for node in nodes} - outer


def with_weight_bits(plan: Plan, bits: Mapping[str, int]) -> Plan:
    """The plan with other widths for the weights of the named layers."""
    reason = "mixed precision: least sensitivity within the budget"
    weights = {
        layer: WeightSpec(layer, bits[layer], reason) if layer in bits else spec for layer, spec in plan.weights.items()
    }
    return dataclasses.replace(plan, weights=weights)


def _moves_codes(node: Node, tensors: dict[str, TensorSpec]) -> bool:
    """Whether a tensor's codes are those of its inputs, so that nothing is rounded when it is made."""
    movers = MOVEMENT | CODE_CLIPS | {"mul_scalar", "max"}
    shares = [name in tensors and tensors[name].group == tensors[node.name].group for name in node.inputs]
    return node.op in movers and bool(shares) and all(shares)


def _join_groups(
    graph: Graph,
    nodes: list[Node],
    absorbed: dict[str, str],
    positive: set[str],
    bounds: dict[str, tuple[float, float, str]],
) -> Groups:
    """Shares ranges along data movement; several operands are joined when their sign and bounds are the same."""
    groups = Groups(node.name for node in graph.nodes)
    joining: list[Node] = []
    factors: dict[str, float] = {}
    for node in nodes:
        moves = node.op in MOVEMENT or (node.op in CODE_CLIPS and node.inputs[0] not in absorbed)
        derived = node.op == "mul_scalar" and node.attributes["value"] > 0
        if (moves or derived) and len(node.inputs) == 1:
            groups.join(node.inputs[0], node.name)
            factors[node.name] = factors.get(node.inputs[0], 1.0) * (node.attributes["value"] if derived else 1.0)
        elif moves or node.op == "max":
            joining.append(node)

    signed = {groups.find(node.name) for node in nodes if node.name not in positive}
    kinds = {}
    for node in nodes:
        group = groups.find(node.name)
        low, high, _ = bounds[group]
        kinds[node.name] = (group in signed, low if group in signed else 0.0, high)
    for node in joining:
        plain = all(factors.get(name, 1.0) == 1.0 for name in node.inputs)
        if plain and len({kinds[name] for name in node.inputs}) == 1:
            for name in node.inputs:
                groups.join(name, node.name)
    return groups


def _bounds(
    graph: Graph, node: Node, absorbed: dict[str, str], pixels: tuple[float, float]
) -> tuple[float, float, str]:
    """The range that a tensor's codes may not exceed, and why the tensor is quantized as it is."""
    if node.op in CODE_CLIPS:
        low = 0.0 if node.op == "relu" else node.attributes["low"]
        high = math.inf if node.op == "relu" else node.attributes["high"]
        if node.inputs[0] in absorbed:
            return low, high, f"the quantizer's saturation is the {node.op} of {node.inputs[0]}"
        return -math.inf, math.inf, f"{node.op} on the codes of {node.inputs[0]}"
    if node.op == "sigmoid":
        return 0.0, 1.0, "a sigmoid lies in 0..1"
    if node.op == INPUT:
        return *pixels, "the image: its range follows from the normalisation"
    if node.op in MOVEMENT:
        same = "codes are moved, not changed" if node.op != "concat" else "operands of a concat share one range"
        return -math.inf, math.inf, same
    if node.op == "mul_scalar" and node.attributes["value"] > 0:
        return -math.inf, math.inf, f"the codes of {node.inputs[0]} with another scale"
    if node.op == "add":
        return -math.inf, math.inf, "a residual sum has its own range"
    return -math.inf, math.inf, f"output of {node.op}"
