"""Small networks at each stage of their way through the package, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from network_parts import SHAPE, randomize
from small_networks import NETWORKS, shape_of
from torch import Tensor, nn

from gdfq_export.capture import capture
from gdfq_export.emit import onnx_from_integer_model
from gdfq_export.exact import IntegerProgram
from gdfq_export.graph import Graph
from gdfq_export.integer import IntegerModel
from gdfq_export.lower import TARGETS, Quantized, integer_model_from_quantized
from gdfq_export.passes import canonicalize, find_channel_shuffle, fold_batch_norm, hoist_activations
from gdfq_export.plan import BitWidths, make_plan
from gdfq_export.program import FloatProgram
from gdfq_export.quantizers import weight_scales
from gdfq_export.ranges import affines_from_ranges, observe


@cache
def network(name: str) -> nn.Module:
    """The eval-mode module of that name, always with the same weights."""
    state = torch.get_rng_state()
    torch.manual_seed(0)
    module = randomize(NETWORKS[name]())
    torch.set_rng_state(state)
    return module.requires_grad_(False)


@cache
def captured(name: str) -> Graph:
    """What capture makes of a network."""
    return capture(network(name), shape_of(name))


@cache
def folded(name: str) -> Graph:
    """The network after every pass."""
    return with_passes(captured(name))


def with_passes(graph: Graph) -> Graph:
    return fold_batch_norm(hoist_activations(find_channel_shuffle(canonicalize(graph))))


def folded_from(module: nn.Module, shape: Sequence[int] = SHAPE) -> Graph:
    """Capture and passes for a network made in a test."""
    return with_passes(capture(module.eval().requires_grad_(False), shape))


def images(shape: Sequence[int] = SHAPE, count: int = 8, seed: int = 1) -> Tensor:
    """Random images with larger values than a normalised picture has, so that quantizers saturate."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 1.5


def quantize_graph(graph: Graph, bits: BitWidths, *, target: str = "portable") -> IntegerModel:
    """Round to nearest with ranges from random images."""
    return integer_model_from_quantized(calibrated(graph, bits), TARGETS[target])


def calibrated(graph: Graph, bits: BitWidths) -> Quantized:
    """Ranges from random images, whose pixels lie in -2..2 by agreement."""
    plan = make_plan(graph, bits, (-2.0, 2.0))
    ranges = observe(FloatProgram(graph), plan, [images(graph.input_shape, seed=2)], method="ema")
    scales = {
        layer: weight_scales(graph.parameters[graph[layer].parameters["weight"]], spec.qmax)
        for layer, spec in plan.weights.items()
    }
    return Quantized(graph, plan, affines_from_ranges(plan, ranges), scales)


@cache
def integer_model(name: str, weight: int, activation: int) -> IntegerModel:
    """For any processor at 8 bits; narrower weights cannot saturate and need no repair."""
    target = "portable" if weight == 8 else "arm64"
    return quantize_graph(folded(name), BitWidths(weight, activation), target=target)


@dataclass(frozen=True, eq=False)
class Ran:
    """What ONNX Runtime computed, and the operators of the graph that it made of the file."""

    outputs: np.ndarray
    kernels: tuple[str, ...]


def run_onnx(model: onnx.ModelProto, x: Tensor, folder: Path | None = None) -> Ran:
    """Runs a file at the default optimization level; `folder` is where the optimized graph may be written."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if folder is not None:
        options.optimized_model_filepath = str(folder / "optimized.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"input": x.numpy()})
    kernels: tuple[str, ...] = ()
    if folder is not None:
        kernels = tuple(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)
    return Ran(outputs, kernels)


@torch.no_grad()
def integer_logits(model: IntegerModel, x: Tensor) -> np.ndarray:
    """What the PyTorch program computes."""
    return IntegerProgram(model).eval()(x).numpy()


def compare_with_runtime(model: IntegerModel, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the PyTorch program and of ONNX Runtime at its default optimization level."""
    return integer_logits(model, x), run_onnx(onnx_from_integer_model(model), x).outputs
