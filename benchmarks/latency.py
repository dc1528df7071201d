"""Latency of our files against ONNX Runtime's float file and `quantize_static`'s, in one interleaved run.

    python benchmarks/latency.py                          the four networks, as rows of a table
    python benchmarks/latency.py --variants               also without each pass for speed: what it is worth

Each network has random weights (time does not depend on them) and takes one image of its own size in one thread:
224x224, and 299x299 for Inception v3, whose last pooling has nothing to pool below that. The
files are warmed up, then run in turns, in a new order each round, so that a slow moment hits all of them; a row has
medians and the medians of the rounds' ratios. `quantize_static` gets uint8 activations and int8 weights with one scale
a channel, after ONNX Runtime's own preparation, as its documentation says. It is measured on two float files: that of
`torch.onnx.export`, which is what there is without this tool, and ours (`tidied`), where batch norm is folded and
shuffles are one Gather, so that what is left of the difference is the quantization. `float` is the faster of the two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from static_baseline import Images, quantize_statically

from gdfq_export.methods.calibrate import quantize_to_nearest
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.models.sources import load_model
from gdfq_export.names import OPTIONAL_PASSES
from gdfq_export.pipeline import lower_outcome, prepare, write_files
from gdfq_export.plan import BitWidths
from gdfq_export.progress import silent
from gdfq_export.settings import Settings, schedule_for

MODELS = ("mobilenetv2_w1", "resnet18", "shufflenet_g1_w1", "inceptionv3")
SIDES = {"inceptionv3": 299}
SEED = 0
BASELINES = ("float", "quantize_static", "quantize_static, tidied")


def make_files(name: str, folder: Path, bits: BitWidths, variants: Sequence[tuple[str, ...]]) -> dict[str, Path]:
    """The float files, quantize_static's and ours, one for each set of passes left out."""
    side = SIDES.get(name, 224)
    loaded = load_model(name, pretrained=False, input_size=(3, side, side), seed=SEED)
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
        print(f"{name}: {label} exported in {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    own, exported_by_torch = folder / "ours.fp32.onnx", folder / "torch.onnx"
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example = (torch.zeros(1, *loaded.input_size),)
        torch.onnx.export(loaded.module, example, str(exported_by_torch), input_names=["input"], dynamo=False)
        static = {"quantize_static": exported_by_torch, "quantize_static, tidied": own}
        files |= {
            name: quantize_statically(source, random_images(loaded.input_size)) for name, source in static.items()
        }
    return {"float": exported_by_torch, "float, tidied": own, **files}


def random_images(shape: Sequence[int]) -> Images:
    """Two of them."""
    return Images(np.random.default_rng(SEED).standard_normal((2, 1, *shape)).astype(np.float32))


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
    flags = set(Path("/proc/cpuinfo").read_text().split()) & {"avx2", "avx512_vnni", "avx_vnni", "amx_int8"}
    machine = f"{platform.machine()} ({', '.join(sorted(flags))})"
    print(f"{machine}, onnxruntime {onnxruntime.__version__}, 1 thread, W{weight}A{activation}, seed {SEED}\n")
    head = ("network", "file", "ms", "float ms", *(f"of {name}" for name in BASELINES), "rounds")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for model in args.model:
        with tempfile.TemporaryDirectory() as folder:
            files = make_files(model, Path(folder), BitWidths(weight, activation), variants)
            times = measure(files, args.seconds)
            quickest = min(("float", "float, tidied"), key=lambda name: float(np.median(times[name])))
            for name in times:
                if name.startswith("ours"):
                    medians = [f"{np.median(times[each]):.2f}" for each in (name, quickest)]
                    ratios = [ratio(times, name, quickest if each == "float" else each) for each in BASELINES]
                    cells = (model, name, *medians, *ratios, len(times[name]))
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
