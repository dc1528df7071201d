"""Quantizes networks to W8A8 and W4A4 and verifies every tensor of the files: the table of docs/exactness.md.

    python benchmarks/exactness.py --work DIR [--assets DIR] [--networks resnet20,mcunet] [--samples 12]

Each row is one run of the real command line, `quantize --method calibrate` and then `verify`, in processes of their
own; its result is kept in DIR, so that a run that was stopped goes on where it was. The embedded network has trained
weights, the others random ones: which integers the runtime computes does not depend on what they are good for. `mcunet`
and `mobilenet_v1_075` are factories of `byo_models.py` in the folder of --assets, and are left out without it.

Exit codes: 0 every file is exact and has no float operator, and these are 10 million elements or more; 1 it is not so;
4 a network could not be run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMISED = 10_000_000  # elements in all
LEVELS = ("all", "basic", "disabled")
HALF = ("--mean", "0.5", "--std", "0.5")
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "resnet20": ("resnet20_cifar10",),
    "resnet18": ("resnet18", "--no-pretrained"),
    "mobilenetv2": ("mobilenetv2", "--no-pretrained"),
    "shufflenet": ("shufflenet_g3_w1", "--no-pretrained"),
    "inceptionv3": ("inceptionv3", "--no-pretrained"),
    "menet108_8x1_g3": ("menet108_8x1_g3", "--no-pretrained"),
    "darknet_tiny": ("darknet_tiny", "--no-pretrained"),
    "mcunet": ("byo_models.py:mcunet", "--no-pretrained", "--input-size", "3x176x176", *HALF),
    "mobilenet_v1_075": ("byo_models.py:mobilenet_v1_075", "--no-pretrained", "--input-size", "3x224x224", *HALF),
}
FROM_FILE = [name for name, (model, *_) in NETWORKS.items() if ":" in model]
COLUMNS = (
    "network",
    "bits",
    "tensors",
    "elements",
    "mismatches",
    "PyTorch program",
    "float simulation",
    "its top-1",
    "level basic",
    "level disabled",
    "float operators",
    "file kB",
    "s an image",
    "peak MB",
)


class RunError(Exception):
    """A command that ended otherwise than with a result."""


@dataclass(frozen=True)
class Done:
    """What one command of the tool said, and what it took."""

    report: dict[str, Any]
    seconds: float
    peak_mb: float


def main() -> int:
    """The rows that can be had, and the table."""
    arguments = parse_arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows, broken = [], False
    for name in arguments.networks:
        for bits in arguments.bits:
            try:
                rows.append(row_of(name, bits, arguments))
            except RunError as error:
                broken = True
                print(f"{name} {bits}: {error}", file=sys.stderr, flush=True)
    print_table(rows, arguments.seed)
    elements, mismatches = (sum(row["levels"]["all"][key] for row in rows) for key in ("elements", "mismatches"))
    print(f"\nlevel all: {mismatches:,} of {elements:,} elements differ in {len(rows)} files")
    exact = mismatches == 0 and elements >= PROMISED and all(row["passed"] and not row["float_ops"] for row in rows)
    return 4 if broken else 0 if exact else 1


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for files and results")
    parser.add_argument("--assets", type=Path, help="folder with byo_models.py")
    parser.add_argument("--networks", default=",".join(NETWORKS), help=f"some of {','.join(NETWORKS)}")
    parser.add_argument("--bits", default="8x8,4x4", help="weights x activations")
    parser.add_argument("--samples", type=int, default=12, help="images of each file, of all kinds of verify (12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", default="20s", help="time of the generator's training, of each file (20s)")
    arguments = parser.parse_args()
    arguments.networks, arguments.bits = arguments.networks.split(","), arguments.bits.split(",")
    if unknown := [name for name in arguments.networks if name not in NETWORKS]:
        parser.error(f"no network '{unknown[0]}'; there are {', '.join(NETWORKS)}")
    if arguments.assets is None:
        for name in set(FROM_FILE) & set(arguments.networks):
            print(f"{name}: left out, --assets names no folder with byo_models.py", file=sys.stderr)
            arguments.networks.remove(name)
    return arguments


def row_of(name: str, bits: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The stored result, or a new one."""
    kept = arguments.work / f"{name}_{bits}_seed{arguments.seed}_samples{arguments.samples}.json"
    if not kept.exists():
        row = measure(name, bits, arguments)
        part = kept.with_suffix(".part")
        part.write_text(json.dumps(row), encoding="utf-8")
        part.replace(kept)
    row = json.loads(kept.read_text(encoding="utf-8"))
    total = row["levels"]["all"]
    print(f"{name} {bits}: {total['mismatches']} of {total['elements']:,}", file=sys.stderr, flush=True)
    return dict(row)


