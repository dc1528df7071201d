"""Runs on an emulated arm64 machine: prints the /proc/cpuinfo that a real one with this processor would show.

    python cross_isa_cpuinfo.py IMPLEMENTER PART VARIANT REVISION CORES

ONNX Runtime's cpuinfo library takes the kind of core from that file and crashes on that of an x86 host. The features
come from the emulated processor's own auxiliary vector, so file and processor agree.
"""

from __future__ import annotations

import ctypes
import sys

AT_HWCAP, AT_HWCAP2 = 16, 26
# Names of the bits, bit 0 first, as in Linux's uapi/asm/hwcap.h.
HWCAP = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
)
HWCAP2 = (
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32 smefa64"
)


def cpuinfo(implementer: str, part: str, variant: str, revision: str, cores: int) -> str:
    """One entry a core."""
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    found = [name for bit, name in enumerate(HWCAP.split()) if getauxval(AT_HWCAP) >> bit & 1]
    found += [name for bit, name in enumerate(HWCAP2.split()) if getauxval(AT_HWCAP2) >> bit & 1]
    entry = (
        f"BogoMIPS\t: 100.00\nFeatures\t: {' '.join(found)}\nCPU implementer\t: {implementer}\nCPU architecture: 8\n"
        f"CPU variant\t: {variant}\nCPU part\t: {part}\nCPU revision\t: {revision}\n"
    )
    return "".join(f"processor\t: {core}\n{entry}\n" for core in range(cores))


if __name__ == "__main__":
    implementer, part, variant, revision, cores = sys.argv[1:]
    print(cpuinfo(implementer, part, variant, revision, int(cores)), end="")
