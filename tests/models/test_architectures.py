"""Building networks of pytorchcv by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gdfq_export.errors import UsageError
from gdfq_export.models.architectures import build_architecture
from gdfq_export.models.table import find_model


def test_the_seed_alone_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    entry = find_model("resnet20")
    before = torch.random.get_rng_state()
    first, second, third = (build_architecture(entry, entry.input_size, 10, seed) for seed in (3, 3, 4))
    assert torch.equal(first.output.weight, second.output.weight)
    assert not torch.equal(first.output.weight, third.output.weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_another_number_of_classes_changes_the_last_layer() -> None:
    entry = find_model("squeezenet")
    module = build_architecture(entry, entry.input_size, 7, seed=0).eval()
    assert module(torch.zeros(1, 3, 224, 224)).shape == (1, 7)


def test_what_pytorchcv_does_not_allow_is_a_usage_error() -> None:
    entry = find_model("resnet20")
    with pytest.raises(UsageError, match="resnet20 cannot be built with num_classes 7"):
        build_architecture(entry, entry.input_size, 7, seed=0)


def test_regnet_is_built_although_it_needs_an_alias_that_numpy_has_dropped() -> None:
    entry = find_model("regnetx002")
    assert build_architecture(entry, entry.input_size, 1000, seed=0) is not None
    assert not hasattr(np, "int")
