"""The table of names: complete, equal to pytorchcv's own, and helpful about typing errors."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from gdfq_export.errors import UnknownModelError
from gdfq_export.models.table import SHORT_NAMES, TABLE_FILE, all_models, find_model

GENERATOR = Path(__file__).parents[2] / "scripts" / "list_classifiers.py"
PAPER_AND_CLI_NAMES = ("mobilenetv2", "resnet20", "resnet18", "resnet50", "bn_vgg16", "inceptionv3", "shufflenet")


@pytest.mark.parametrize("name", PAPER_AND_CLI_NAMES)
def test_the_names_that_users_type_are_known(name: str) -> None:
    assert find_model(name).name == name


def test_the_table_has_every_classifier_of_pytorchcv_and_nothing_else() -> None:
    generator = runpy.run_path(str(GENERATOR))
    listed = [line.split("\t")[0] for line in TABLE_FILE.read_text().splitlines()[1:]]
    assert listed == generator["classifier_names"]()


def test_weights_are_said_to_be_published_exactly_where_pytorchcv_has_a_checksum() -> None:
    from gdfq_export.models.download import published_weights

    for name, entry in all_models().items():
        if entry.weights != "embedded":
            assert (entry.weights == "download") == (published_weights(entry.architecture) is not None), name


@pytest.mark.parametrize(
    "name",
    ["mobilenetv2_w1", "inceptionv3", "efficientnet_b4b", "resnet56_cifar100", "nin_svhn", "mobilenet_w1_cub"],
)
def test_a_line_of_the_table_is_what_the_generator_finds_in_the_network(name: str) -> None:
    generator = runpy.run_path(str(GENERATOR))
    lines = {line.split("\t")[0]: tuple(line.split("\t")) for line in TABLE_FILE.read_text().splitlines()}
    assert lines[name] == generator["row"](name)


@pytest.mark.slow
def test_the_whole_table_is_what_the_generator_writes() -> None:
    made = subprocess.run([sys.executable, GENERATOR], capture_output=True, text=True, check=True).stdout
    assert made == TABLE_FILE.read_text()


def test_short_names_stand_for_networks_of_the_table_and_hide_none() -> None:
    architectures = {entry.architecture for entry in all_models().values()}
    assert set(SHORT_NAMES.values()) <= architectures
    assert not set(SHORT_NAMES) & architectures


def test_sizes_classes_and_resize_are_those_of_the_data_set() -> None:
    inception, cifar = find_model("inceptionv3"), find_model("resnet56")
    assert (inception.input_size, inception.num_classes, inception.resize) == ((3, 299, 299), 1000, 342)
    assert (cifar.input_size, cifar.num_classes, cifar.resize) == ((3, 32, 32), 10, None)


def test_the_embedded_network_has_its_own_normalisation_also_under_its_short_name() -> None:
    for name in ("resnet20", "resnet20_cifar10"):
        entry = find_model(name)
        assert (entry.mean, entry.std, entry.weights) == ((0.5,) * 3, (0.5,) * 3, "embedded")
    assert find_model("resnet56").mean == (0.4914, 0.4822, 0.4465)
    assert find_model("mobilenetv2").std == (0.229, 0.224, 0.225)


def test_capitals_and_hyphens_do_not_matter() -> None:
    assert find_model("MobileNet-V2").architecture == "mobilenetv2_w1"


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownModelError, match=r"'mobilnetv2'; the nearest names are mobilenetv2, ") as caught:
        find_model("mobilnetv2")
    assert caught.value.exit_code == 2


def test_a_name_near_nothing_suggests_nothing() -> None:
    with pytest.raises(UnknownModelError, match=r"'qqqqqq' \("):
        find_model("qqqqqq")


def test_listing_names_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gdfq_export.models.table import all_models; all_models();"
        "print([name for name in ('torch', 'pytorchcv', 'numpy', 'onnx') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
