"""Quantization methods: one a file, each a function from a task to a quantized network."""

from __future__ import annotations

from collections.abc import Callable

from gdfq_export.methods.auto import auto
from gdfq_export.methods.calibrate import calibrate
from gdfq_export.methods.dfq import dfq
from gdfq_export.methods.dfqf import dfqf
from gdfq_export.methods.gdfq import gdfq
from gdfq_export.methods.recon import recon
from gdfq_export.methods.task import Outcome, Task
from gdfq_export.methods.zeroq import zeroq

METHODS: dict[str, Callable[[Task], Outcome]] = {
    "gdfq": gdfq,
    "calibrate": calibrate,
    "auto": auto,
    "recon": recon,
    "dfq": dfq,
    "dfqf": dfqf,
    "zeroq": zeroq,
}

__all__ = ["METHODS", "Outcome", "Task"]
