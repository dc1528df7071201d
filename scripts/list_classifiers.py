"""Write the table of pytorchcv's image classifiers: the names that `--model` takes.

    python scripts/list_classifiers.py > models/classifiers.tsv

Run it when pytorchcv's version changes. Everything in the table comes from pytorchcv itself: names from its model
provider, sizes and class counts from the networks (built without memory, on the meta device), the resize before the
centre crop from its table of published weights. pytorchcv also has networks for other tasks; `OTHER_TASKS` leaves
them out by the file they are defined in, because a name does not always tell (`prnet`, `pfpcnet`), and because some of
them have `in_size` and `num_classes` just like a classifier.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import torch

SEGMENTATION = {
    *("fcn8sd", "pspnet", "deeplabv3", "icnet", "fastscnn", "cgnet", "dabnet", "sinet", "bisenet", "danet", "fpenet"),
    *("contextnet", "lednet", "esnet", "edanet", "enet", "erfnet", "linknet", "segnet", "unet", "sqnet"),
}
POSE = {"alphapose_coco", "simplepose_coco", "simpleposemobile_coco", "lwopenpose_cmupan", "ibppose_coco"}
FACES = {"prnet", "pfpcnet", "voca", "nvpattexp"}  # landmarks, meshes and attributes
DETECTION = {"centernet", "lffd", "superpointnet"}  # the last one: keypoints
SPEECH = {"jasper", "jasperdr", "quartznet"}
OTHER_TASKS = SEGMENTATION | POSE | FACES | DETECTION | SPEECH

EMBEDDED = {"resnet20_cifar10"}  # shipped in this package, trained with mean = std = 0.5
PIXEL_INPUT_SUFFIXES = ("_cifar10", "_cifar100", "_svhn")  # 32x32 images that are neither resized nor cropped
CROP_RATIO = 0.875  # pytorchcv's, where its table of weights says nothing


def classifier_names() -> list[str]:
    """Every name in pytorchcv's model provider that stands for an image classifier."""
    from pytorchcv.model_provider import _models

    return [name for name, factory in _models.items() if factory.__module__.rsplit(".", 1)[-1] not in OTHER_TASKS]


def normalisation(name: str) -> str:
    """The name of the mean and standard deviation: pytorchcv trains all networks of one data set with the same."""
    if name in EMBEDDED:
        return "half"
    return "cifar" if name.endswith(PIXEL_INPUT_SUFFIXES) else "imagenet"


def row(name: str) -> tuple[str, ...]:
    """One line of the table: name, input size, classes, resize ("-": none), normalisation, weights."""
    from pytorchcv.model_provider import get_model
    from pytorchcv.models.model_store import _model_sha1

    with torch.device("meta"):
        network = get_model(name)
    height, width = network.in_size
    assert height == width, f"{name}: the table holds square inputs only"
    ratio = _model_sha1[name][7] if name in _model_sha1 else 0.0
    resize = "-" if name.endswith(PIXEL_INPUT_SUFFIXES) else str(math.ceil(height / (ratio or CROP_RATIO)))
    weights = "embedded" if name in EMBEDDED else "download" if name in _model_sha1 else "none"
    return name, str(height), str(network.num_classes), resize, normalisation(name), weights


def rows() -> Iterator[tuple[str, ...]]:
    """The header and a line a network, in pytorchcv's order."""
    np.int = int  # type: ignore[attr-defined] # RegNet and NTS-Net of pytorchcv 0.0.67 use this alias of old numpy
    yield "name", "input", "classes", "resize", "normalisation", "weights"
    yield from map(row, classifier_names())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    for line in rows():
        print("\t".join(line))
