"""Replays quantized files on every machine and prints the table. Called by cross_isa.sh, which makes the arm64 root.

Exit codes: 0 every portable file is exact everywhere, and each known-bad file fails where it must; 1 one of the two
does not hold; 2 the command line is wrong; 4 a machine could not run.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from cross_isa_known_bad import KNOWN_BAD
from cross_isa_machines import HERE, MACHINES, Machine, MachineError, prepare, run_python
from cross_isa_vectors import Job, make_job

from gdfq_export.runtime_checks.sessions import kernel_histogram

COLUMNS = ("file", "target", "machine", "stands for", "features", "tensors", "elements", "mismatches", "max steps", "s")


@dataclass(frozen=True)
class Row:
    """One file on one machine."""

    job: Job
    machine: Machine
    found: dict[str, Any]
    same_kernels: bool  # with all tensors shown, this machine runs the same kernels as without

    @property
    def mismatches(self) -> int:
        """Elements of the shown tensors, and of the outputs of the file as it is, that differ."""
        return int(self.found["mismatches"]) + int(self.found["output_mismatches"])

    def cells(self) -> tuple[str, ...]:
        """As `COLUMNS` names them."""
        found = self.found
        return (
            self.job.name,
            self.job.target or "-",
            self.machine.name,
            self.machine.what,
            " ".join(found["features"]),
            f"{found['tensors']}",
            f"{found['elements']:,}",
            f"{self.mismatches:,}",
            f"{found['max_steps']}",
            f"{found['seconds']:.0f}",
        )


def main() -> int:
    """The table, and what follows from it."""
    arguments = parse_arguments()
    machines = [machine for machine in MACHINES if machine.name in arguments.machines]
    with tempfile.TemporaryDirectory() as folder:
        jobs = list(make_jobs(arguments.models, Path(folder), arguments.samples))
        rows, broken = [], False
        for machine in machines:
            try:
                prepare(machine, arguments.arm_root)
                for job in jobs:
                    rows.append(replay(job, machine, arguments.arm_root))
                    print(f"{machine.name}: {job.name}: {rows[-1].mismatches} mismatches", file=sys.stderr, flush=True)
            except MachineError as error:
                broken = True
                print(f"{machine.name}: could not run: {error}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps([{**row.found, **named(row)} for row in rows], indent=1))
    else:
        print_table(rows)
    passed = judge(rows)
    return 4 if broken else 0 if passed else 1


def parse_arguments() -> argparse.Namespace:
    """The words of the command line."""
    names = [machine.name for machine in MACHINES]
    parser = argparse.ArgumentParser(prog="cross_isa.sh", description=__doc__)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.onnx")
    parser.add_argument("--samples", type=int, default=8, help="images of each file (8)")
    parser.add_argument("--machines", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--arm-root", type=Path, help="an arm64 root with Python, and onnxruntime in opt/site")
    parser.add_argument("--json", action="store_true", help="print a JSON list instead of the table")
    arguments = parser.parse_args()
    arguments.machines = arguments.machines.split(",")
    if unknown := [name for name in arguments.machines if name not in names]:
        parser.error(f"no machine '{unknown[0]}'; there are {', '.join(names)}")
    if missing := [path for path in arguments.models if not path.is_file()]:
        parser.error(f"{missing[0]}: no such file")
    return arguments


def make_jobs(models: list[Path], folder: Path, samples: int) -> Iterator[Job]:
    """The known-bad files first, then those that were asked for."""
    for known in KNOWN_BAD:
        known.write(folder / known.name)
    for index, path in enumerate([*(folder / known.name for known in KNOWN_BAD), *models]):
        print(f"vectors of {path.name}", file=sys.stderr, flush=True)
        job = make_job(path, folder / f"{index:03}", samples)
        if job.float_tensors:
            print(f"{job.name}: {job.float_tensors} tensors of float operators are left out", file=sys.stderr)
        yield job


def replay(job: Job, machine: Machine, arm_root: Path | None) -> Row:
    """Runs the job on the machine."""
    result = job.folder / f"{machine.name}.json"
    run_python(machine, [HERE / "cross_isa_replay.py", job.folder, result], arm_root)
    kernels = [kernel_histogram(onnx.load(result.with_suffix(f".{kind}.onnx"))) for kind in ("plain", "shown")]
    return Row(job, machine, json.loads(result.read_text(encoding="utf-8")), kernels[0] == kernels[1])


def named(row: Row) -> dict[str, Any]:
    """What the replay itself does not know."""
    return {
        "file": row.job.name,
        "target": row.job.target,
        "machine": row.machine.name,
        "cpu": row.machine.cpu,
        "same_kernels": row.same_kernels,
    }


def print_table(rows: list[Row]) -> None:
    """As Markdown, which reads well in a terminal too, and the versions below it."""
    table = [COLUMNS, *(row.cells() for row in sorted(rows, key=lambda row: row.job.folder))]
    widths = [max(len(line[column]) for line in table) for column in range(len(COLUMNS))]
    for index, line in enumerate(table):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
        if index == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    versions = sorted({f"onnxruntime {row.found['onnxruntime']}, numpy {row.found['numpy']}" for row in rows})
    numpy = importlib.import_module("numpy")
    print(f"\n{datetime.date.today()}; {'; '.join(versions)}; reference: numpy {numpy.__version__}")


def judge(rows: list[Row]) -> bool:
    """Says on stderr what does not hold."""
    good = True
    for row in rows:
        place = f"{row.job.name} on {row.machine.name}"
        if row.job.target == "portable" and row.mismatches:
            good = False
            print(
                f"FAIL: {place}: {row.mismatches} mismatches, first in {row.found['first_differing']}", file=sys.stderr
            )
        if not row.same_kernels:
            print(f"note: {place}: other kernels run when all tensors are shown", file=sys.stderr)
        known = next((known for known in KNOWN_BAD if known.name == row.job.name), None)
        if known and known.fails_on(row.machine.name) and not row.mismatches:
            good = False
            print(f"FAIL: {place}: 0 mismatches, so this machine is not what it should be", file=sys.stderr)
    return good


if __name__ == "__main__":
    sys.exit(main())
