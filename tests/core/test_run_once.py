from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from onnx import TensorProto, helper
from test_pipeline import SETTINGS, loaded
from torch import nn
from torch.nn import functional as F

from gdfq_export import pipeline
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.methods import Outcome
from gdfq_export.pipeline import prepare, quantize_model, write_files
from gdfq_export.plan import BitWidths
from gdfq_export.run_once import run_once
from gdfq_export.runtime_checks.verify import verify_model
from gdfq_export.settings import Settings

CALIBRATE = Settings("calibrate", BitWidths(8, 8), SETTINGS.schedule, "mse", "portable", seed=0)


def model_of(op: str, *, finite: bool = True) -> onnx.ModelProto:
    """One operator on images of three numbers."""
    source, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    factor = helper.make_tensor("factor", TensorProto.FLOAT, [1], [1.0 if finite else float("nan")])
    graph = helper.make_graph([helper.make_node(op, ["x", "factor"], ["y"])], "g", [source], [result], [factor])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def test_a_file_that_runs_is_good() -> None:
    run_once(model_of("Mul"), "file")


def test_a_file_that_the_runtime_refuses_is_named_with_what_it_says() -> None:
    with pytest.raises(UnsupportedModelError, match=r"does not run the file .* nothing was written"):
        run_once(model_of("MatMul"), "file")


def test_outputs_that_are_not_finite_are_named() -> None:
    with pytest.raises(UnsupportedModelError, match="not finite"):
        run_once(model_of("Mul", finite=False), "file")


def instance_norm_and_mean() -> nn.Module:
    net = Net(
        lambda m, x: m.fc(m.norm(F.relu(m.stem(x))).mean((2, 3))),
        stem=conv_bn(3, 8),
        norm=nn.InstanceNorm2d(8),
        fc=head(8),
    )
    return randomize(net).eval()


def test_an_instance_norm_and_a_mean_give_a_file_that_runs_and_verifies(tmp_path: Path) -> None:
    settings = Settings(**{**vars(CALIBRATE), "allow_float": "instance_norm"})
    out = tmp_path / "m.onnx"
    pipeline.run(loaded(instance_norm_and_mean()), settings, out, companions=False)
    assert verify_model(out, samples=2, threads=1).passed


def test_nothing_appears_where_the_runtime_refuses_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = randomize(Net(lambda m, x: m.fc(pooled(F.relu(m.a(x)))), a=conv_bn(3, 8), fc=head(8))).eval()
    prepared = prepare(loaded(net), CALIBRATE)
    exported = quantize_model(prepared, CALIBRATE)
    assert isinstance(exported.outcome, Outcome)
    real = pipeline.onnx_with_names

    def broken(model: object) -> tuple[onnx.ModelProto, dict[str, str]]:
        proto, names = real(model)
        made = {name: node for node in proto.graph.node for name in node.output}
        (mean,) = [node for node in proto.graph.node if node.op_type == "GlobalAveragePool"]
        for tensor in proto.graph.initializer:
            if tensor.name == made[mean.input[0]].input[1]:
                tensor.raw_data = torch.tensor(1e30).numpy().tobytes()
        return proto, names

    monkeypatch.setattr(pipeline, "onnx_with_names", broken)
    with pytest.raises(UnsupportedModelError, match="out of computation range"):
        write_files(exported, CALIBRATE, tmp_path / "m.onnx", companions=True, report=tmp_path / "m.html")
    assert list(tmp_path.iterdir()) == []