def measure(name: str, bits: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantizes and verifies one file."""
    out = arguments.work / f"{name}_{bits}.onnx"
    model, *words = NETWORKS[name]
    if arguments.assets is not None and ":" in model:
        model = str(arguments.assets / model)
    weight, activation = bits.split("x")
    widths = ["--weight-bits", weight, "--act-bits", activation]
    recipe = ["--method", "calibrate", "--budget", arguments.budget, "--seed", str(arguments.seed)]
    made = tool("quantize", "--model", model, *words, *widths, *recipe, "--force", "--out", str(out))
    checked = tool("verify", str(out), "--samples", str(arguments.samples), "--level", ",".join(LEVELS))
    return {
        "network": name,
        "bits": f"W{weight}A{activation}",
        "passed": checked.report["passed"],
        "levels": checked.report["levels"],
        "float_ops": checked.report["float_ops"],
        "torch": checked.report["torch"],
        "simulation": made.report["simulation"],
        "file_bytes": made.report["file_bytes"],
        "seconds": checked.seconds / arguments.samples,
        "peak_mb": checked.peak_mb,
        "versions": versions(),
    }


def tool(*words: str) -> Done:
    """One command in a process of its own; 1, a failed check, is a result."""
    start = datetime.datetime.now()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as answer:
        process = subprocess.Popen([sys.executable, "-m", "gdfq_export", *words, "--json"], stdout=answer, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (said, answer):
            stream.seek(0)
        if process.returncode not in (0, 1):
            raise RunError(f"{words[0]} ended with {process.returncode}: {said.read().strip()}")
        seconds = (datetime.datetime.now() - start).total_seconds()
        return Done(json.load(answer), seconds, usage.ru_maxrss / 1000)


def versions() -> str:
    """Of what computed the numbers."""
    names = ("onnxruntime", "onnx", "numpy", "torch")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def print_table(rows: list[dict[str, Any]], seed: int) -> None:
    """As Markdown."""
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for row in rows:
        print("| " + " | ".join(cells(row)) + " |")
    print(f"\n{processor()}, {os.cpu_count()} cores; {'; '.join({row['versions'] for row in rows})}; seed {seed}")
    print(datetime.date.today())


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    levels, simulation = row["levels"], row["simulation"]
    return (
        row["network"],
        row["bits"],
        f"{levels['all']['tensors']}",
        f"{levels['all']['elements']:,}",
        f"{levels['all']['mismatches']:,}",
        "-" if row["torch"] is None else f"{row['torch']['mismatches']} of {row['torch']['outputs']:,}",
        f"{100 * simulation['share']:.2f} %",
        f"{simulation['top1_agreement']:.1f} %",
        *(drift(levels[name]) for name in ("basic", "disabled")),
        str(len(row["float_ops"])),
        f"{row['file_bytes'] / 1000:,.0f}",
        f"{row['seconds']:.1f}",
        f"{row['peak_mb']:.0f}",
    )


def drift(level: dict[str, Any]) -> str:
    """How many elements of a level that is not promised differ from the integers."""
    return f"{100 * level['mismatches'] / level['elements']:.2f} %"


def processor() -> str:
    """As the system names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
