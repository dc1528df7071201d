"""Re-tests the arithmetic of docs/ort-arithmetic.md: each kernel's formula against ONNX Runtime, on each machine.

    python benchmarks/ort_arithmetic.py                                  this machine
    python benchmarks/ort_arithmetic.py --machines haswell,westmere,cortex-a76 --arm-root ROOT

Other machines run under QEMU as in cross_isa.sh, whose cache holds the arm64 root. Run it on every update of ONNX
Runtime: a number other than 0 means that a formula no longer holds. Exit code 1 then.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from cross_isa_machines import MACHINES, Machine, prepare, run_python
from onnx import TensorProto, helper, numpy_helper

from gdfq_export.runtime_checks import pairs, tables
from gdfq_export.runtime_checks.arithmetic import Quantization
from gdfq_export.runtime_checks.reference import reference_graph, run_reference

RUNNER = Path(__file__).resolve().parent / "ort_arithmetic_run.py"
Kind = str  # "FMA", "SSE" or "NEON": the formulas that a machine follows
CODES = np.arange(256).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Case:
    """A graph of one kernel, its inputs, and what each kind of machine must compute."""

    kernel: str
    model: onnx.ModelProto
    feeds: dict[str, np.ndarray]
    expected: Callable[[Kind], np.ndarray]


def kind_of(machine: Machine) -> Kind:
    if machine.core:
        return "NEON"
    return "SSE" if machine.name == "westmere" else "FMA"


def quantization(rng: np.random.Generator, scale: float | None = None, zero_point: int | None = None) -> Quantization:
    scale = float(np.exp(rng.normal(-3.2, 0.7))) if scale is None else scale
    zero_point = int(rng.choice([0, rng.integers(0, 256)])) if zero_point is None else zero_point
    return Quantization(np.full((), scale, np.float32), np.full((), zero_point, np.uint8), np.dtype(np.uint8))


def graph_of(
    op: str, sources: list[Quantization], result: Quantization, feeds: list[np.ndarray], **attributes: Any
) -> onnx.ModelProto:
    """DequantizeLinear (of each input) -> op -> QuantizeLinear."""
    nodes, constants, inputs = [], [], []
    for index, (params, feed) in enumerate(zip(sources, feeds, strict=True)):
        constants += [
            numpy_helper.from_array(params.scale, f"s{index}"),
            numpy_helper.from_array(params.zero_point, f"z{index}"),
        ]
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.UINT8, feed.shape))
        nodes.append(helper.make_node("DequantizeLinear", [f"x{index}", f"s{index}", f"z{index}"], [f"f{index}"]))
    constants += [numpy_helper.from_array(result.scale, "s"), numpy_helper.from_array(result.zero_point, "z")]
    nodes.append(helper.make_node(op, [f"f{index}" for index in range(len(sources))], ["sum"], **attributes))
    nodes.append(helper.make_node("QuantizeLinear", ["sum", "s", "z"], ["y"]))
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, [None] * feeds[0].ndim)
    return model_of(helper.make_graph(nodes, op, inputs, [output], constants))


def model_of(graph: onnx.GraphProto) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.checker.check_model(model)
    return model


def pair_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """All 65,536 pairs of codes, elementwise and with the left operand broadcast."""
    left, right = np.repeat(CODES, 256).reshape(256, 256), np.tile(CODES, (256, 1))
    multiply = {"FMA": pairs.mul_x86, "SSE": pairs.mul_x86, "NEON": pairs.mul_neon}
    for _ in range(count):
        a, b, c = (quantization(rng) for _ in range(3))
        for op, formulas in (("Add", pairs.ADD_FORMULAS), ("Mul", multiply)):

            def table(kind: Kind, formulas: Any = formulas, params: Any = (a, b, c)) -> np.ndarray:
                return formulas[kind](*params)

            feeds = [left, right]
            yield Case(op, graph_of(op, [a, b], c, feeds), {"x0": left, "x1": right}, table)
        scalar = {**pairs.ADD_FORMULAS, "SSE": pairs.add_sse_scalar}

        def exchanged(kind: Kind, formulas: Any = scalar, params: Any = (a, b, c)) -> np.ndarray:
            return pairs.swapped(formulas[kind])(*params)

        column = CODES.reshape(256, 1)
        yield Case(
            "Add, scalar left", graph_of("Add", [a, b], c, [column, right]), {"x0": column, "x1": right}, exchanged
        )


def average_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Every possible sum of a map, among them the ties of equal scales."""
    for index in range(count):
        side = (8, 7, 4)[index % 3]
        source = quantization(rng)
        ratio = 1.0 if index < 3 else rng.uniform(0.2, 1.2)
        result = quantization(rng, float(source.scale) * ratio)
        sums = np.arange(255 * side * side + 1)
        codes = np.minimum(np.maximum(sums[:, None] - 255 * np.arange(side * side), 0), 255).astype(np.uint8)
        feed = codes.reshape(1, len(sums), side, side)
        yield reference_case("GlobalAveragePool", graph_of("GlobalAveragePool", [source], result, [feed]), feed)


