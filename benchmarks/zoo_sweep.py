"""Quantizes one variant of every classification family of pytorchcv and verifies each file.

    python benchmarks/zoo_sweep.py                     the families without a result yet; a line of JSON each
    python benchmarks/zoo_sweep.py --only resnet10     one network, even if it has a result
    python benchmarks/zoo_sweep.py --table docs/zoo.md writes the table

`zoo_families.tsv` names the variant with the fewest parameters of each family, a family being one of pytorchcv's
source files (made by `zoo_families.py`); the networks of the paper come on top. Weights are random, batch-norm
statistics are those of one pass over random images, ranges are those of random images: what is measured is whether
the network can be captured, quantized (W8A8) and computed exactly. Each network runs in a child process with a limit
on memory and time.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

FAMILIES = Path(__file__).with_name("zoo_families.tsv")
PAPER = (
    *("resnet20_cifar10", "resnet18", "resnet50", "bn_vgg16", "inceptionv3"),
    *("mobilenetv2_w1", "mobilenetv2b_w1", "shufflenet_g1_w1"),
)
SECONDS, GIGABYTES = 1200, 14
SAMPLES, CALIBRATION_IMAGES = 1, 2
SEED = 0


def networks() -> dict[str, str]:
    """Network -> its family, those of the paper first."""
    lines = FAMILIES.read_text(encoding="utf-8").splitlines()[1:]
    families = {name: family for family, name in (line.split("\t") for line in lines)}
    return {**dict.fromkeys(PAPER, "of the paper"), **families}


def sweep_one(name: str, report: Callable[[dict[str, Any]], None]) -> None:
    """Quantizes and verifies one network; `report` gets each fact as soon as it is known."""
    import torch

    from gdfq_export.methods.calibrate import quantize_to_nearest
    from gdfq_export.methods.task import Outcome, Task
    from gdfq_export.models.sources import load_model
    from gdfq_export.pipeline import lower_outcome, prepare, write_files
    from gdfq_export.plan import BitWidths
    from gdfq_export.progress import silent
    from gdfq_export.runtime_checks.verify import verify_model
    from gdfq_export.settings import Settings, schedule_for

    torch.set_num_threads(1)
    loaded = load_model(name, pretrained=False, seed=SEED)
    schedule = schedule_for("fast", loaded.input_size)
    settings = Settings(
        "calibrate", BitWidths(8, 8), schedule, ranges="ema", target="portable", seed=SEED, allow_float=".*"
    )
    start = time.monotonic()
    prepared = prepare(loaded, settings)
    report({"captured": True, "capture_seconds": round(time.monotonic() - start, 1)})
    generator = torch.Generator().manual_seed(SEED + 1)
    images = torch.randn(CALIBRATION_IMAGES + 1, *loaded.input_size, generator=generator)
    task = Task(prepared.captured, prepared.folded, prepared.plan, prepared.image, settings, silent)
    with torch.no_grad():
        quantized = quantize_to_nearest(task, list(images[:-1].split(1)))
    start = time.monotonic()
    exported = lower_outcome(prepared, settings, Outcome(quantized, images[-1:]))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.onnx"
        facts = write_files(exported, settings, out, companions=False)
        report(
            {
                "quantized": True,
                "export_seconds": round(time.monotonic() - start, 1),
                "ratio": round(facts["file_bytes"] / facts["fp32_bytes"], 3),
            }
        )
        del exported, quantized, prepared, task
        result = verify_model(out, samples=SAMPLES, seed=SEED, threads=1)
    total = result.levels["all"].total
    golden = result.golden.mismatches if result.golden else 0
    report(
        {
            "float_ops": [f"{operator.op} {operator.name}" for operator in result.coverage.float_operators],
            "elements": total.elements,
            "mismatches": total.mismatches + golden,
            "passed": result.passed,
        }
    )


def child(name: str) -> None:
    """The child process: its last line of stdout is the result, whatever happens to it."""
    from gdfq_export.errors import GdfqError

    limit = GIGABYTES << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    result: dict[str, Any] = {"name": name, "captured": False, "quantized": False}

    def report(facts: dict[str, Any]) -> None:
        result.update(facts)
        print(json.dumps(result), flush=True)

    try:
        sweep_one(name, report)
    except (GdfqError, MemoryError) as error:
        report({"reason": " ".join(str(error).split()) or type(error).__name__})
    except Exception as error:
        report({"reason": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def run_child(name: str) -> dict[str, Any]:
    """One network in a child process."""
    start = time.monotonic()
    command = [sys.executable, __file__, "--child", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        output, ending = done.stdout, f"the process ended with {done.returncode}" if done.returncode else None
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        ending = f"not done after {SECONDS} s"
    lines = [line for line in output.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"name": name, "captured": False, "quantized": False}
    if ending:
        result["reason"] = ending
    return {**result, "seconds": round(time.monotonic() - start)}


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """Network -> its latest result."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def reason_of(result: dict[str, Any]) -> str:
    """One line for a miss, empty for a full pass."""
    if "reason" in result:
        return str(result["reason"])
    if result["mismatches"]:
        return f"{result['mismatches']} of {result['elements']} elements differ"
    if result["float_ops"]:
        kinds = sorted({operator.split()[0] for operator in result["float_ops"]})
        return f"{', '.join(kinds)} in float"
    return "" if result["passed"] else "a proof, a hash or the instrumented copy failed"


