"""Latency of our files against ONNX Runtime's float file and `quantize_static`'s, in one interleaved run.

    python benchmarks/latency.py                          the four networks, as rows of a table
    python benchmarks/latency.py --variants               also without each pass for speed: what it is worth

Each network has random weights (time does not depend on them) and takes one image of 224x224 in one thread. The
files are warmed up, then run in turns, in a new order each round, so that a slow moment hits all of them; a row has
medians and the medians of the rounds' ratios. `quantize_static` gets uint8 activations and int8 weights with one scale
a channel, and the float file after ONNX Runtime's own preparation, as its documentation says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference

from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.models.sources import load_model
from gdfq_export.passes import OPTIONAL_PASSES
from gdfq_export.pipeline import lower_outcome, prepare, write_files
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.settings import Settings, schedule_for

MODELS = ("mobilenetv2_w1", "resnet18", "shufflenet_g1_w1", "inceptionv3")
SIDE = 224
SEED = 0


class Images(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Two random images."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.rest = iter(np.random.default_rng(SEED).standard_normal((2, 1, *shape)).astype(np.float32))

    def get_next(self) -> dict[str, Any] | None:
        image = next(self.rest, None)
        return None if image is None else {"input": image}


def make_files(name: str, folder: Path, bits: BitWidths, variants: Sequence[tuple[str, ...]]) -> dict[str, Path]:
    """The float file, quantize_static's and ours, one for each set of passes left out."""
    loaded = load_model(name, pretrained=False, input_size=(3, SIDE, SIDE), seed=SEED)
    files = {}
    for without in variants:
        schedule = schedule_for("fast", loaded.input_size)
        settings = Settings("calibrate", bits, schedule, "ema", "portable", SEED, without=without)
        prepared = prepare(loaded, settings)
        images = torch.randn(2, *loaded.input_size, generator=torch.Generator().manual_seed(SEED))
        task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
        with torch.no_grad():
            quantized = quantize_to_nearest(task, [images[:1]])
        start = time.perf_counter()
        exported = lower_outcome(prepared, settings, Outcome(quantized, images[1:]))
        label = "ours" + "".join(f" without {part}" for part in without)
        files[label] = folder / f"{label.replace(' ', '_')}.onnx"
        write_files(exported, settings, files[label], companions=not files.keys() - {label})
        print(f"{name}: {label} exported in {time.perf_counter() - start:.1f} s", flush=True)
    fp32, ready, static = folder / "ours.fp32.onnx", folder / "ready.onnx", folder / "static.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        shape_inference.quant_pre_process(str(fp32), str(ready))
        quantization.quantize_static(
            str(ready),
            str(static),
            Images(loaded.input_size),
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
        )
    return {"float": fp32, "quantize_static": static, **files}


def measure(files: dict[str, Path], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each round, by file."""
    sessions = {}
    for name, path in files.items():
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        sessions[name] = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = [1, *(int(size) for size in next(iter(sessions.values())).get_inputs()[0].shape[1:])]
    feed = {"input": np.random.default_rng(SEED).standard_normal(shape).astype(np.float32)}
    times: dict[str, list[float]] = {name: [] for name in files}
    for session in sessions.values():
        for _ in range(3):
            session.run(None, feed)
    order, shuffler = list(files), random.Random(SEED)
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(times["float"]) < 20:
        shuffler.shuffle(order)
        for name in order:
            start = time.perf_counter()
            sessions[name].run(None, feed)
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def ratio(times: dict[str, list[float]], name: str, against: str) -> str:
    """The median of the rounds' ratios."""
    return f"{np.median(np.array(times[name]) / np.array(times[against])):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=MODELS)
    parser.add_argument("--bits", default="8x8", help="weights x activations")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring each network")
    parser.add_argument("--variants", action="store_true", help="ours without each optional pass too")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    weight, activation = (int(width) for width in args.bits.split("x"))
    variants: list[tuple[str, ...]] = [(), *((name,) for name in OPTIONAL_PASSES if args.variants)]
    rows = []
    for model in args.model:
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(model, Path(folder), BitWidths(weight, activation), variants)
            times = measure(files, args.seconds)
            for name in times:
                if name.startswith("ours"):
                    medians = [f"{np.median(times[each]):.2f}" for each in ("float", "quantize_static", name)]
                    ratios = [ratio(times, name, against) for against in ("float", "quantize_static")]
                    cells = (model, name, *medians, *ratios, len(times[name]))
                    rows.append(f"| {' | '.join(map(str, cells))} |")
    flags = set(Path("/proc/cpuinfo").read_text().split()) & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"}
    machine = f"{platform.machine()} ({', '.join(sorted(flags))})"
    print(f"\n{machine}, onnxruntime {onnxruntime.__version__}, 1 thread, W{weight}A{activation}, seed {SEED}\n")
    print("| network | file | float ms | quantize_static ms | ours ms | of float | of quantize_static | rounds |")
    print("|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
