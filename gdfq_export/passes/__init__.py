"""Graph passes: one a file, each a function from graph to graph."""

from __future__ import annotations

from gdfq_export.passes.absorb_bias import absorb_bias
from gdfq_export.passes.canonicalize import canonicalize
from gdfq_export.passes.equalize import equalize
from gdfq_export.passes.find_channel_shuffle import find_channel_shuffle
from gdfq_export.passes.fold_batch_norm import fold_batch_norm
from gdfq_export.passes.hoist_activations import hoist_activations
from gdfq_export.passes.mix_channels import mix_channels
from gdfq_export.passes.pad_input import pad_input
from gdfq_export.passes.space_to_depth import space_to_depth

__all__ = [
    "absorb_bias",
    "canonicalize",
    "equalize",
    "find_channel_shuffle",
    "fold_batch_norm",
    "hoist_activations",
    "mix_channels",
    "pad_input",
    "space_to_depth",
]
