"""What the first batch norm says about the input, held against the range that the file will accept.

Batch norm behind the first layer y = w * x + b keeps mean and variance of each y. Averaged over all places of an image,
every weight of a channel reads the same values, so

    mean(y_k) = b_k + sum_c W_k,c(0) m_c                 m_c: mean of channel c, W(f): the weights' Fourier transform
    var(y_k) = integral W_k(f)* S(f) W_k(f) df           S: the input's spectrum, whose trace sums up to its variance

The means follow by least squares. Whatever S is, every choice of l_k >= 0 bounds the input's variance from below:

    sum_k l_k var(y_k)  <=  max_f lambda_max(sum_k l_k W_k(f) W_k(f)*)  *  variance of the input

and the best choice is near. Values within [low, high] of mean m have a variance of at most (m - low) (high - m)
(Bhatia and Davis, 2000). A least variance above that says that the network was trained on other values.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gdfq_export.errors import UsageError
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import INPUT, Graph, Node

MEAN_NOISE = 0.1  # of a stated mean, in deviations of its output: borders and padding shift it
MEAN_SLACK = 0.1  # of half the range: by so much the means may err besides
LEAST_ENERGY = 1e-6  # of an output's weights, as a share of the strongest: pruned ones say nothing
LEAST_GAIN = 1e-6  # variance / energy, as a share of the usual: dead outputs say nothing
STEPS = 30
WORK = 2e9  # operations for all steps, about a second
SPARE_OUTPUTS = 2  # beyond one a channel, to see whether the means fit
LARGEST_MISFIT = 0.1  # trained networks have 0.04 and less, statistics that belong to no input have more
CONTRADICTION = 1.1  # share; networks with their own normalisation have 0.3 and less
LITTLE = 0.05  # share that real images exceed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evidence:
    """What the statistics of one layer ask of the input."""

    layer: str
    low: float  # of the means of the channels, as fed to the network
    high: float
    share: float  # least variance / largest variance that the range allows: above 1 is a contradiction
    misfit: float  # how far the means are from those of any input, in deviations of an output; infinite if unknown


@dataclass(frozen=True, eq=False)
class _First:
    """The first layer and the statistics behind it."""

    layer: Node
    weight: Tensor  # (K, C, taps of axes along which it moves), in double precision
    bias: Tensor  # (K,)
    mean: Tensor  # (K,)
    variance: Tensor  # (K,)
    channels: Tensor  # (C,) the input's channel that each of the weights' channels reads


def check_evidence(graph: Graph, image: ImageSpec, *, is_image: bool) -> None:
    """Stops where the first batch norm has seen values that the range of `image` does not hold."""
    found = input_evidence(graph, image)
    if found is None or (LITTLE <= found.share <= CONTRADICTION):
        return
    said = f"{found.low:.3g}" if f"{found.low:.3g}" == f"{found.high:.3g}" else f"{found.low:.3g} to {found.high:.3g}"
    told = (
        f"batch norm behind {found.layer} has seen inputs with a mean of about {said}, and with more variance than "
        f"values from {min(image.low):.4g} to {max(image.high):.4g} can have"
    )
    advice = "give --mean and --std of the training, or --input-range LOW,HIGH where the input is no image"
    if found.share <= CONTRADICTION:
        if is_image and found.misfit <= LARGEST_MISFIT:
            logger.warning(
                "batch norm behind %s has seen inputs that use little of the range from %.4g to %.4g: see that --mean "
                "and --std are those of the training",
                found.layer,
                min(image.low),
                max(image.high),
            )
    elif found.misfit <= LARGEST_MISFIT:
        raise UsageError(f"{told}: {advice}")
    else:
        logger.warning("%s, as far as its statistics can be read: %s", told, advice)


def input_evidence(graph: Graph, image: ImageSpec) -> Evidence | None:
    """What the first batch norm of a captured graph asks of an input in the range of `image`; None where none tells."""
    found = _first_layer(graph)
    if found is None:
        return None
    # Padding brings in zeros, which other values may not be.
    low = torch.tensor(image.low, dtype=torch.float64).clamp(max=0.0)[found.channels]  # (C,)
    high = torch.tensor(image.high, dtype=torch.float64).clamp(min=0.0)[found.channels]
    middle, half = (low + high) / 2, (high - low) / 2
    place, error, misfit = _mean(found, middle, half)
    away = (place.abs() - MEAN_SLACK - 2 * error).clamp(0.0, 0.999)
    largest = half * (1 - away.square()).sqrt()  # deviation (C,)
    least = _least_variance(found.weight * largest.view(1, -1, *[1] * (found.weight.ndim - 2)), found.variance)
    if least is None:
        return None
    means = middle + half * place
    return Evidence(found.layer.name, float(means.min()), float(means.max()), least / len(half), misfit)


def _first_layer(graph: Graph) -> _First | None:
    """A convolution or linear layer that reads the image and that batch norm reads, with statistics of a training."""
    users = graph.users()
    readers = users[INPUT]
    while len(readers) == 1 and readers[0].op == "reshape":
        readers = users[readers[0].name]
    for layer in readers:
        for norm in users[layer.name] if layer.op in ("conv", "linear") else []:
            if norm.op == "batch_norm":
                return _with_statistics(graph, layer, norm)
    return None


def _with_statistics(graph: Graph, layer: Node, norm: Node) -> _First | None:
    weight, mean, variance = (
        graph.parameters[node.parameters[role]].double()
        for node, role in ((layer, "weight"), (norm, "mean"), (norm, "variance"))
    )
    stored = graph.parameter(layer, "bias")
    bias = torch.zeros_like(mean) if stored is None else stored.double()
    channels = torch.arange(weight.shape[1])
    if layer.op == "linear":
        area = math.prod(graph.input_shape[1:])
        channels = torch.arange(graph.input_shape[0]).repeat_interleave(area)
    elif layer.attributes["groups"] > 1:
        weight, channels = _ungrouped(weight, layer.attributes["groups"]), torch.arange(graph.input_shape[0])
    if layer.op == "conv":
        for places in layer.shape[1:]:
            if places < 2 * weight.shape[2]:  # too few places for all weights to read the same values
                weight, channels = weight.flatten(1, 2), channels.repeat_interleave(weight.shape[2])
            else:
                weight = weight.movedim(2, -1)
    if not bool(mean.any()):
        return None  # never trained
    energy = weight.flatten(1).square().sum(1)  # (K,)
    live = (energy > LEAST_ENERGY * energy.max()) & (variance > LEAST_GAIN * energy * (variance / energy).nanmedian())
    if not bool(live.any()):
        return None
    return _First(layer, weight[live], bias[live], mean[live], variance[live], channels)


def _ungrouped(weight: Tensor, groups: int) -> Tensor:
    """(K, C / groups, ...) -> (K, C, ...): weights of a grouped convolution, with zeros for what they do not read."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    full = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows, columns = slice(group * outputs, (group + 1) * outputs), slice(group * inputs, (group + 1) * inputs)
        full[rows, columns] = weight[rows]
    return full


