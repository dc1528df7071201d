"""The parts of GDFQ that its ablation tables switch off; by default all of them are on, as in the method itself."""

from __future__ import annotations

from dataclasses import dataclass

from gdfq_export.errors import UsageError


@dataclass(frozen=True)
class Ablations:
    """Which parts of Algorithm 1 a run has; contradictions are refused when it is made."""

    generator_cross_entropy: bool = True  # Table 2, eq. 4
    generator_statistics: bool = True  # Table 2, eq. 5; with neither the generator stays as it starts
    student_cross_entropy: bool = True  # Table 3, eq. 7
    distillation: bool = True  # Table 3, eq. 8
    fixed_statistics: bool = True  # Table 4: batch norm of the student keeps the statistics of the float network
    alternating: bool = True  # Table 6: otherwise the generator is trained first, and then stays as it is
    stop_threshold: float | None = None  # Table 7: percent of images recognised at which the generator stops

    keep_better: bool = True  # of the calibrated and the trained student; otherwise the trained one, as the paper does

    def __post_init__(self) -> None:
        if not self.student_cross_entropy and not self.distillation:
            raise UsageError(
                "--no-student-ce and --no-student-kd leave the student without a loss: keep one of them, "
                "or use --method calibrate, which trains no student"
            )
        if self.stop_threshold is None:
            return
        if not 0 < self.stop_threshold <= 100:
            raise UsageError(f"--stop-threshold {self.stop_threshold:g} is no percentage: give a number up to 100")
        if not self.alternating:
            raise UsageError(
                "--stop-threshold ends the generator's part of alternating training, which --separate does not have: "
                "leave one of them out"
            )
        if not self.trains_generator:
            raise UsageError(
                "--stop-threshold has no meaning when --no-generator-ce and --no-generator-bns leave the generator "
                "untrained: leave it out"
            )

    @property
    def trains_generator(self) -> bool:
        """Whether the generator has a loss."""
        return self.generator_cross_entropy or self.generator_statistics
