"""The same files on other runtimes: how far their outputs are from ONNX Runtime's, for docs/runtimes.md.

    python benchmarks/runtimes.py [--runtimes openvino,ort-web,reference] [--samples N] MODEL.onnx ...
    python benchmarks/runtimes.py --make DIR     quantizes the three networks of the table into DIR first

OpenVINO comes with pip install 'gdfq-export[openvino]', onnxruntime-web with npm install onnxruntime-web in the current
folder (or in a folder whose node_modules is in NODE_PATH). A runtime that is not installed is left out.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from gdfq_export.cli import main as gdfq_export
from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.other_runtimes import RUNTIMES, RuntimeComparison, compare_runtime
from gdfq_export.runtime_checks.sessions import runtime_version

NETWORKS = {
    "resnet20": ("resnet20_cifar10",),
    "mobilenetv2": ("mobilenetv2", "--no-pretrained"),
    "resnet18": ("resnet18", "--no-pretrained"),
}
COLUMNS = (
    "file",
    "runtime",
    "images",
    "outputs that differ",
    "largest difference",
    "of the outputs' spread",
    "in steps",
    "top-1 agreement",
    "how",
)


def main() -> int:
    """The table on stdout, what is missing on stderr."""
    arguments = parse_arguments()
    files = [*arguments.models, *(quantized(arguments.make) if arguments.make else ())]
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    used: dict[str, str] = {}
    for path in files:
        for runtime in arguments.runtimes:
            try:
                found = compare_runtime(path, runtime, arguments.samples)
            except CheckError as error:
                print(f"{path.name}: {runtime}: left out: {error}", file=sys.stderr)
                continue
            used[runtime] = f"{runtime} {found.version}"
            print(line(path.name, found), flush=True)
    print(f"\nonnxruntime {runtime_version()} level all; {'; '.join(used.values())}")
    print(f"Python {platform.python_version()}, {platform.machine()}, {datetime.date.today()}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--make", type=Path, metavar="DIR", help="quantize the networks of the table into DIR")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help=f"some of {','.join(RUNTIMES)}")
    parser.add_argument("--samples", type=int, default=16, help="images of each file (16)")
    arguments = parser.parse_args()
    arguments.runtimes = arguments.runtimes.split(",")
    if unknown := [name for name in arguments.runtimes if name not in RUNTIMES]:
        parser.error(f"no runtime '{unknown[0]}'; there are {', '.join(RUNTIMES)}")
    if not arguments.models and not arguments.make:
        parser.error("give files, or --make DIR")
    return arguments


def quantized(folder: Path) -> Iterator[Path]:
    """W8A8 files of the table's networks; those that are there already are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, words in NETWORKS.items():
        path = folder / f"{name}.onnx"
        if not path.exists():
            command = ["quantize", "--model", *words, "--bits", "8", "--method", "calibrate", "--out", str(path)]
            if gdfq_export([*command, "--no-companions"]):
                raise SystemExit(f"cannot quantize {name}")
        yield path


def line(name: str, found: RuntimeComparison) -> str:
    """One row."""
    cells = (
        name,
        found.runtime,
        f"{found.images}",
        f"{found.mismatches:,} of {found.elements:,}",
        f"{found.max_difference:.3g}",
        f"{100 * found.max_difference / found.spread:.2f} %",
        f"{found.max_steps:,}",
        f"{found.top1_agreement:.1f} %",
        found.settings,
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
