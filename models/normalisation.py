"""What the network is fed: input = (pixel - mean) / std of pixels in 0..1, or values of a range where it is no image.

Mean and std above 1 are of pixels in 0..255, as Caffe and mmcv have them, and become those of pixels in 0..1:

    (255 pixel - mean) / std = (pixel - mean / 255) / (std / 255)

Only a mean of 0 and a std of 1 do not tell the unit: the other of the two does, and together they are of 0..1.
"""

from __future__ import annotations

import logging
import math

from gdfq_export.errors import UsageError

BYTE = 255.0
SMALLEST_STD = 1e-6
LARGEST_VALUE = 1e6  # that a network is fed
SMALLEST_WIDTH = 1e-4  # of a range
LEAST_SHARE = 1 / 16  # of the codes that a range must use, where zero is one of them
IDENTITY = (0.0, 1.0)

Floats = tuple[float, ...]
logger = logging.getLogger(__name__)


def normalisation(
    mean: Floats | None,
    std: Floats | None,
    input_range: tuple[float, float] | None,
    channels: int,
    default: tuple[Floats, Floats],
) -> tuple[Floats, Floats]:
    """Mean and std of pixels in 0..1, one a channel, from what the user gave; without a word it is the default."""
    if (mean is None) != (std is None):
        given, other = ("--mean", "--std") if std is None else ("--std", "--mean")
        raise UsageError(f"{given} without {other} is half a normalisation: give both")
    if input_range is not None:
        _check_range(*input_range)
    if mean is None or std is None:
        means, stds = default if input_range is None else ((0.0,) * channels, (1.0,) * channels)
        if len(means) != channels:
            raise UsageError(
                f"the input has {_count(channels)}, for which no mean and std are known: give --mean and --std (0 and "
                "1 for pixels in 0..1 as they are, 0.5 and 0.5 for -1..1), or --input-range LOW,HIGH where the input "
                "is no image"
            )
        return means, stds
    means, stds = _per_channel("--mean", mean, channels), _per_channel("--std", std, channels)
    means, stds = _of_unit_pixels(means, stds)
    if input_range is not None:
        _check_cover(means, stds, input_range)
    return means, stds


def is_identity(mean: Floats, std: Floats) -> bool:
    """Whether the network is fed what it is given."""
    return all(pair == IDENTITY for pair in zip(mean, std, strict=True))


def _per_channel(option: str, values: Floats, channels: int) -> Floats:
    values = tuple(values) * channels if len(values) == 1 else tuple(values)
    if len(values) != channels:
        raise UsageError(f"{option} has {len(values)} values where the input has {_count(channels)}")
    for value in values:
        if option == "--mean" and not abs(value) <= BYTE:
            raise UsageError(f"--mean must be that of pixels in 0..1 or in 0..255, not {value:g}")
        if option == "--std" and not SMALLEST_STD <= value <= BYTE:
            raise UsageError(f"--std must be that of pixels in 0..1 or in 0..255, not {value:g}")
    return values


def _of_unit_pixels(mean: Floats, std: Floats) -> tuple[Floats, Floats]:
    """The same normalisation for pixels in 0..1."""
    in_bytes = {"--mean": max(map(abs, mean)) > 1, "--std": max(std) > 1}
    if not any(in_bytes.values()):
        return mean, std
    undecided = {"--mean": not any(mean), "--std": set(std) == {1.0}}
    if not all(in_bytes[option] or undecided[option] for option in in_bytes):
        units = [f"{option} is of pixels in {'0..255' if in_bytes[option] else '0..1'}" for option in in_bytes]
        raise UsageError(f"{' and '.join(units)}: give both for pixels in 0..1, or both for 0..255")
    unit = tuple(value / BYTE for value in mean), tuple(value / BYTE for value in std)
    said = " and ".join(
        f"{name} {','.join(f'{value:.4g}' for value in dict.fromkeys(values))}"
        for name, values in zip(("mean", "std"), unit, strict=True)
    )
    logger.warning("--mean and --std are of pixels in 0..255: taken as %s of pixels in 0..1", said)
    return unit


def _check_range(low: float, high: float) -> None:
    named = f"--input-range {low:g},{high:g}"
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"{named} is no range: give LOW,HIGH, like -2,2")
    if max(-low, high) > LARGEST_VALUE:
        raise UsageError(f"{named} goes beyond {LARGEST_VALUE:g}: scale what the network is fed")
    if high - low < SMALLEST_WIDTH:
        raise UsageError(f"{named} is narrower than {SMALLEST_WIDTH:g}: scale what the network is fed")
    if high - low < LEAST_SHARE * (max(high, 0.0) - min(low, 0.0)):
        raise UsageError(
            f"{named} would use few of the codes, because zero is always one of them: shift what the network is fed "
            "towards zero"
        )


def _check_cover(mean: Floats, std: Floats, input_range: tuple[float, float]) -> None:
    """Normalised pixels must lie in a range that is given beside the normalisation."""
    low = min((0.0 - m) / s for m, s in zip(mean, std, strict=True))
    high = max((1.0 - m) / s for m, s in zip(mean, std, strict=True))
    if not is_identity(mean, std) and not (input_range[0] <= low and high <= input_range[1]):
        raise UsageError(
            f"pixels reach {low:.4g}..{high:.4g} through --mean and --std, which --input-range "
            f"{input_range[0]:g},{input_range[1]:g} would clip: leave --input-range out, or --mean and --std where "
            "the input is no image"
        )


def _count(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"
