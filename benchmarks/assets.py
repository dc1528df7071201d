"""Networks with published weights, and the labelled images that judge them: what benchmarks run on.

They stand in a folder that is no part of this repository, whose path each benchmark takes as an argument:

    checkpoints/*.safetensors, byo_models.py     weights, and the modules that are not in pytorchcv
    cifar10/val_*.png, labels.json               images of CIFAR-10 that no network here was trained on
    imagenet_val650.zip                          650 images of ImageNet's validation set, one folder a class
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from gdfq_export.models.sources import LoadedModel, load_model

CIFAR = "cifar10"
IMAGENET = "imagenet_val650"


@dataclass(frozen=True)
class Asset:
    """A network of the folder, as a user would name it."""

    name: str
    model: str  # a name of the table, or FILE.py:FACTORY below the folder
    weights: str | None = None  # of checkpoints/; None: embedded
    images: str = IMAGENET
    resize: int | None = 227  # shorter side before the crop: the images' own
    size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def load(self, root: Path) -> LoadedModel:
        """The network with its weights."""
        spec = str(root / self.model) if ":" in self.model else self.model
        weights = None if self.weights is None else root / "checkpoints" / f"{self.weights}.safetensors"
        loaded = load_model(spec, weights=weights, input_size=self.size, mean=self.mean, std=self.std)
        return dataclasses.replace(loaded, resize=self.resize)


LARGE = (3, 224, 224)
ASSETS = {
    asset.name: asset
    for asset in (
        Asset("resnet20_cifar10", "resnet20_cifar10", images=CIFAR, resize=None),
        Asset("fdmobilenet_wd2", "fdmobilenet_wd2", "fdmobilenet_wd2"),
        Asset("menet108_8x1_g3", "menet108_8x1_g3", "menet108_8x1_g3"),
        Asset("darknet_tiny", "darknet_tiny", "darknet_tiny", mean=(0.0,), std=(1.0,)),
        Asset("mcunet", "byo_models.py:mcunet", "mcunet_320kb_in3", IMAGENET, 201, (3, 176, 176), (0.5,), (0.5,)),
        Asset(
            *("mobilenet_v1_075", "byo_models.py:mobilenet_v1_075", "keras_mobilenet_v1_075_224"),
            *(IMAGENET, 227, LARGE, (0.5,), (0.5,)),
        ),
        Asset(
            *("mobilenetv2", "byo_models.py:mobilenetv2", "mobilenetv2_torchvision"),
            *(IMAGENET, 227, LARGE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ),
        Asset(
            *("efficientnet_lite0", "byo_models.py:efficientnet_lite0", "efficientnet_lite0"),
            *(IMAGENET, 227, LARGE, (127 / 255,), (128 / 255,)),
        ),
    )
}


def image_folder(asset: Asset, root: Path, work: Path, sheets: int = 5) -> Path:
    """Its labelled images as one folder a class, made below `work` where they are not there yet."""
    out = work / asset.images
    if out.is_dir():
        return out
    if asset.images == IMAGENET:
        with zipfile.ZipFile(root / f"{IMAGENET}.zip") as archive:
            archive.extractall(out)
        return out
    labels = json.loads((root / CIFAR / "labels.json").read_text())
    for sheet in sorted((root / CIFAR).glob("val_*.png"))[:sheets]:
        pixels = np.asarray(Image.open(sheet)).reshape(-1, 32, 32, 3)
        for index, (image, label) in enumerate(zip(pixels, labels[sheet.name], strict=True)):
            (out / str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(out / str(label) / f"{sheet.stem}_{index:04d}.png")
    return out
