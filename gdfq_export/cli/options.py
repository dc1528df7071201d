"""Reads the option values that are more than a number or a name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from gdfq_export.errors import UsageError

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}
BYTES = {"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20}
OPERATIONS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_budget(text: str) -> float:
    """`90s`, `10m` or `1.5h` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if match is None or float(match[1]) == 0:
        raise UsageError(f"--budget {text!r} is no time: write it like 90s, 10m or 1.5h")
    return float(match[1]) * UNITS[match[2]]


def parse_amount(text: str, option: str, example: str, units: Mapping[str, float]) -> int:
    """`400kB` or `1.5G` as a whole number of bytes or operations."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    amount = 0.0 if match is None else float(match[1]) * units.get(match[2].lower(), 0.0)
    if amount < 1:
        raise UsageError(f"{option} {text!r} is no amount: write it like {example}")
    return int(amount)


def parse_size(text: str) -> tuple[int, int, int]:
    """`3x224x224` as three integers."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text.strip())
    if match is None or "0" in match.groups():
        raise UsageError(f"--input-size {text!r} is no size: write it as channels x height x width, like 3x224x224")
    return int(match[1]), int(match[2]), int(match[3])


def parse_floats(text: str, option: str) -> tuple[float, ...]:
    """`0.5` or `0.485,0.456,0.406` as numbers."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(math.isfinite(value) for value in values):
        raise UsageError(f"{option} {text!r} is no list of numbers: write it like 0.485,0.456,0.406")
    return values


def parse_range(text: str) -> tuple[float, float]:
    """`-2,2` as two numbers."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--input-range {text!r} is no range: write it as LOW,HIGH, like -2,2") from None
    return low, high


def max_memory_bytes(gigabytes: float) -> int:
    """`--max-memory` as bytes."""
    if not 0 < gigabytes < math.inf:
        raise UsageError(f"--max-memory {gigabytes:g} is no size in GB: give more than 0")
    return int(gigabytes * 1e9)
