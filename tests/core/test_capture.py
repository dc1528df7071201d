from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from network_parts import SHAPE, Net, head, pooled, randomize
from small_networks import NETWORKS, shape_of
from stages import captured, images, network
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from gdfq_export.capture import capture, export_program
from gdfq_export.errors import UnsupportedModelError
from gdfq_export.passes import canonicalize
from gdfq_export.program import FloatProgram


def classifier(function=lambda m, x: m.fc(pooled(F.relu(m.norm(m.conv(x)))))) -> nn.Module:
    layers = {"conv": nn.Conv2d(3, 4, 3), "norm": nn.BatchNorm2d(4), "fc": head(4)}
    return randomize(Net(function, **layers)).requires_grad_(False)


def refusal(model: object, shape: tuple[int, ...] = SHAPE) -> str:
    """The message of the error that capturing must raise: one sentence with exit code 3."""
    with pytest.raises(UnsupportedModelError) as caught:
        capture(model, shape)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 350
    return message


@pytest.mark.parametrize("name", NETWORKS)
def test_the_captured_graph_computes_what_the_network_computes(name: str) -> None:
    x = images(shape_of(name))
    # 1e-6: a hard swish is one function in the network and a product by 1/6 in the graph
    assert torch.allclose(FloatProgram(canonicalize(captured(name)))(x), network(name)(x), atol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_takes_batches_of_any_size(count: int) -> None:
    x = images(count=count)
    assert FloatProgram(canonicalize(captured("shuffle")))(x).shape == (count, 5)


def test_capture_puts_the_model_into_eval_mode() -> None:
    model = classifier().train()
    capture(model, SHAPE)
    assert not model.training


def test_dropout_leaves_nothing_in_the_graph() -> None:
    assert {"dropout", "native_dropout"}.isdisjoint(node.op for node in captured("dropout_and_view").nodes)


def test_the_number_of_classes_is_read_off_the_logits() -> None:
    assert captured("plain").num_outputs == 5


def test_a_node_knows_its_place_in_the_users_module() -> None:
    places = {node.name: node.place for node in captured("plain").nodes}
    assert places["a.0"].startswith("a.0 (")


def test_in_place_operations_are_captured_as_functions() -> None:
    model = classifier(lambda m, x: m.fc(pooled(F.relu(m.conv(x), inplace=True).add_(1.0).mul_(0.5))))
    x = images()
    assert torch.equal(FloatProgram(canonicalize(capture(model, SHAPE)))(x), model(x))


def test_a_change_of_the_images_in_place_is_no_result() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x -= 0.1
        return m.fc(pooled(F.relu(m.conv(x.mul_(2.0)))))

    model = classifier(forward)
    for graph in (capture(model, SHAPE), capture(export_program(model, SHAPE), SHAPE)):
        x = images()
        # one rounding apart at most: a subtraction is an addition in the graph
        assert torch.allclose(FloatProgram(canonicalize(graph))(x), model(x.clone()), atol=1e-6)


def counting(function: Callable[[nn.Module, Tensor], Tensor]) -> nn.Module:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        m.count += 1
        return function(m, m.fc(pooled(m.conv(x))))

    model = classifier(forward)
    model.register_buffer("count", torch.zeros(1))
    return model


def test_a_buffer_that_only_counts_is_no_result() -> None:
    model, x = counting(lambda m, logits: logits), images()
    assert torch.equal(FloatProgram(capture(model, SHAPE))(x), model(x))


def test_a_buffer_that_changes_the_result_from_run_to_run_is_refused() -> None:
    assert "changes its buffer count each time" in refusal(counting(lambda m, logits: logits * m.count))


def test_a_network_without_classes_is_refused() -> None:
    message = refusal(Net(lambda m, x: m.fc(pooled(x)), fc=nn.Linear(3, 0)))
    assert "linear at fc" in message
    assert "gives an empty tensor, of shape [0] for each image" in message


def test_values_that_are_not_finite_are_found_wherever_they_stand() -> None:
    model = classifier(lambda m, x: m.fc(pooled(m.conv(x)) * torch.tensor([1.0, float("inf"), 1.0, 1.0])))
    assert "holds values that are not finite" in refusal(model)
    model = classifier()
    model.norm.weight[2] = float("nan")
    assert "norm.weight, the weight of batch_norm at norm" in refusal(model)


@pytest.mark.parametrize(("variance", "eps"), [(-1.0, 1e-5), (0.0, 0.0)])
def test_a_variance_that_cannot_be_divided_by_is_refused(variance: float, eps: float) -> None:
    model = classifier()
    model.norm.running_var[1], model.norm.eps = variance, eps
    assert "norm.running_var, the variance of batch_norm at norm" in refusal(model)


def test_a_program_that_takes_bytes_is_refused() -> None:
    model = classifier(lambda m, x: m.fc(pooled(m.conv(x.float() / 255))))
    shapes = ({0: Dim("n")},)
    program = torch.export.export(model, (torch.zeros(2, *SHAPE, dtype=torch.uint8),), dynamic_shapes=shapes)
    assert "takes images in torch.uint8" in refusal(program)


def test_a_module_used_twice_is_captured_twice_with_one_set_of_weights() -> None:
    model = randomize(Net(lambda m, x: m.fc(pooled(m.conv(F.relu(m.conv(x))))), conv=nn.Conv2d(3, 3, 3), fc=head(3)))
    graph = capture(model, SHAPE)
    first, second = graph.of("conv")
    assert first.name != second.name
    assert first.parameters == second.parameters


def test_a_constant_tensor_of_the_model_becomes_a_constant() -> None:
    model = classifier(lambda m, x: m.fc(pooled(m.conv(x)) * torch.tensor([1.0, 2.0, 3.0, 4.0])))
    x = images()
    graph = capture(model, SHAPE)
    assert len(graph.of("constant")) == 1
    assert torch.equal(FloatProgram(canonicalize(graph))(x), model(x))


def test_an_unknown_operator_is_named_with_its_place() -> None:
    message = refusal(classifier(lambda m, x: m.fc(torch.cumsum(pooled(m.conv(x)), 1))))
    assert "operator cumsum" in message
    assert "test_capture.py" in message or "network_parts.py" in message


def test_an_unknown_operator_in_a_submodule_is_named_with_the_submodules_path() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.logsumexp(x, 1, keepdim=True) + x

    model = Net(lambda m, x: m.fc(pooled(m.odd(m.conv(x)))), conv=nn.Conv2d(3, 4, 3), odd=Odd(), fc=head(4))
    message = refusal(model)
    assert "operator logsumexp at odd (test_capture.py:" in message


def test_two_results_are_refused() -> None:
    assert "returns 2 tensors" in refusal(classifier(lambda m, x: (pooled(m.conv(x)), x)))


DATA_DEPENDENT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "branch": lambda m, x: m.fc(pooled(m.conv(x))) if x.sum() > 0 else pooled(x),
    "loop": lambda m, x: m.fc(pooled(x[:, :, : max(row for row in range(8) if x[0, 0, row, 0] <= x.max())])),
    "shape": lambda m, x: m.fc(pooled(m.conv(x)))[:, : int(x.sum())],
}


