"""What a file is likely to lose on real images, and the warning for a run that ended badly.

    drop   = POINTS * e * (C / 10)^0.12              points of top-1
    flips  = FLIPS * e^(1/2) * (C / 10)^0.2          percent of images that change class
    bounds = drop / SPREAD - chance,  drop * SPREAD + chance,     chance = CHANCE * flips^(1/2)

e is the error of the logits on held-back images (`score.py`), C the number of classes. Noise on the logits changes
classes in proportion to its amplitude, both ways: gains and losses nearly cancel, and what is lost in the end grows
with the square of the noise, which the error is. How many images change sides is what chance does to an accuracy
that is measured on some hundred of them. `benchmarks/forecast.py` fits the constants and says how often the bounds
hold, also for each network with the constants that the others alone would give.

Beyond `FURTHEST`, states that score alike lose anything from a few points to all of them: there is no forecast.
"""

from __future__ import annotations

from dataclasses import dataclass

POINTS, POINTS_CROWDING = 30.0, 0.12
FLIPS, FLIPS_CROWDING = 22.0, 0.2
SPREAD, CHANCE = 2.0, 0.5
FURTHEST = 0.3
LOW_AGREEMENT, LARGE_LOSS = (
    75.0,
    5.0,
)  # percent and points; below the one or from the other on a run ends with a warning


@dataclass(frozen=True)
class Forecast:
    """Points of top-1 that a network is expected to lose on real images, and between which bounds; below 0 it gains."""

    drop: float
    low: float
    high: float

    @property
    def text(self) -> str:
        """In one phrase."""
        return f"{self.drop:.1f} ({self.low:.1f} to {self.high:.1f})"


def forecast(error: float, classes: int, points: float = POINTS, flips: float = FLIPS) -> Forecast | None:
    """What an error on held-back images means for real ones; None where it is too large to tell."""
    if error > FURTHEST:
        return None
    crowd = max(classes, 2) / 10
    drop, changed = points * error * crowd**POINTS_CROWDING, flips * error**0.5 * crowd**FLIPS_CROWDING
    chance = CHANCE * changed**0.5
    return Forecast(min(drop, 100.0), drop / SPREAD - chance, min(drop * SPREAD + chance, 100.0))


def warning_of(agreement: float, images: int, error: float, classes: int) -> str | None:
    """What to do about a network that is far from the float one; None where it is near enough."""
    expected = forecast(error, classes)
    if agreement >= LOW_AGREEMENT and expected is not None and expected.drop < LARGE_LOSS:
        return None
    return (
        f"the file is far from the float network ({agreement:.1f} % agreement on {images} held-back images, error of "
        f"the logits {error:.2f}): expect a large loss of accuracy. Give it more time (--preset standard, or a longer "
        "--budget), more bits (--first-last 8, or wider weights or activations), or try another --method"
    )
