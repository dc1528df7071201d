"""Which methods read which option of `quantize`; an option that would change nothing is refused.

The tables say what the code does: `tests/cli/test_switches.py` runs every method and looks at what it reads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from gdfq_export.ablations import Ablations
from gdfq_export.errors import UsageError
from gdfq_export.names import METHOD_NAMES, Method

PANEL = "Parts of GDFQ, for its ablations"
IMAGE_METHODS: tuple[Method, ...] = ("recon", "auto", "dfq", "zeroq")

READERS: Mapping[str, tuple[Method, ...]] = MappingProxyType(
    {
        "generator_lr": ("gdfq", "calibrate", "dfqf"),
        "student_lr": ("gdfq", "dfqf"),
        "size_budget": ("zeroq",),
        "bitops_budget": ("zeroq",),
        "reading": ("gdfq", "calibrate", "dfqf"),
        "calibration_data": ("gdfq", "calibrate"),
        "real_data": ("gdfq",),
        "images": IMAGE_METHODS,
        "no_generator_ce": ("gdfq", "calibrate"),
        "no_generator_bns": ("gdfq", "calibrate"),
        "no_student_ce": ("gdfq",),
        "no_student_kd": ("gdfq",),
        "moving_statistics": ("gdfq",),
        "separate": ("gdfq", "calibrate"),
        "stop_threshold": ("gdfq",),
        "keep_trained": ("gdfq",),
    }
)
"""Option -> the methods that read it; every method reads what is not listed."""

PRESET_BESIDE_BUDGET: tuple[Method, ...] = ("gdfq", "calibrate", "zeroq", "dfqf")
"""Methods whose learning rates and batches are the preset's also where a budget decides how long they take."""

LEARNS_RANGES: tuple[Method, ...] = ("gdfq",)
OF_THE_GENERATOR = ("generator_lr", "no_generator_ce", "no_generator_bns", "separate", "stop_threshold")
UNREAD_WITH_REAL_DATA = OF_THE_GENERATOR
UNREAD_WITH_CALIBRATION_DATA = (*OF_THE_GENERATOR, "reading", "budget")  # with --method calibrate
UNREAD_UNTRAINED = ("generator_lr", "separate")  # without a loss of the generator


def option_name(parameter: str) -> str:
    """generator_lr -> --generator-lr"""
    return f"--{parameter.replace('_', '-')}"


def check_options(method: str, given: Collection[str], ablations: Ablations, *, ranges: str) -> None:
    """Refuses what was given, on the command line or in a config, and would change nothing."""
    for name in given:
        refuse_others(option_name(name), method, READERS.get(name, METHOD_NAMES))
    if ranges == "learned":
        refuse_others("--ranges learned", method, LEARNS_RANGES)
    if "real_data" in given:
        for name in _both(given, UNREAD_WITH_REAL_DATA):
            raise UsageError(f"{name} is about the generator, which --real-data replaces: leave one of them out")
    if method == "calibrate" and "calibration_data" in given:
        for name in _both(given, UNREAD_WITH_CALIBRATION_DATA):
            raise UsageError(
                f"{name} is about the generator, which --method calibrate does not need with --calibration-data: "
                "leave one of them out"
            )
    if not ablations.trains_generator:
        for name in _both(given, UNREAD_UNTRAINED):
            raise UsageError(
                f"{name} has no meaning when --no-generator-ce and --no-generator-bns leave the generator untrained: "
                "leave it out"
            )
    if "budget" in given and "images" in given:
        raise UsageError("--budget decides how many images are made, so that no file fits: use --preset with --images")
    if "budget" in given and "preset" in given and method not in PRESET_BESIDE_BUDGET:
        raise UsageError(f"--budget says how long --method {method} takes, and --preset too: leave one of them out")


def refuse_others(option: str, method: str, readers: Collection[str]) -> None:
    """UsageError where the method is none of those that read the option."""
    if method not in readers:
        raise UsageError(f"{option} has no meaning for --method {method}: use it with {' or '.join(readers)}")


def _both(given: Collection[str], unread: Collection[str]) -> list[str]:
    return [option_name(name) for name in given if name in unread]
