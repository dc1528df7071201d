"""Writes the table of families that `zoo_sweep.py` reads.

    python benchmarks/zoo_families.py > benchmarks/zoo_families.tsv

A family is one source file of pytorchcv; its variant is the one with the fewest parameters, counted on the meta
device. Variants that differ only in their number of classes (CIFAR-100, SVHN) are left out.
"""

from __future__ import annotations

import torch
from pytorchcv.model_provider import _models

from gdfq_export.models.architectures import build_architecture
from gdfq_export.models.table import ModelEntry, all_models

SAME_NETWORK = ("_cifar100", "_svhn")


def count_parameters(entry: ModelEntry) -> int:
    """Parameters of a network that is built without memory."""
    with torch.device("meta"):
        module = build_architecture(entry, entry.input_size, entry.num_classes, seed=0)
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    smallest: dict[str, tuple[int, str]] = {}
    for name, entry in all_models().items():
        if name != entry.architecture or name.endswith(SAME_NETWORK):
            continue
        family = _models[name].__module__.rsplit(".", 1)[-1]
        found = (count_parameters(entry), name)
        smallest[family] = min(smallest.get(family, found), found)
    print("family\tnetwork")
    for family, (_, name) in sorted(smallest.items()):
        print(f"{family}\t{name}")


if __name__ == "__main__":
    main()
