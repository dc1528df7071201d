"""Graph passes: one a file, each a function from graph to graph."""

from __future__ import annotations

from gdfq_export.passes.canonicalize import canonicalize
from gdfq_export.passes.equalize import equalize
from gdfq_export.passes.find_channel_shuffle import find_channel_shuffle
from gdfq_export.passes.fold_batch_norm import fold_batch_norm

__all__ = ["canonicalize", "equalize", "find_channel_shuffle", "fold_batch_norm"]
