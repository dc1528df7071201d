"""The report: nothing on it comes from elsewhere, and what it says is what the files hold."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from gdfq_export.generator import image_spec
from gdfq_export.models.random_weights import set_batch_norm_statistics
from gdfq_export.models.sources import LoadedModel
from gdfq_export.pipeline import Exported, prepare, quantize_model
from gdfq_export.plan import BitWidths
from gdfq_export.report import contact_sheet, report_html, widths_of
from gdfq_export.settings import Distillation, Schedule, Settings

VOID = {"meta", "img", "br", "line", "circle", "polyline"}
FACTS = {"file_bytes": 12_000, "fp32_bytes": 48_000, "sha256": "0" * 64}
SETTINGS = Settings(
    "zeroq",
    BitWidths(8, 8),
    Schedule(batch=8, warmup_steps=1, steps=1, steps_per_epoch=1),
    "mse",
    "portable",
    seed=0,
    distillation=Distillation(images=16, batch=16, steps=2, shift=1),
    size_budget=1_000_000,
)


@cache
def exported() -> Exported:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    set_batch_norm_statistics(module, (3, 16, 16), 0)
    half = (0.5, 0.5, 0.5)
    loaded = LoadedModel("a <b> & c", module.eval(), (3, 16, 16), half, half, 5, None, "random", None)
    made = quantize_model(prepare(loaded, SETTINGS), SETTINGS)
    traces = {"loss <of> training": [1.0, 0.5, 0.25]}
    return dataclasses.replace(made, outcome=dataclasses.replace(made.outcome, traces=traces))


@cache
def page() -> str:
    return report_html(exported(), SETTINGS, FACTS)


def test_the_page_says_which_state_of_the_method_was_kept_and_why() -> None:
    assert "kept: the mixed state (least sum of the layers&#x27; sensitivities within the budget)" in page()


class Reader(HTMLParser):
    """Notes what is open, what is fetched, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@cache
def read() -> Reader:
    reader = Reader()
    reader.feed(page())
    return reader


def test_every_element_is_closed() -> None:
    assert read().open == []


def test_nothing_is_fetched_and_there_is_no_script() -> None:
    assert all(link.startswith("data:image/png;base64,") for link in read().fetched)
    assert len(read().fetched) == 1
    assert not re.search(r"url\(|@import|<script|https?:", page())


def test_a_name_with_special_characters_is_text() -> None:
    assert "a <b> & c as W8A8" in "".join(read().words)
    assert "<b> &" not in page()


def test_every_layer_tensor_and_figure_is_listed() -> None:
    text = "".join(read().words)
    for name in [*exported().integer.layers, *exported().integer.plan.tensors]:
        assert name in text
    for figure in exported().outcome.figures:
        assert figure.replace("_", " ") in text
    for title in ("What was asked", "Mixed precision", "Training", "Layers", "Generated images", "Plan: activations"):
        assert title in text


def test_sections_without_content_are_left_out() -> None:
    plain = dataclasses.replace(exported().outcome, curve=None, traces={})
    html = report_html(dataclasses.replace(exported(), outcome=plain), SETTINGS, FACTS)
    assert "Mixed precision" not in html
    assert "<h2>Training" not in html


def test_the_channels_that_the_target_made_coarser_are_in_the_report() -> None:
    coarser, report = exported().outcome.quantized.coarser, exported().integer.report
    assert report.channels_coarser == sum(coarser.values()) > 0
    assert report.weights_changed == 0  # nothing was trained after the weights were made safe
    text = "".join(read().words)
    assert f"of {report.channels_total} channels have coarser weights" in text
    assert f"{report.channels_coarser} channels got coarser weights from the start" in " ".join(text.split())


def test_the_widths_are_a_span_where_layers_differ() -> None:
    model = exported().integer
    assert widths_of(model) == "W8A8"
    first, *rest = model.layers
    mixed = {first: dataclasses.replace(model.layers[first], bits=3), **{name: model.layers[name] for name in rest}}
    assert widths_of(dataclasses.replace(model, layers=mixed)) == "W3-8A8"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_contact_sheet_holds_the_images_themselves(channels: int) -> None:
    half = [0.5] * channels
    codes = torch.arange(3 * channels * 16).reshape(3, channels, 4, 4) % 256
    spec = image_spec((channels, 4, 4), half, half)
    sheet = Image.open(io.BytesIO(contact_sheet((codes / 255 - 0.5) / 0.5, spec, 2)))
    assert sheet.size == (10, 10)  # two across with a gap of two pixels, two rows
    pixels = np.asarray(sheet)
    wanted = codes.expand(3, 3, 4, 4).permute(0, 2, 3, 1).numpy()  # gray is shown as three equal channels
    assert (pixels[:4, 6:, :3] == wanted[1]).all()
    assert (pixels[6:, :4, :3] == wanted[2]).all()
    assert (pixels[6:, 6:, 3] == 0).all()  # nothing where there is no fourth image


def test_the_picture_on_the_page_is_a_png() -> None:
    (link,) = read().fetched
    assert Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).format == "PNG"
