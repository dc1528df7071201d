"""Blocks partition the graph, and end where one tensor carries everything."""

from __future__ import annotations

import pytest
import torch
from network_parts import Net, conv_bn, head, pooled, randomize
from small_networks import NETWORKS
from stages import folded, folded_from
from torch import Tensor, nn
from torch.nn import functional as F

from gdfq_export.blocks import LARGEST, Block, find_blocks
from gdfq_export.graph import Graph
from gdfq_export.plan import BitWidths, make_plan, without_endings

W4A4 = BitWidths(4, 4)


def blocks_of(graph: Graph) -> list[Block]:
    graph, _ = without_endings(graph)
    return find_blocks(graph, make_plan(graph, W4A4))


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_the_whole_graph_in_order_and_read_only_what_was_made_before(name: str) -> None:
    graph, _ = without_endings(folded(name))
    blocks = blocks_of(graph)
    assert [node for block in blocks for node in block.nodes] == list(graph.nodes)
    made: set[str] = set()
    for block in blocks:
        assert made.issuperset(block.inputs)
        inside = {node.name for node in block.nodes}
        assert all(set(node.inputs) <= inside | set(block.inputs) for node in block.nodes)
        made.update(block.outputs)
    assert blocks[-1].outputs == (graph.output,)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_boundary_lies_between_a_layer_and_its_activation(name: str) -> None:
    graph, _ = without_endings(folded(name))
    absorbed = make_plan(graph, W4A4).absorbed
    assert all(absorbed.keys().isdisjoint(block.outputs) for block in blocks_of(graph))


def test_a_residual_block_is_a_block_and_so_is_the_classifier_with_its_pool() -> None:
    layers = [block.layers for block in blocks_of(folded("residual"))]
    assert layers == [1, 2, 3, 1]  # stem, identity block, block with a projection, classifier


def test_single_layers_in_a_row_are_taken_together() -> None:
    torch.manual_seed(0)
    graph = folded_from(randomize(nn.Sequential(*(conv_bn(3, 3) for _ in range(7)), nn.Flatten(), head(192))))
    assert [block.layers for block in blocks_of(graph)] == [3, 3, 2]


def test_a_long_stretch_without_a_single_boundary_is_cut_where_the_fewest_tensors_cross() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        first = x = F.relu(m.stem(x))
        for index in range(12):
            x = F.relu(m.get_submodule(f"c{index}")(x))
        return m.fc(pooled(x + first))  # `first` is alive all the way

    layers = {f"c{index}": conv_bn(4, 4) for index in range(12)}
    blocks = blocks_of(folded_from(randomize(Net(forward, stem=conv_bn(3, 4), fc=head(4), **layers))))
    assert max(block.layers for block in blocks) <= LARGEST
    assert sum(block.layers for block in blocks) == 14
    assert max(len(block.outputs) for block in blocks) == 1  # beside the one that passes by
    assert any(len(block.inputs) == 2 for block in blocks)
