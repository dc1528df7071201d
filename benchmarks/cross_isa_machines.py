"""The machines that QEMU's user mode stands in for, and how a Python program runs on one.

QEMU translates the instructions of one process; a processor model decides which of them the process may find. Files
are the host's own, but what stands under `-L ROOT` hides them: so an arm64 process finds its own libraries and its own
/proc/cpuinfo.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORES = 2


class MachineError(Exception):
    """A machine that could not run the program at all, with what it said."""


@dataclass(frozen=True)
class Machine:
    """One row of the table; `core` is what an arm64 /proc/cpuinfo shows: implementer, part, variant, revision."""

    name: str
    what: str
    emulator: str | None = None
    cpu: str = ""
    core: str | None = None


ARM, X86 = "qemu-aarch64", "qemu-x86_64"
MACHINES = (
    Machine("native", "this machine"),
    Machine("haswell", "x86-64 with AVX2, without VNNI", X86, "Haswell"),
    Machine("westmere", "x86-64 with SSE4.2 only", X86, "Westmere"),
    Machine("cortex-a53", "arm64, NEON, narrow loads", ARM, "cortex-a53", "0x41 0xd03 0x0 4"),
    Machine("cortex-a72", "arm64, NEON", ARM, "cortex-a72", "0x41 0xd08 0x0 3"),
    # QEMU has no A55: an A76's instructions with an A55's cpuinfo, from which the runtime chooses its kernels.
    Machine("cortex-a55", "arm64, dot product, narrow loads", ARM, "cortex-a76", "0x41 0xd05 0x1 0"),
    Machine("cortex-a76", "arm64, dot product", ARM, "cortex-a76", "0x41 0xd0b 0x4 1"),
    Machine("neoverse-n1", "arm64 server, dot product", ARM, "neoverse-n1", "0x41 0xd0c 0x4 1"),
    Machine("a64fx", "arm64 with SVE, no dot product", ARM, "a64fx", "0x46 0x001 0x1 0"),
    Machine(
        "armv8.6", "arm64, integer matrices, no SVE", ARM, "max,pauth-impdef=on,sve=off,sme=off", "0x61 0x032 0x1 1"
    ),
    Machine("armv9", "arm64, integer matrices, SVE2", ARM, "max,pauth-impdef=on", "0x41 0xd4f 0x0 0"),
)


def run_python(machine: Machine, words: Sequence[str | Path], arm_root: Path | None) -> str:
    """Runs `python WORDS` on the machine and returns what it printed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable]
    if machine.emulator:
        command = [machine.emulator, "-cpu", machine.cpu, sys.executable]
    if machine.core:
        if arm_root is None:
            raise MachineError("no arm64 root")
        environment["PYTHONPATH"] = str(arm_root / "opt" / "site")
        python = arm_root / "usr" / "bin" / "python3"
        command = [command[0], "-cpu", machine.cpu, "-L", str(arm_root), str(python), "-s"]
    done = subprocess.run([*command, *map(str, words)], env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise MachineError(f"exit code {done.returncode}: {last}")
    return done.stdout


def prepare(machine: Machine, arm_root: Path | None) -> None:
    """Puts the machine's own /proc/cpuinfo into the arm64 root."""
    if machine.core and arm_root is not None:
        text = run_python(machine, [HERE / "cross_isa_cpuinfo.py", *machine.core.split(), str(CORES)], arm_root)
        path = arm_root / "proc" / "cpuinfo"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="ascii")
