"""What is freed is used again, without page faults."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys

import pytest

from gdfq_export import memory

FAULTS = """
import resource
import torch
from gdfq_export.memory import keep_freed_memory

if {keep}:
    assert keep_freed_memory()
for _ in range(20):  # until what is free has grown together
    torch.ones(1 << 24)  # 64 MB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    """Of three large tensors, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, text=True, timeout=1800, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such options")
def test_a_large_tensor_takes_the_pages_of_the_one_before() -> None:
    assert page_faults(keep=True) < 100 < page_faults(keep=False)


RESIDENT = """
import torch
from gdfq_export.memory import hand_back_freed_memory, keep_freed_memory

def pages():
    return int(open("/proc/self/statm").read().split()[1])

keep_freed_memory()
tensors = [torch.ones(1 << 22) for _ in range(16)]  # 16 MB each
last = torch.ones(1 << 10)  # above them all
del tensors
kept = pages()
hand_back_freed_memory()
print(kept - pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such function")
def test_memory_is_handed_back_from_the_middle_of_the_heap() -> None:
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, timeout=1800, check=True)
    assert int(done.stdout) * resource.getpagesize() > 200e6


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", None)
    assert not memory.keep_freed_memory()
    memory.hand_back_freed_memory()
