"""Second-order rounding: what rounding one weight costs is made good by the weights that are not rounded yet.

    min over w_hat    (w - w_hat) H (w - w_hat)^T,    H = Cov(x) + damping * mean(diag(Cov(x))) * I

for each output channel, where x are the values that one position of the layer reads (Frantar et al. 2022, OBQ and
GPTQ). Weights are rounded one after the other, those with the largest variance first; each error e moves the weights
to come by -e / U_kk * U_k,k+1.., with U^T U = H^-1 and U upper triangular. Means are left to the bias, which is
corrected with every layer. Layers follow each other in the order of the graph, each on inputs that the layers before
it have rounded.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.fakequant import FakeQuantProgram
from gdfq_export.graph import INPUT, Node, rebuild
from gdfq_export.lower import Quantized, Target, is_depthwise
from gdfq_export.ops import KERNELS, LAYERS, torch_padding
from gdfq_export.program import as_many_as_fit
from gdfq_export.progress import Progress, silent
from gdfq_export.quantizers import over_channels, quantize_weight
from gdfq_export.saturation import partners
from gdfq_export.stopwatch import Stopwatch

DAMPING = 0.5  # synthetic images say less about the weak directions of H than about the strong ones
POSITIONS = 4096  # at least so many are looked at, and four for each weight of a channel
FLOAT_NOISE = 1e-9
MOST_WEIGHTS = 5120  # of an output channel: the rows of longer ones are rounded to nearest, H would be too large
BLOCK = 128  # columns whose errors reach the others in one product
CHUNK = 1 << 24  # values that are gathered at a time
STAGE = "rounding weights"


def round_by_second_order(
    quantized: Quantized,
    images: Tensor,
    target: Target,
    progress: Progress = silent,
    stopwatch: Stopwatch | None = None,
) -> Quantized:
    """Weights on the grid, and biases that keep each layer's mean output over the images.

    Layers for which there is no time are rounded to nearest.
    """
    program = _Rounding(quantized, target, progress, stopwatch or Stopwatch(None))
    program(as_many_as_fit(quantized.graph, images))
    return program.rounded()


class _Rounding(FakeQuantProgram):
    """Runs the float network beside the rounded one, and rounds each layer when its inputs are there."""

    def __init__(self, quantized: Quantized, target: Target, progress: Progress, stopwatch: Stopwatch) -> None:
        super().__init__(quantized, learned_steps=False)
        self.start, self.target, self.progress, self.stopwatch = quantized, target, progress, stopwatch
        self.pace = 0.0  # seconds for a unit of work, in the layer before
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}

    @torch.no_grad()
    def forward(self, x: Tensor, visit: object = None) -> Tensor:
        """Rounds the layers on the way; returns the logits of the rounded network."""
        graph = self.graph
        rounded: dict[str, Tensor] = {}
        exact: dict[str, Tensor] = {}
        for index, node in enumerate(graph.nodes):
            held = {role: graph.parameters[key] for role, key in node.parameters.items()}
            sources = [exact[name] for name in node.inputs]
            exact[node.name] = x if node.op == INPUT else KERNELS[node.op](node, sources, held)
            sources = [rounded[name] for name in node.inputs]
            if node.op in LAYERS:
                value = self._layer(node, sources[0], exact[node.name], held, index)
                self.progress(STAGE, len(self.weights), len(self.plan.weights))
            elif node.op == INPUT or self._is_saturation(node):
                value = x if node.op == INPUT else sources[0]
            else:
                value = KERNELS[node.op](node, sources, held)
            rounded[node.name] = self._round(node.name, value) if node.name in self.plan.sources else value
            for name in node.inputs:
                if self.last_use[name] == index and name != graph.output:
                    rounded.pop(name, None)
                    exact.pop(name, None)
        return rounded[graph.output]

    def _layer(self, node: Node, x: Tensor, wanted: Tensor, held: dict[str, Tensor], seed: int) -> Tensor:
        """Rounds one layer; its result on x, with the mean of the wanted one."""
        weight, scale = held["weight"], self.start.weight_scales[node.name].double()
        qmax = self.plan.weights[node.name].qmax
        work = _work(node, weight)
        if weight[0].numel() > MOST_WEIGHTS or self.stopwatch.is_over() or not self.stopwatch.fits(self.pace * work):
            codes = quantize_weight(weight.double(), scale, qmax)
        else:
            begun = self.stopwatch.clock()
            codes = self._codes(node, x, weight, scale, seed)
            self.pace = (self.stopwatch.clock() - begun) / work
        hat = (codes * over_channels(scale, weight)).to(weight)
        value = KERNELS[node.op](node, [x], {**held, "weight": hat})
        axes = (0, *range(2, value.ndim)) if node.op == "conv" else tuple(range(value.ndim - 1))
        shift = (value - wanted).mean(axes)
        self.weights[node.name] = hat
        self.biases[node.name] = held.get("bias", torch.zeros_like(shift)) - shift
        return value - (shift.view(-1, *[1] * (value.ndim - 2)) if node.op == "conv" else shift)

    def _codes(self, node: Node, x: Tensor, weight: Tensor, scale: Tensor, seed: int) -> Tensor:
        """The codes of one layer, in the shape of its weights."""
        groups = node.attributes.get("groups", 1)
        covariance = covariance_of(node, x, weight.shape[2:], torch.Generator().manual_seed(seed))
        limits = None
        if self.target.pair_sums and not is_depthwise(self.graph, node):
            partner = torch.from_numpy(partners(tuple(weight.shape)))
            limits = PairLimits(partner, self.plan.tensors[node.inputs[0]].qmax)
        flat = weight.double().reshape(groups, -1, weight[0].numel())
        qmax = self.plan.weights[node.name].qmax
        return compensated_codes(flat, scale.view(groups, -1), covariance, qmax, limits).reshape(weight.shape)

    def rounded(self) -> Quantized:
        """The network with what was found."""
        nodes: list[Node] = []
        parameters: dict[str, Tensor] = {}
        for node in self.graph.nodes:
            if node.name in self.weights:
                roles = {role: f"{node.name}/{role}" for role in ("weight", "bias")}
                parameters |= {roles["weight"]: self.weights[node.name], roles["bias"]: self.biases[node.name]}
                node = node.replace(parameters={**node.parameters, **roles})
            nodes.append(node)
        return dataclasses.replace(self.start, graph=rebuild(self.graph, nodes, parameters=parameters))


def _work(node: Node, weight: Tensor) -> float:
    """What a layer's rounding costs, in units of its own: the covariance, its factors, and the columns."""
    groups, size = node.attributes.get("groups", 1), weight[0].numel()
    return float(groups * size * size * (max(POSITIONS, 4 * size) + len(weight) / groups + size))


