from __future__ import annotations

import pytest

from gdfq_export import passes
from gdfq_export.cli.options import BYTES, OPERATIONS, parse_amount, parse_budget, parse_floats, parse_size
from gdfq_export.errors import UsageError
from gdfq_export.lower import TARGETS
from gdfq_export.methods import METHODS
from gdfq_export.names import METHOD_NAMES, OPTIONAL_PASSES, PRESETS, TARGET_NAMES
from gdfq_export.plan import BitWidths
from gdfq_export.runtime_checks.names import LEVEL_NAMES, RUNTIME_NAMES
from gdfq_export.runtime_checks.other_runtimes import RUNTIMES
from gdfq_export.runtime_checks.sessions import LEVELS
from gdfq_export.settings import (
    distillation_for,
    is_large,
    reconstruction_for,
    schedule_for,
    tuning_for,
    weighing_for,
)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("45", 45.0)])
def test_a_budget_is_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-5m", "ten minutes", "5d", "1e3s", "nan", "0.0h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--budget") as caught:
        parse_budget(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "amount"), [("400kB", 400_000), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("900", 900), ("12b", 12)]
)
def test_a_size_budget_is_a_number_of_bytes(text: str, amount: int) -> None:
    assert parse_amount(text, "--size-budget", "400kB", BYTES) == amount


def test_a_compute_budget_is_a_number_of_operations() -> None:
    assert parse_amount("2.5G", "--bitops-budget", "2.5G", OPERATIONS) == 2_500_000_000


@pytest.mark.parametrize("text", ["", "kB", "-1kB", "0", "0.5b", "4 apples", "1e3", "nan"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--size-budget"):
        parse_amount(text, "--size-budget", "400kB", BYTES)


def test_a_size_is_channels_height_and_width() -> None:
    assert parse_size(" 3x224x192 ") == (3, 224, 192)


@pytest.mark.parametrize("text", ["224", "3x224", "3x224x224x1", "3X224X224", "0x8x8", "3x-8x8", "axbxc"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--input-size"):
        parse_size(text)


@pytest.mark.parametrize(("text", "values"), [("0.5", (0.5,)), ("0.485, 0.456,0.406", (0.485, 0.456, 0.406))])
def test_numbers_are_separated_by_commas(text: str, values: tuple[float, ...]) -> None:
    assert parse_floats(text, "--mean") == values


@pytest.mark.parametrize("text", ["", "a", "0.5,", "0.5;0.5"])
def test_what_are_no_numbers_is_refused_by_the_options_name(text: str) -> None:
    with pytest.raises(UsageError, match="--std"):
        parse_floats(text, "--std")


def test_every_name_that_can_be_chosen_is_one_that_the_code_knows() -> None:
    """The lists are written once, apart from the tables that have the code itself behind each name."""
    assert set(METHOD_NAMES) == METHODS.keys()
    assert set(TARGET_NAMES) == TARGETS.keys()
    assert set(LEVEL_NAMES) == LEVELS.keys()
    assert set(RUNTIME_NAMES) == RUNTIMES.keys()
    assert {"find_channel_shuffle", "pad_input", "space_to_depth"} == set(OPTIONAL_PASSES) & set(passes.__all__)
    assert {"pad_depthwise", "pool_as_conv"} == set(OPTIONAL_PASSES) - set(passes.__all__)


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 224, 224)])
def test_every_preset_has_a_schedule_of_its_own(shape: tuple[int, int, int]) -> None:
    for values in (schedule_for, distillation_for, reconstruction_for, weighing_for):
        if values is not weighing_for or is_large(shape):
            assert len({values(name, shape) for name in PRESETS}) == len(PRESETS)
    assert len({tuning_for(name, shape, BitWidths(4, 4)) for name in PRESETS}) == len(PRESETS)