def _mean(first: _First, middle: Tensor, half: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean of each channel in halves of the range from its middle (C,), its standard error (C,), and the misfit.

    What the outputs do not tell stays in the range: its prior is N(0, 1) in these units.
    """
    total = first.weight.flatten(2).sum(2) if first.weight.ndim > 2 else first.weight  # (K, C)
    deviation = first.variance.sqrt()
    matrix = total * half / deviation[:, None]  # (K, C)
    wanted = (first.mean - first.bias - total @ middle) / deviation  # (K,)
    noise, spare = MEAN_NOISE, len(wanted) - len(half)
    for _ in range(4):  # more noise where the means do not fit
        precision = matrix.T @ matrix / noise**2 + torch.eye(len(half), dtype=matrix.dtype)
        covariance = torch.linalg.inv(precision)
        place = covariance @ (matrix.T @ wanted) / noise**2
        error = float((matrix @ place - wanted).square().sum())
        noise = max(MEAN_NOISE, math.sqrt(error / len(wanted)))
    misfit = math.sqrt(error / spare) if spare >= SPARE_OUTPUTS else math.inf
    return place, covariance.diagonal().sqrt(), misfit


def _least_variance(weight: Tensor, variance: Tensor) -> float | None:
    """The best bound that a few multiplicative steps find on the variance of all channels; None if it takes long."""
    spectrum = _spectrum(weight) / variance.sqrt()[:, None]  # (F, K, C) of outputs with a variance of 1
    steps = min(WORK / (20 * len(spectrum) * min(spectrum.shape[1:]) ** 3), STEPS)
    if steps < STEPS / 4:
        return None
    share = 1 / spectrum.abs().square().sum((0, 2))  # (K,) as for white noise
    best = 0.0
    for step in range(int(steps)):
        share = share / share.sum()
        found, vector, place = _strongest(spectrum, share)
        best = max(best, 1 / found)
        covered = (spectrum[place].conj() @ vector).abs().square()  # (K,) what the cheapest input explains
        share = share * torch.exp(2 / (step + 2) * (1 - covered / found).clamp(-2, 2))
    return best


def _spectrum(weight: Tensor) -> Tensor:
    """(K, C, taps) -> (F, K, C): the Fourier transform of the weights, at frequencies that are not mirrored."""
    if weight.ndim == 2:
        return weight.to(torch.complex128)[None]
    axes = list(range(2, weight.ndim))
    sizes = [min(6 * weight.shape[axis], 32) if weight.shape[axis] > 1 else 1 for axis in axes]
    return torch.as_tensor(torch.fft.rfftn(weight, s=sizes, dim=axes).flatten(2).permute(2, 0, 1))


def _strongest(spectrum: Tensor, share: Tensor) -> tuple[float, Tensor, int]:
    """Largest eigenvalue of sum_k l_k W_k W_k* over all frequencies, its vector (C,), and where it is."""
    scaled = spectrum * share.sqrt()[:, None]  # (F, K, C)
    narrow = scaled.shape[2] <= scaled.shape[1]
    matrix = scaled.mT @ scaled.conj() if narrow else scaled.conj() @ scaled.mT
    values, vectors = torch.linalg.eigh(matrix)
    place = int(values[:, -1].argmax())
    vector = vectors[place, :, -1]
    if not narrow:
        vector = scaled[place].mT @ vector
        vector = vector / vector.norm()
    return float(values[place, -1]), vector, place
