"""One self-contained HTML page about a run: what was asked, what came of it, and what each layer became.

Nothing on the page is fetched: styles, charts (SVG) and images (PNG) are inside it, and there is no script.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from gdfq_export.allocation import Curve
from gdfq_export.charts import Line, Mark, chart, short, smoothed
from gdfq_export.generator import ImageSpec
from gdfq_export.graph import Graph, Node
from gdfq_export.integer import IntegerModel
from gdfq_export.lower import Quantized
from gdfq_export.ops import LAYERS
from gdfq_export.packing import weight_bytes
from gdfq_export.settings import Settings

if TYPE_CHECKING:
    from gdfq_export.pipeline import Exported

SHEET_COLUMNS, SHEET_ROWS, LARGE_SHEET_COLUMNS, LARGE_SHEET_ROWS = 16, 4, 6, 3
SMALL_IMAGE = 64
GAP = 2
BAR = 60  # pixels of eight bits
WIDE_SHEET = 980


def report_html(exported: Exported, settings: Settings, facts: Mapping[str, Any]) -> str:
    """The page; `facts` are the sizes and the checksum of the files that were written."""
    loaded, outcome = exported.prepared.loaded, exported.outcome
    columns = SHEET_COLUMNS if max(loaded.input_size[1:]) <= SMALL_IMAGE else LARGE_SHEET_COLUMNS
    sections = [
        f"<h1>{escape(loaded.name)} as {widths_of(exported.integer)}</h1>",
        f'<p class="soft">quantized without data by the method <code>{escape(settings.method)}</code> for the target '
        f"<code>{escape(settings.target)}</code>; kept: the {escape(outcome.kept.state)} state "
        f"({escape(outcome.kept.why)})</p>",
        _tiles(exported, facts),
        _settings(settings, loaded.weights_source),
    ]
    if outcome.curve is not None:
        sections.append(_pareto(outcome.curve))
    if outcome.traces:
        sections.append(_training(outcome.traces))
    sections += [
        _figures(exported),
        _layers(exported.integer, outcome.quantized),
        _images(outcome.held_back, exported.prepared.image),
        _tensors(exported.integer, outcome.quantized),
    ]
    template = Template((files("gdfq_export") / "report.html").read_text(encoding="utf-8"))
    shown = min(columns, len(outcome.held_back)) * loaded.input_size[2]
    width = min(WIDE_SHEET, max(shown * 2, 300))
    return template.substitute(title=escape(f"{loaded.name}: report"), body="\n".join(sections), sheet_width=width)


def widths_of(model: IntegerModel) -> str:
    """W4A4, or W2-8A8 where layers differ."""

    def span(values: Iterable[int]) -> str:
        found = sorted(set(values))
        return str(found[0]) if len(found) == 1 else f"{found[0]}-{found[-1]}"

    weights = span(model.layers[name].bits for name in model.plan.weights)
    return f"W{weights}A{span(spec.bits for name, spec in model.plan.tensors.items() if name in model.plan.sources)}"


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int], name: int = 0) -> str:
    """A table of cells that are HTML already; the columns of `numbers` stand to the right."""

    def kind(index: int) -> str:
        last = index == len(head) - 1
        return ' class="n"' if index in numbers else ' class="name"' if index == name else "" if last else ' class="w"'

    top = "".join(f"<th{' class=n' if i in numbers else ''}>{escape(text)}</th>" for i, text in enumerate(head))
    body = "".join(
        "<tr>" + "".join(f"<td{kind(index)}>{cell}</td>" for index, cell in enumerate(row)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _definitions(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in pairs)
    return f"<dl>{rows}</dl>"


def _tiles(exported: Exported, facts: Mapping[str, Any]) -> str:
    """The handful of numbers that a reader looks for first."""
    report, images = exported.integer.report, len(exported.outcome.held_back)
    tiles = [
        (f"{exported.agreement:.1f} %", f"same class as the float network on {images} held-back generated images"),
        (f"{facts['file_bytes'] / 1e3:,.0f} kB", f"ONNX file; {facts['fp32_bytes'] / 1e3:,.0f} kB in float"),
        (f"{facts['fp32_bytes'] / facts['file_bytes']:.1f} x", "smaller than the float file"),
        (f"{report.channels_coarser:,}", f"of {report.channels_total:,} channels have coarser weights for the target"),
        (f"{100 * exported.simulation.to_json()['share']:.2g} %", "of codes differ from the simulation in training"),
    ]
    inner = "".join(f'<div class="tile"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inner}</div>'


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (name, text); what was not given is left out."""
    found: list[tuple[str, str]] = []
    for key, item in value.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(item, Mapping):
            found += _flat(item, f"{name}: ")
        elif item is not None and item != ():
            found.append((name, f"{item:g}" if isinstance(item, float) else str(item)))
    return found


