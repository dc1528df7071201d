"""What has no integer form is refused by name, or stays float where the user names it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from network_parts import Net, conv_bn, head, pooled
from test_pipeline import SETTINGS, loaded
from torch import nn
from torch.nn import functional as F

from gdfq_export.errors import UnsupportedModelError, UsageError
from gdfq_export.pipeline import prepare, run
from gdfq_export.runtime_checks.verify import verify_model


def normalised() -> nn.Module:
    """Instance norm divides by a deviation that depends on the image."""
    norm = nn.InstanceNorm2d(8)
    return Net(lambda m, x: m.fc(pooled(F.relu(m.norm(m.a(x))))), a=conv_bn(3, 8), norm=norm, fc=head(8))


def test_the_refusal_names_operator_place_and_remedy() -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"instance_norm at norm \(.*\) has no .*--allow-float instance_norm"
    ):
        prepare(loaded(normalised()), SETTINGS)


@pytest.mark.parametrize("pattern", ["instance_norm", "^norm"])
def test_what_is_named_stays_float_and_is_listed(pattern: str, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, allow_float=pattern)
    facts = run(loaded(normalised()), settings, tmp_path / "model.onnx", companions=False)
    assert [part.split(" (")[0] for part in facts["float_parts"]] == ["instance_norm at norm"]
    result = verify_model(tmp_path / "model.onnx", samples=2, strict=True)
    assert result.passed
    assert result.golden is None
    assert result.missing == ()
    assert {operator.op for operator in result.coverage.float_operators} == {"InstanceNormalization"}


def test_what_is_not_named_is_still_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="instance_norm"):
        prepare(loaded(normalised()), dataclasses.replace(SETTINGS, allow_float="softmax"))


def test_a_broken_pattern_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no regular expression"):
        prepare(loaded(normalised()), dataclasses.replace(SETTINGS, allow_float="("))


def test_a_network_that_normalises_its_input_is_told_of_mean_and_std() -> None:
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.2]).view(3, 1, 1)
    parts = {"a": conv_bn(3, 8), "fc": head(8)}
    module = Net(lambda m, x: m.fc(pooled(F.relu(m.a((x - mean) / std)))), **parts)
    with pytest.raises(UnsupportedModelError, match=r"normalises the input of the network itself.* --mean and --std"):
        prepare(loaded(module), SETTINGS)


def test_a_division_elsewhere_is_no_normalisation() -> None:
    parts = {"a": conv_bn(3, 8), "fc": head(8)}
    module = Net(lambda m, x: m.fc(pooled(m.a(x) / (1 + F.relu(m.a(x))))), **parts)
    with pytest.raises(UnsupportedModelError, match=r"div at .* has no exact integer form"):
        prepare(loaded(module), SETTINGS)
