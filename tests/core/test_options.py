from __future__ import annotations

from pathlib import Path

import pytest

from gdfq_export.cli import quantize
from gdfq_export.cli.options import BYTES, OPERATIONS, parse_amount, parse_budget, parse_floats, parse_size, read_config
from gdfq_export.errors import InputFileError, UsageError
from gdfq_export.lower import TARGETS
from gdfq_export.methods import METHODS
from gdfq_export.passes import OPTIONAL_PASSES


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


def config(folder: Path, text: str) -> Path:
    path = folder / "c.toml"
    path.write_text(text)
    return path


def test_a_config_names_options_as_the_command_line_does(tmp_path: Path) -> None:
    path = config(tmp_path, 'weight-bits = 4\nmethod = "calibrate"\n')
    assert read_config(path, {"weight_bits", "method"}) == {"weight_bits": 4, "method": "calibrate"}


def test_an_unknown_option_in_a_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="weigth-bits"):
        read_config(config(tmp_path, "weigth-bits = 4"), {"weight_bits"})


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="No such file"):
        read_config(tmp_path / "none.toml", set())


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match="not valid TOML"):
        read_config(config(tmp_path, "bits = "), {"bits"})


def test_a_config_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputFileError, match="not valid TOML"):
        read_config(path, set())


def test_names_that_are_written_down_twice_to_start_quickly_are_the_same() -> None:
    assert quantize.SPEED_PASSES == OPTIONAL_PASSES
    assert set(quantize.METHOD_NAMES) == METHODS.keys()
    assert set(quantize.TARGET_NAMES) == TARGETS.keys()
