"""Quantization methods: one a file, each a function from a task to a quantized network."""

from __future__ import annotations

from collections.abc import Callable

from gdfq_export.methods.calibrate import calibrate
from gdfq_export.methods.gdfq import gdfq
from gdfq_export.methods.recon import recon
from gdfq_export.methods.task import Outcome, Task

METHODS: dict[str, Callable[[Task], Outcome]] = {"gdfq": gdfq, "calibrate": calibrate, "recon": recon}

__all__ = ["METHODS", "Outcome", "Task"]