def _settings(settings: Settings, weights_source: str) -> str:
    return _section(
        "What was asked", _definitions([*_flat(dataclasses.asdict(settings)), ("weights from", weights_source)])
    )


def _pareto(curve: Curve) -> str:
    """The front of mixed precision with the point that was taken."""
    scale, unit = (1e3, "file size in kB") if curve.unit.startswith("bytes") else (1e9, "billions of bit operations")
    marks = [Mark(f"all {bits} bits", cost / scale, loss) for bits, cost, loss in curve.uniform]
    marks.append(Mark("taken", curve.chosen[0] / scale, curve.chosen[1], strong=True))
    drawing = chart(
        [Line("", [(cost / scale, loss) for cost, loss in curve.front])],
        marks,
        x_label=unit,
        y_label="sum of sensitivities (KL)",
        log_y=all(loss > 0 for _, loss in curve.front),
        limit=("budget", curve.budget / scale),
    )
    note = (
        f'<p class="soft">Each layer got its own width. The line is every best choice that there is, '
        f"{len(curve.front):,} of them, found exactly; sensitivity is the divergence that rounding one layer alone "
        "causes, summed over layers.</p>"
    )
    return _section("Mixed precision", note, drawing)


def _training(traces: Mapping[str, Sequence[float]]) -> str:
    """One chart for each quantity that was followed, raw values behind a running mean."""
    parts = []
    for name, values in traces.items():
        raw = [(float(step + 1), value) for step, value in enumerate(values) if math.isfinite(value)]
        if len(raw) > 1:
            lines = [Line("", raw, faint=True), Line("", smoothed([value for _, value in raw]))]
            parts.append(chart(lines, x_label="step", y_label=name))
    return _section("Training", *parts) if parts else ""


def _figures(exported: Exported) -> str:
    pairs = [(key.replace("_", " "), short(float(value))) for key, value in exported.outcome.figures.items()]
    gap, guess, images = exported.simulation, exported.forecast, len(exported.outcome.held_back)
    pairs += [
        ("agreement with the float network", f"{exported.agreement:.2f} % of {images} images"),
        ("forecast: points of top-1 lost on real images", "none" if guess is None else guess.text),
        ("agreement with the simulation in training", f"{gap.top1_agreement:.2f} %"),
        ("codes that differ from that simulation", f"{gap.differing / max(gap.elements, 1):.1%}"),
        ("steps that such a code is off, at most", str(gap.max_steps)),
    ]
    note = '<p class="soft">Measured on generated images that nothing was fitted to. No real image was seen.</p>'
    return _section("Figures", note, _definitions(pairs))


