"""What the outputs of a file mean, by its metadata and by its last operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import Graph, graph_from_model
from gdfq_export.runtime_checks.output_spec import OutputSpec, answers, output_spec


def ending(*nodes: tuple[str, list[str], str]) -> Graph:
    """Operators (op, inputs, output) behind `x`; the last output is the graph's."""
    made = [helper.make_node(op, inputs, [output]) for op, inputs, output in nodes]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info(nodes[-1][2], TensorProto.FLOAT, None)
    return graph_from_model(helper.make_model(helper.make_graph(made, "g", [value], [out])))


LOGITS = ending(("Neg", ["x"], "y"))


@pytest.mark.parametrize(
    ("graph", "stated", "count", "threshold", "classes"),
    [
        pytest.param(LOGITS, None, 3, None, 3, id="logits"),
        pytest.param(LOGITS, None, 1, 0.0, 2, id="one logit"),
        pytest.param(LOGITS, {"meaning": "decisions"}, 3, 0.0, 3, id="decisions by the metadata"),
        pytest.param(LOGITS, {"meaning": "logits", "labels": None}, 3, None, 3, id="logits by the metadata"),
        pytest.param(ending(("Sigmoid", ["x"], "y")), None, 3, 0.5, 3, id="sigmoids"),
        pytest.param(ending(("Sigmoid", ["x"], "y")), None, 1, 0.5, 2, id="one sigmoid"),
        pytest.param(
            ending(("Sigmoid", ["x"], "y"), ("QuantizeLinear", ["y", "s", "z"], "q"), ("DequantizeLinear", ["q"], "d")),
            {"meaning": "decisions"},
            3,
            0.5,
            3,
            id="rounded",
        ),
        pytest.param(
            ending(("Sigmoid", ["x"], "a"), ("HardSigmoid", ["x"], "b"), ("Concat", ["a", "b"], "c")),
            None,
            6,
            0.5,
            6,
            id="joined",
        ),
        pytest.param(ending(("Sigmoid", ["x"], "a"), ("Mul", ["a", "x"], "b")), None, 3, None, 3, id="silu"),
    ],
)
def test_outputs_are_decisions_behind_sigmoids_alone_or_by_the_metadata(
    graph: Graph, stated: Any, count: int, threshold: float | None, classes: int
) -> None:
    spec = output_spec(graph, {} if stated is None else {"output": stated}, count)
    assert (spec.threshold, spec.classes, spec.labels) == (threshold, classes, None)


def test_labels_are_read() -> None:
    assert output_spec(LOGITS, {"output": {"labels": ["a", "b", "c"]}}, 3) == OutputSpec(3, None, ("a", "b", "c"))


@pytest.mark.parametrize("stated", [3, {"labels": "abc"}, {"labels": [1, 2]}])
def test_a_damaged_entry_is_one_sentence(stated: object) -> None:
    with pytest.raises(CheckError, match=r"metadata 'gdfq_export' is damaged: .*output"):
        output_spec(LOGITS, {"output": stated}, 3)


def test_answers_are_classes_or_decisions() -> None:
    outputs = np.float32([[0.2, 0.7], [0.6, 0.5]])
    assert answers(outputs, None).tolist() == [1, 0]
    assert answers(outputs, 0.5).tolist() == [[False, True], [True, False]]
