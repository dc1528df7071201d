"""The table of networks that users can name, with what must be known about each before it is loaded.

`classifiers.tsv` has one line for every image classifier of pytorchcv; `SHORT_NAMES` adds what people type. Nothing
heavy is imported here, so that names can be listed and checked at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from gdfq_export.errors import UnknownModelError

Weights = Literal["embedded", "download", "none"]

TABLE_FILE = Path(__file__).parent / "classifiers.tsv"

# Mean and standard deviation of the pixels in [0, 1]. "All pretrained models require the same ordinary normalization"
# (pytorchcv's README); its CIFAR and SVHN networks share the other one. "half" is the embedded network's.
NORMALISATIONS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = MappingProxyType(
    {
        "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "cifar": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    }
)

# What people type -> pytorchcv's name. Spellings of the paper, of common speech and of torchvision.
SHORT_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "resnet20": "resnet20_cifar10",
        "resnet56": "resnet56_cifar10",
        "resnet110": "resnet110_cifar10",
        "mobilenet": "mobilenet_w1",
        "mobilenetv1": "mobilenet_w1",
        "mobilenet_v1": "mobilenet_w1",
        "mobilenetv2": "mobilenetv2_w1",
        "mobilenet_v2": "mobilenetv2_w1",
        "mobilenetv2b": "mobilenetv2b_w1",
        "mobilenetv3": "mobilenetv3_large_w1",
        "mobilenetv3_small": "mobilenetv3_small_w1",
        "mobilenetv3_large": "mobilenetv3_large_w1",
        "mobilenet_v3_small": "mobilenetv3_small_w1",
        "mobilenet_v3_large": "mobilenetv3_large_w1",
        "fdmobilenet": "fdmobilenet_w1",
        "igcv3": "igcv3_w1",
        "mnasnet": "mnasnet_b1",
        "proxylessnas": "proxylessnas_mobile",
        "fbnet": "fbnet_cb",
        "shufflenet": "shufflenet_g1_w1",
        "shufflenetv2": "shufflenetv2_w1",
        "shufflenet_v2": "shufflenetv2_w1",
        "menet": "menet108_8x1_g3",
        "squeezenet": "squeezenet_v1_1",
        "squeezenet1_0": "squeezenet_v1_0",
        "squeezenet1_1": "squeezenet_v1_1",
        "efficientnet": "efficientnet_b0",
        "efficientnetb0": "efficientnet_b0",
        "mixnet": "mixnet_s",
        "darknet": "darknet_ref",
        "vgg16_bn": "bn_vgg16",
        "vgg19_bn": "bn_vgg19",
        "vgg11_bn": "bn_vgg11",
        "vgg13_bn": "bn_vgg13",
        "inception_v3": "inceptionv3",
        "inception_v4": "inceptionv4",
        "bn_inception": "bninception",
        "densenet": "densenet121",
        "resnext50": "resnext50_32x4d",
        "resnext101": "resnext101_32x4d",
        "seresnext50": "seresnext50_32x4d",
        "senet": "senet154",
        "wide_resnet50_2": "wrn50_2",
        "nasnet_mobile": "nasnet_4a1056",
        "nasnet_large": "nasnet_6a4032",
    }
)


@dataclass(frozen=True)
class ModelEntry:
    """One network of the table: `name` as asked for, `architecture` as pytorchcv calls it."""

    name: str
    architecture: str
    input_size: tuple[int, int, int]
    num_classes: int
    resize: int | None  # shorter side before the centre crop; None: images are taken as they are
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: Weights


def find_model(name: str) -> ModelEntry:
    """The entry of a name; capitals and hyphens do not matter."""
    table = all_models()
    entry = table.get(name.strip().lower().replace("-", "_"))
    if entry is None:
        raise UnknownModelError(_unknown_message(name, list(table)))
    return entry


@cache
def all_models() -> Mapping[str, ModelEntry]:
    """Every name that can be typed, short names first."""
    architectures = {entry.architecture: entry for entry in map(_entry_from_line, _lines())}
    short = {
        name: ModelEntry(**{**vars(architectures[architecture]), "name": name})
        for name, architecture in SHORT_NAMES.items()
    }
    return MappingProxyType({**short, **architectures})


def _lines() -> list[str]:
    return TABLE_FILE.read_text(encoding="utf-8").splitlines()[1:]


def _entry_from_line(line: str) -> ModelEntry:
    name, side, classes, resize, normalisation, weights = line.split("\t")
    mean, std = NORMALISATIONS[normalisation]
    return ModelEntry(
        name=name,
        architecture=name,
        input_size=(3, int(side), int(side)),
        num_classes=int(classes),
        resize=None if resize == "-" else int(resize),
        mean=mean,
        std=std,
        weights=cast(Weights, weights),
    )


def _unknown_message(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=3, cutoff=0.5)
    guess = f"; the nearest names are {', '.join(near)}" if near else ""
    return (
        f"unknown model {name!r}{guess} (`gdfq-export models` lists all; "
        "a network of your own is FILE.py:FACTORY or FILE.pt2)"
    )
