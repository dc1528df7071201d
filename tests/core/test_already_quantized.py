"""A network that is already quantized is refused in one sentence that says where, whichever tool has made it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers its operators
from network_parts import SHAPE
from stages import integer_model
from test_capture import refusal
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import quantize_fx
from torch.export import Dim
from torch.nn.utils import parametrize

from gdfq_export.capture import capture
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.exact import IntegerProgram
from gdfq_export.refusals import check_module

IMAGES = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
ENGINE = torch.backends.quantized.supported_engines[-1]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """PyTorch says that its own quantization is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Quantizable(nn.Module):
    """A float network as torch.ao wants it: stubs at both ends, a sum that can be watched, layers that can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant, self.sum = quantization.QuantStub(), quantization.DeQuantStub(), FloatFunctional()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.quant(x))))
        return self.dequant(self.fc(self.pool(self.sum.add(x, x)).flatten(1)))


class Plain(Quantizable):
    """The same for tools that read a graph."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.relu(self.norm(self.conv(x)))).flatten(1))


class Around(nn.Module):
    """A network whose images pass through a quantizer that the user wrote."""

    def __init__(self, quantizer: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantizer, self.net = quantizer, Plain()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.quantizer(x))


class FakeWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(weight, 0.01, 0, -128, 127)


class Int8Tensor(Tensor):
    """Stands for the weights of torchao."""


Int8Tensor.__module__ = "torchao.quantization"


def prepared() -> nn.Module:
    model = quantization.fuse_modules(Quantizable().eval(), [["conv", "norm", "relu"]])
    model.qconfig = quantization.get_default_qconfig(ENGINE)
    quantization.prepare(model, inplace=True)(IMAGES)
    return model


def trained() -> nn.Module:
    model = Quantizable().train()
    model.qconfig = quantization.get_default_qat_qconfig(ENGINE)
    quantization.prepare_qat(model, inplace=True)(IMAGES)
    return model.eval()


def prepared_graph() -> nn.Module:
    model = quantize_fx.prepare_fx(Plain().eval(), quantization.get_default_qconfig_mapping(ENGINE), (IMAGES,))
    model(IMAGES)
    return model


def trained_graph() -> nn.Module:
    mapping = quantization.get_default_qat_qconfig_mapping(ENGINE)
    return quantize_fx.prepare_qat_fx(Plain().train(), mapping, (IMAGES,)).eval()


def parametrized() -> nn.Module:
    model = Plain()
    parametrize.register_parametrization(model.conv, "weight", FakeWeight())
    return model


def subclassed() -> nn.Module:
    model = Plain()
    weight = model.fc.weight.detach().as_subclass(Int8Tensor)
    del model.fc.weight
    model.fc.register_buffer("weight", weight)
    return model


def by_operators(x: Tensor) -> Tensor:
    ops, codes = torch.ops.quantized_decomposed, (0.1, 0, -128, 127, torch.int8)
    return ops.dequantize_per_tensor(ops.quantize_per_tensor(x, *codes), *codes)


MODULES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "with observers": (prepared, "observer.HistogramObserver at quant.activation_post_process"),
    "static": (lambda: quantization.convert(prepared()), "torch.ao.nn.quantized.modules.Quantize at quant"),
    "dynamic": (lambda: quantization.quantize_dynamic(Plain().eval(), {nn.Linear}), "linear.Linear at fc"),
    "training": (trained, "FakeQuantize at quant.activation_post_process"),
    "trained": (lambda: quantization.convert(trained()), "torch.ao.nn.quantized.modules.Quantize at quant"),
    "graph with observers": (prepared_graph, "HistogramObserver at activation_post_process_0"),
    "graph": (lambda: quantize_fx.convert_fx(prepared_graph()), "quantize_per_tensor at the model"),
    "reference graph": (lambda: quantize_fx.convert_to_reference_fx(prepared_graph()), "quantize_per_tensor at"),
    "graph in training": (trained_graph, "FakeQuantize at activation_post_process_0"),
    "parametrized": (parametrized, "fake_quantize_per_tensor_affine at conv.parametrizations.weight.0 (test_already"),
    "weights of torchao": (subclassed, "torchao.quantization.Int8Tensor at fc.weight"),
    "fake quantization": (lambda: Around(FakeWeight()), "fake_quantize_per_tensor_affine"),
    "quantized tensors": (
        lambda: Around(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()),
        "quantize at the model (test_already_quantized.py:",
    ),
    "decomposed operators": (lambda: Around(by_operators), "quantize_per_tensor at the model (test_already_quant"),
}


@pytest.mark.parametrize("what", MODULES)
def test_a_quantized_module_is_refused(what: str) -> None:
    make, place = MODULES[what]
    message = refusal(make())
    assert "already quantized" in message
    assert "pass the float network" in message
    assert place in message


@pytest.mark.parametrize("what", ["training", "graph in training", "parametrized", "decomposed operators"])
def test_an_exported_program_of_a_quantized_module_is_refused(what: str, tmp_path: Path) -> None:
    make, place = MODULES[what]
    program = torch.export.export(make().eval(), (IMAGES,), dynamic_shapes=({0: Dim("n", min=1)},))
    torch.export.save(program, tmp_path / "net.pt2")
    message = refusal(torch.export.load(tmp_path / "net.pt2"))
    assert "already quantized" in message
    assert place in message


def test_our_own_companion_is_refused() -> None:
    program = torch.export.export(
        IntegerProgram(integer_model("plain", 8, 8)).eval(), (IMAGES,), dynamic_shapes=({0: Dim("n", min=1)},)
    )
    assert "already quantized, or prepared for it (gdfq_export.exact.IntegerProgram at the model)" in refusal(program)


@pytest.mark.parametrize("library", ["torchao.quantization.linear", "brevitas.nn.quant_conv", "nncf.torch.layers"])
def test_modules_of_other_libraries_are_known_by_name(library: str) -> None:
    kind = type("Layer", (nn.Conv2d,), {"__module__": library})
    with pytest.raises(UnsupportedModelError, match=rf"\({library}.Layer at 1\)"):
        check_module(nn.Sequential(nn.ReLU(), type("Mine", (kind,), {})(3, 4, 3)))


def test_a_float_network_that_can_be_quantized_is_taken() -> None:
    model = quantization.fuse_modules(Quantizable().eval(), [["conv", "norm", "relu"]])
    assert {"conv", "relu", "add", "linear"} <= {node.op for node in capture(model, SHAPE).nodes}