def table_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Functions of one code."""
    for _ in range(count):
        source = quantization(rng)
        for op, fused, plain, attributes in (
            ("Sigmoid", tables.logistic, tables.logistic_without_fma, {}),
            ("LeakyRelu", tables.leaky_relu(0.1), tables.leaky_relu(0.1), {"alpha": 0.1}),
        ):
            result = quantization(rng, 1 / 256, 0) if op == "Sigmoid" else quantization(rng)
            feed = CODES.reshape(1, 256)

            def expected(kind: Kind, functions: Any = (fused, plain), params: Any = (source, result)) -> np.ndarray:
                return tables.tabulate(functions[kind == "SSE"], *params).reshape(1, 256)

            yield Case(op, graph_of(op, [source], result, [feed], **attributes), {"x0": feed}, expected)


def sum_cases(rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Kernels whose formula is the same everywhere: the reference computes them."""
    for index in range(count):
        source, feed = quantization(rng), rng.integers(0, 256, (2, 8, 9, 9)).astype(np.uint8)
        result = quantization(rng)
        yield reference_case(
            "AveragePool", graph_of("AveragePool", [source], result, [feed], kernel_shape=[3, 3]), feed
        )
        softmax = graph_of("Softmax", [source], quantization(rng, 1 / 256, 0), [feed], axis=-1)
        yield reference_case("Softmax", softmax, feed)
        # weights below 64 cannot saturate anywhere; every other network has a power-of-two scale and so exact ties
        scale = np.full(6, 2.0**-9, np.float32) if index % 2 else rng.uniform(1e-3, 5e-3, 6).astype(np.float32)
        for op in ("Conv", "Gemm"):
            flat = feed.reshape(2, -1) if op == "Gemm" else feed
            yield reference_case(op, weighted(op, rng, flat, source, result, scale), flat)


def weighted(
    op: str, rng: np.random.Generator, feed: np.ndarray, source: Quantization, result: Quantization, scale: np.ndarray
) -> onnx.ModelProto:
    """Conv with quantized output, or Gemm with float output."""
    shape = (6, 8, 3, 3) if op == "Conv" else (6, feed.shape[1])
    constants = {
        "w": rng.integers(-63, 64, shape).astype(np.int8),
        "sw": scale,
        "zw": np.zeros(6, np.int8),
        "b": rng.integers(-500, 500, 6).astype(np.int32),
        "sb": source.scale * scale,
        "sx": source.scale,
        "zx": source.zero_point,
        "s": result.scale,
        "z": result.zero_point,
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["x0", "sx", "zx"], ["x"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["bf"], axis=0),
        helper.make_node(op, ["x", "wf", "bf"], ["sum"], **({"transB": 1} if op == "Gemm" else {})),
    ]
    if op == "Conv":
        nodes.append(helper.make_node("QuantizeLinear", ["sum", "s", "z"], ["y"]))
    name, kind = ("y", TensorProto.UINT8) if op == "Conv" else ("sum", TensorProto.FLOAT)
    used = [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x0", TensorProto.UINT8, feed.shape)]
    return model_of(
        helper.make_graph(nodes, op, inputs, [helper.make_tensor_value_info(name, kind, [None] * feed.ndim)], used)
    )


def reference_case(kernel: str, model: onnx.ModelProto, feed: np.ndarray) -> Case:
    return Case(
        kernel, model, {"x0": feed}, lambda kind: next(iter(run_reference(reference_graph(model), feed).values()))
    )


def measure(cases: list[Case], machine: Machine, arm_root: Path | None) -> dict[str, tuple[int, int]]:
    """kernel -> (elements, elements that differ from the formula)."""
    found: dict[str, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, case in enumerate(cases):
            onnx.save(case.model, folder / f"{index}.onnx")
            np.savez(folder / f"{index}.npz", **case.feeds)  # type: ignore[arg-type]
        prepare(machine, arm_root)
        run_python(machine, [RUNNER, folder], arm_root)
        for index, case in enumerate(cases):
            output = np.load(folder / f"{index}.out.npy")
            elements, different = found.get(case.kernel, (0, 0))
            wrong = int(np.count_nonzero(output != case.expected(kind_of(machine))))
            found[case.kernel] = (elements + output.size, different + wrong)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", default="native", help="comma-separated names from cross_isa_machines.py")
    parser.add_argument("--arm-root", type=Path, help="the arm64 root that cross_isa.sh made")
    parser.add_argument("--count", type=int, default=24, help="sets of parameters for each kernel")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    cases = [
        *pair_cases(rng, arguments.count),
        *average_cases(rng, arguments.count),
        *table_cases(rng, arguments.count),
        *sum_cases(rng, arguments.count),
    ]
    known = {machine.name: machine for machine in MACHINES}
    print(f"onnxruntime {onnxruntime.__version__}: elements that differ from the formula")
    wrong = 0
    for name in arguments.machines.split(","):
        for kernel, (elements, different) in measure(cases, known[name], arguments.arm_root).items():
            print(f"{name:12} {kernel:18} {different:6} of {elements:,}", flush=True)
            wrong += different
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