@dataclass(frozen=True, eq=False)
class PairLimits:
    """Which weights a kernel adds up in a saturating int16 (see `saturation.py`)."""

    partner: Tensor  # (K,) the other weight of each one's pair, -1 without one
    amax: int  # the largest activation code

    def bounds(self, other: Tensor, qmax: int) -> tuple[Tensor, Tensor]:
        """The codes that fit beside another one."""
        low = -(32768 // self.amax) - other.clamp(max=0)
        high = 32767 // self.amax - other.clamp(min=0)
        return low.clamp(min=-qmax), high.clamp(max=qmax)


def compensated_codes(
    weight: Tensor, scale: Tensor, covariance: Tensor, qmax: int, limits: PairLimits | None = None
) -> Tensor:
    """Codes (G, O, K) of weights (G, O, K) with scales (G, O) for inputs of covariance (G, K, K), all doubles."""
    size = weight.shape[2]
    variance = covariance.diagonal(dim1=1, dim2=2)  # (G, K)
    damping = (DAMPING * variance.mean(1, keepdim=True)).clamp_min(torch.finfo(torch.float64).tiny ** 0.5)
    order = torch.argsort(variance.mean(0), descending=True, stable=True)
    damped = covariance[:, order[:, None], order]
    damped.diagonal(dim1=1, dim2=2).add_(damping)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper = torch.linalg.cholesky(inverse, upper=True)  # (G, K, K)
    del damped, inverse  # as large as all weights of a wide layer, many times over
    rest, codes = weight[:, :, order].clone(), torch.zeros_like(weight)
    place = torch.argsort(order)
    partner = [-1] * size if limits is None else limits.partner[order].tolist()
    for begin in range(0, size, BLOCK):
        end = min(begin + BLOCK, size)
        errors = torch.zeros_like(rest[:, :, begin:end])
        for k in range(begin, end):
            code = torch.round(rest[:, :, k] / scale).clamp(-qmax, qmax)
            other = int(place[partner[k]]) if partner[k] >= 0 else size
            if limits is not None and other < k:
                code = code.clamp(*limits.bounds(codes[:, :, other], qmax))
            codes[:, :, k] = code
            error = (rest[:, :, k] - code * scale) / upper[:, None, k, k]  # (G, O)
            errors[:, :, k - begin] = error
            rest[:, :, k + 1 : end] -= error[:, :, None] * upper[:, None, k, k + 1 : end]
        rest[:, :, end:] -= errors @ upper[:, begin:end, end:]
    return codes[:, :, place]


def covariance_of(node: Node, x: Tensor, kernel: torch.Size, randomness: torch.Generator) -> Tensor:
    """Covariance (G, K, K) of what a layer reads at random positions of its inputs."""
    if node.op == "linear":
        columns = x.flatten(0, -2).t().double()
        return with_float_noise(torch.cov(columns, correction=0).reshape(1, len(columns), -1), columns.mean(1)[None])
    a = node.attributes
    x = F.pad(x, torch_padding(a["pads"])) if any(a["pads"]) else x
    images, channels, *sides = x.shape
    outputs = [
        (side - dilation * (k - 1) - 1) // stride + 1
        for side, k, stride, dilation in zip(sides, kernel, a["stride"], a["dilation"], strict=True)
    ]
    size = channels // a["groups"] * math.prod(kernel)
    each = min(math.ceil(max(POSITIONS, 4 * size) / images), math.prod(outputs))
    steps = [math.prod(sides[axis + 1 :]) for axis in range(len(sides))]
    starts = _flat_places(outputs, [stride * step for stride, step in zip(a["stride"], steps, strict=True)])
    offsets = _flat_places(list(kernel), [dilation * step for dilation, step in zip(a["dilation"], steps, strict=True)])
    chosen = torch.stack([torch.randperm(len(starts), generator=randomness)[:each] for _ in range(images)])
    index = starts[chosen][:, None, :] + offsets[None, :, None]  # (N, k, P)
    parts = max(1, math.ceil(images * channels * offsets.numel() * each / CHUNK))
    count = images * each
    total = torch.zeros(a["groups"], size, size, dtype=torch.float64)
    mean = torch.zeros(a["groups"], size, dtype=torch.float64)
    middle: Tensor | None = None  # near the mean, so that little cancels
    for values, places in zip(x.chunk(parts), index.chunk(parts), strict=True):
        read = values.flatten(2)[:, :, None].expand(-1, -1, len(offsets), -1)
        found = torch.gather(read, 3, places[:, None].expand(-1, channels, -1, -1))  # (N, C, k, P)
        columns = found.reshape(len(values), a["groups"], size, -1).permute(1, 2, 0, 3).flatten(2)
        middle = columns.mean(2, keepdim=True) if middle is None else middle
        columns = columns - middle
        total = total + (columns @ columns.transpose(1, 2)).double()
        mean = mean + columns.double().sum(2) / count
    assert middle is not None
    return with_float_noise(total / count - mean[:, :, None] * mean[:, None, :], middle[:, :, 0].double() + mean)


def with_float_noise(covariance: Tensor, mean: Tensor) -> Tensor:
    """(G, K, K) plus what float32 may be off on the diagonal: inputs that never change have no variance at all."""
    variance = covariance.diagonal(dim1=1, dim2=2).clamp(min=0.0)
    noise = FLOAT_NOISE * (variance + mean.square())
    covariance.diagonal(dim1=1, dim2=2).copy_(variance + noise)
    return covariance


def _flat_places(sides: list[int], steps: list[int]) -> Tensor:
    """Offsets into a flat tensor of all points of a grid, the last axis fastest."""
    axes = [[index * step for index in range(side)] for side, step in zip(sides, steps, strict=True)]
    return torch.tensor([sum(point) for point in itertools.product(*axes)])
