"""The switches of `quantize` that take parts of GDFQ away, checked against each other and against the method."""

from __future__ import annotations

from pathlib import Path

from gdfq_export.ablations import Ablations
from gdfq_export.errors import UsageError

PANEL = "Parts of GDFQ, for its ablations"
STUDENT_METHODS = ("gdfq",)
GENERATOR_METHODS = ("gdfq", "calibrate")
IMAGE_METHODS = ("recon", "auto", "dfq", "zeroq")


def check_switches(
    method: str, ablations: Ablations, *, ranges: str, reading: str | None, calibration: Path | None, real: Path | None
) -> None:
    """Refuses switches that mean nothing to the method, or to each other."""
    student = ablations.student_only()
    if ranges == "learned":
        student.append("--ranges learned")
    if real is not None:
        student.append("--real-data")
    generator = [] if ablations.trains_generator else ["--no-generator-ce and --no-generator-bns"]
    generator = generator or [name for name in ablations.generator_only() if name not in student]
    generator += ["--reading"] if reading is not None else []
    generator += ["--calibration-data"] if calibration is not None else []
    for names, methods in ((student, STUDENT_METHODS), (generator, GENERATOR_METHODS)):
        if names and method not in methods:
            raise UsageError(f"{names[0]} has no meaning for --method {method}: use it with {' or '.join(methods)}")
    if real is not None and (unused := ablations.generator_only()):
        raise UsageError(f"{unused[0]} is about the generator, which --real-data replaces: leave one of them out")
    if method == "calibrate" and calibration is not None and generator != ["--calibration-data"]:
        raise UsageError(
            f"{generator[0]} is about the generator, which --method calibrate does not need with --calibration-data: "
            "leave one of them out"
        )


def check_images(method: str, images: Path | None, *, budget: bool) -> None:
    """Refuses a file of images where none are optimised, or where time decides how many."""
    if images is None:
        return
    if method not in IMAGE_METHODS:
        raise UsageError(f"--images has no meaning for --method {method}: use it with {' or '.join(IMAGE_METHODS)}")
    if budget:
        raise UsageError("--budget decides how many images are made, so that no file fits: use --preset with --images")