def _layers(model: IntegerModel, quantized: Quantized) -> str:
    rows = []
    for node in _layers_of(model.graph):
        layer = model.layers[node.name]
        coarser = quantized.coarser.get(node.name, 0)
        scales = f"{short(float(layer.scale.min()))} .. {short(float(layer.scale.max()))}"
        source = model.tensors[node.inputs[0]]
        rows.append(
            (
                escape(node.name),
                escape("x".join(map(str, layer.q_weight.shape))),
                f'<span class="bar" style="width:{BAR * layer.bits // 8}px"></span>{layer.bits}',
                f"{layer.q_weight.size:,}",
                f"{weight_bytes(layer.q_weight.size, layer.bits):,}",
                scales,
                f"{short(float(source.scale))}, {source.zero_point}",
                f'<span class="changed">{coarser:,}</span>' if coarser else "0",
            )
        )
    head = ("layer", "weight", "bits", "weights", "bytes", "scales", "input scale, zero point", "coarser channels")
    report = model.report
    note = (
        f'<p class="soft">For <code>{escape(report.target)}</code> {report.channels_coarser:,} channels got coarser '
        f"weights from the start so that no product saturates, {report.weights_changed:,} weights were changed at the "
        f"end, and {report.scales_nudged:,} scales of sums grew by up to {report.largest_nudge:.2%} so that all "
        f"processors round alike.</p>"
    )
    return _section("Layers", note, _table(head, rows, numbers=(3, 4, 7)))


def _layers_of(graph: Graph) -> list[Node]:
    return graph.of(*LAYERS)


def _tensors(model: IntegerModel, quantized: Quantized) -> str:
    rows = []
    for name, spec in model.plan.tensors.items():
        tensor = model.tensors[name]
        low = -tensor.zero_point * float(tensor.scale)
        trained = np.float32(np.float32(quantized.affines[spec.group].scale) * np.float32(spec.factor))
        grown = float(tensor.scale / trained) - 1
        rows.append(
            (
                escape(name),
                str(spec.bits),
                short(float(tensor.scale)) + (f' <span class="changed">+{grown:.2%}</span>' if grown > 1e-6 else ""),
                str(tensor.zero_point),
                f"{short(low)} .. {short(low + tensor.qmax * float(tensor.scale))}",
                "" if spec.group == name else escape(spec.group),
                escape(spec.reason),
            )
        )
    head = ("tensor", "bits", "scale", "zero point", "range", "shares range with", "why")
    return _section("Plan: activations", _table(head, rows, numbers=(1, 3)))


def _images(images: Tensor, spec: ImageSpec) -> str:
    large = max(spec.shape[1:]) > SMALL_IMAGE
    columns, rows = (LARGE_SHEET_COLUMNS, LARGE_SHEET_ROWS) if large else (SHEET_COLUMNS, SHEET_ROWS)
    data = base64.b64encode(contact_sheet(images[: columns * rows], spec, columns)).decode()
    note = '<p class="soft">Some of the images that were held back. The network itself is all that they come from.</p>'
    figure = f'<figure><img class="sheet" alt="generated images" src="data:image/png;base64,{data}"></figure>'
    return _section("Generated images", note, figure)


def contact_sheet(images: Tensor, spec: ImageSpec, columns: int) -> bytes:
    """The images side by side, as a PNG; large ones at half their size."""
    low = np.asarray(spec.low, np.float32)[:, None, None]
    high = np.asarray(spec.high, np.float32)[:, None, None]
    pixels = np.clip((images.numpy() - low) / (high - low) * 255 + 0.5, 0, 255).astype(np.uint8)  # (N, C, H, W)
    if max(spec.shape[1:]) > SMALL_IMAGE:
        pixels = pixels[:, :, ::2, ::2]
    colours = np.repeat(pixels[:, :1], 3, 1) if pixels.shape[1] != 3 else pixels
    count, _, height, width = colours.shape
    rows = -(-count // columns)
    across = min(columns, count)
    sheet = np.full((rows * (height + GAP) - GAP, across * (width + GAP) - GAP, 4), 0, np.uint8)
    for index, image in enumerate(colours):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width, :3] = np.moveaxis(image, 0, -1)
        sheet[top : top + height, left : left + width, 3] = 255
    buffer = io.BytesIO()
    Image.fromarray(sheet, "RGBA").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
