"""What a file takes and what it returns, in its metadata for programs and in its doc strings for people.

    input    {"format": ..., "shape": [C, H, W], "mean": [...], "std": [...], "resize": int | null,
              "range": [low, high], "channel_order": "RGB" | "grey" | null, "values": "pixels" | "features"}
    output   {"meaning": "logits" | "probabilities" | "log-probabilities" | "decisions", "labels": [...] | null}

The range is that of the network's own input: values beyond it are clipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from gdfq_export.meaning import Meaning
from gdfq_export.models.sources import LoadedModel
from gdfq_export.names import InputFormat

MODEL_VERSION = 1
CHANNEL_ORDERS = {1: "grey", 3: "RGB"}


def input_facts(loaded: LoadedModel, form: InputFormat, accepted: tuple[float, float]) -> dict[str, Any]:
    """How an image becomes an input, for `evaluate` and for whoever deploys the file."""
    return {
        "format": form,
        "shape": list(loaded.input_size),
        "mean": list(loaded.mean),
        "std": list(loaded.std),
        "resize": loaded.resize,
        "range": list(accepted),
        "channel_order": CHANNEL_ORDERS.get(loaded.input_size[0]) if loaded.is_image else None,
        "values": "pixels" if loaded.is_image else "features",
    }


def output_facts(meaning: Meaning, labels: Sequence[str] | None) -> dict[str, Any]:
    """What the numbers that the network returns mean."""
    return {"meaning": meaning.name, "labels": None if labels is None else list(labels)}


def input_sentence(facts: Mapping[str, Any]) -> str:
    """The input in one line."""
    low, high = (f"{value:.4g}" for value in facts["range"])
    channels, height, width = facts["shape"]
    if facts["format"] == "uint8-nhwc":
        return f"bytes {height}x{width}x{channels} (NHWC), 0 to 255, normalised inside to {low} to {high}"
    told = f"float {channels}x{height}x{width} (NCHW), {low} to {high}"
    if facts["values"] == "pixels":
        told += f" (pixels in 0..1, mean {_listed(facts['mean'])}, std {_listed(facts['std'])})"
    return f"{told}; values beyond are clipped"


def describe(model: onnx.ModelProto, title: str, facts: Mapping[str, Any]) -> None:
    """Writes version and doc strings of a file whose `facts` have an input and an output."""
    taken, returned = input_sentence(facts["input"]), facts["output"]["meaning"]
    model.model_version = MODEL_VERSION
    model.doc_string = f"{title}. Input: {taken}. Output: {returned}."
    order = facts["input"]["channel_order"]
    model.graph.input[0].doc_string = taken if order is None else f"{taken}; channels {order}"
    model.graph.output[0].doc_string = returned


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in dict.fromkeys(values))