@pytest.mark.parametrize("what", DATA_DEPENDENT)
def test_what_depends_on_the_data_is_refused_with_its_place(what: str) -> None:
    message = refusal(classifier(DATA_DEPENDENT[what]))
    assert "at the model (test_capture.py:" in message
    assert "depends on the values" in message


def test_a_choice_by_a_mask_is_refused_by_name() -> None:
    assert "operator nonzero at the model" in refusal(classifier(lambda m, x: x.nonzero()))


def test_modules_that_are_no_longer_python_are_refused() -> None:
    assert "TorchScript" in refusal(torch.jit.trace(classifier(), torch.zeros(2, *SHAPE)))
    assert "pass the .pt2 file" in refusal(export_program(classifier(), SHAPE).module())


def test_a_fixed_batch_size_is_refused() -> None:
    assert "one batch size only" in refusal(classifier(lambda m, x: m.conv(x).reshape(2, -1)))


def test_an_input_that_does_not_fit_is_refused() -> None:
    assert "--input-size" in refusal(classifier(), (4, 8, 8))


def test_a_model_that_raises_is_refused_with_its_own_words() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        raise RuntimeError("no such thing")

    assert "no such thing" in refusal(Net(forward))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_network_is_captured_like_the_module_in_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model, x = classifier(), images()
    assert torch.equal(FloatProgram(capture(wrap(model), SHAPE))(x), FloatProgram(capture(model, SHAPE))(x))


def test_an_exported_program_is_captured_like_the_module_it_came_from() -> None:
    model = classifier()
    x = images()
    program = export_program(model, SHAPE)
    assert torch.equal(FloatProgram(capture(program, SHAPE))(x), FloatProgram(capture(model, SHAPE))(x))


def test_an_exported_program_of_a_static_batch_is_refused() -> None:
    program = torch.export.export(classifier(), (torch.zeros(4, *SHAPE),))
    message = refusal(program)
    assert "exactly 4" in message
    assert "dynamic_shapes" in message


def test_an_exported_program_of_two_inputs_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    x = torch.zeros(2, *SHAPE)
    program = torch.export.export(Two(), (x, x), dynamic_shapes=({0: Dim("n")}, {0: Dim("n")}))
    assert "takes 2 inputs" in refusal(program)


def test_an_exported_program_of_another_input_size_is_refused() -> None:
    assert "3x8x8, not 3x9x9" in refusal(export_program(classifier(), SHAPE), (3, 9, 9))