def table(results: dict[str, dict[str, Any]]) -> str:
    """The committed page."""
    rows = []
    exact = whole = 0
    for name, family in networks().items():
        result = results.get(name, {"captured": False, "quantized": False, "reason": "not run"})
        verified = result.get("passed", False)
        in_float = len(result.get("float_ops", [])) if "float_ops" in result else "-"
        if family != "of the paper":
            exact += verified
            whole += verified and not result["float_ops"]
        mark = {True: "yes", False: "no"}
        cells = (
            *(family, name, mark[result["captured"]], mark[result["quantized"]], in_float),
            *(result.get("elements", "-"), result.get("mismatches", "-"), result.get("ratio", "-")),
            *(result.get("export_seconds", "-"), reason_of(result)),
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    count = sum(family != "of the paper" for family in networks().values())
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime", "pytorchcv"))
    return (
        f"""# Every family of classifiers in pytorchcv

Made by `python benchmarks/zoo_sweep.py` and `--table docs/zoo.md` on {platform.machine()}, one thread,
{versions}, seed {SEED}.
W8A8, target `portable`, random weights, ranges from {CALIBRATION_IMAGES} random images, {SAMPLES} image and the stored
vectors compared. Each family's variant is the one with the fewest parameters; the networks of the paper come first.
"Export" is lowering, emitting and writing, in seconds that depend on what else the machine did; "ratio" is the file
against its float file.

Of {count} families, **{exact} ({100 * exact / count:.0f} %) are quantized and verified with no mismatch, and {whole} \
({100 * whole / count:.0f} %) have no float operator.**

| family | network | captured | quantized | float operators | elements | mismatches | ratio | export s | reason |
|---|---|---|---|---|---|---|---|---|---|
"""
        + "\n".join(rows)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="these networks, even if they have results")
    parser.add_argument("--failed", action="store_true", help="those whose result is no full pass, again")
    parser.add_argument("--results", type=Path, default=Path("docs/zoo.jsonl"))
    parser.add_argument("--table", type=Path, help="write the table of all results and stop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    results = read_results(args.results)
    if args.table:
        args.table.write_text(table(results), encoding="utf-8")
        return
    args.results.parent.mkdir(parents=True, exist_ok=True)
    again = {name for name, result in results.items() if args.failed and reason_of(result)}
    for name in args.only or networks():
        if name in results and name not in again and not args.only:
            continue
        result = run_child(name)
        with args.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{name}: {reason_of(result) or 'exact, no float operator'} ({result['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
