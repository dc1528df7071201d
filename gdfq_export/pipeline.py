"""The recipe: model -> captured -> folded -> plan -> trained -> integer model -> ONNX file and its companions."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import io
import json
import logging
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from gdfq_export import __version__
from gdfq_export.capture import capture
from gdfq_export.checkpoint import DIVERGED, REFUSED, WRITING, Checkpoint, WorkDirectory, open_checkpoint
from gdfq_export.costs import Costs, measure_costs, refuse_less_than_the_least
from gdfq_export.distributed import rank, size
from gdfq_export.emit import float_onnx_from_graph, onnx_with_names
from gdfq_export.errors import DivergedError, InputFileError, Reason, UnsupportedModelError, UsageError
from gdfq_export.exact import IntegerProgram
from gdfq_export.files import atomic_path, companions_of, remove_leftovers
from gdfq_export.float_parts import float_parts, float_reasons
from gdfq_export.forecast import Forecast, forecast, warning_of
from gdfq_export.generator import ImageSpec, image_spec
from gdfq_export.graph import INPUT, Graph, Node, digest_of, unshared
from gdfq_export.image_store import ImageStore
from gdfq_export.input_evidence import check_evidence
from gdfq_export.integer import IntegerModel
from gdfq_export.interface import describe, input_facts, output_facts
from gdfq_export.lower import lower, with_pixel_input
from gdfq_export.meaning import Meaning, meaning_of
from gdfq_export.methods import METHODS, Outcome, Task
from gdfq_export.models.sources import LoadedModel
from gdfq_export.names import InputFormat
from gdfq_export.passes import (
    canonicalize,
    find_channel_shuffle,
    fold_batch_norm,
    hoist_activations,
    pad_input,
    space_to_depth,
)
from gdfq_export.passes.integer_forms import form_reasons
from gdfq_export.plan import Plan, holds_pixels, make_plan, quantized_part, with_endings, without_endings
from gdfq_export.program import FloatProgram
from gdfq_export.progress import Progress, silent
from gdfq_export.provenance import golden_vectors, names_fact, stamp, stamp_input
from gdfq_export.real_images import RealImages
from gdfq_export.reasons import output_reasons, refusal
from gdfq_export.report import report_html, widths_of
from gdfq_export.run_once import run_once
from gdfq_export.score import LogitError
from gdfq_export.settings import Settings
from gdfq_export.simulation import SimulationGap, compare_simulation
from gdfq_export.stopwatch import Stopwatch

logger = logging.getLogger(__name__)
NO_IMAGES = RealImages()
NO_STORE = ImageStore()
SCORED_STATES = {"dfq": 3, "recon": 3, "gdfq": 2, "dfqf": 2}  # by the least of a method
VERSIONED = ("torch", "onnx", "numpy", "pytorchcv")


@dataclass(frozen=True, eq=False)
class Prepared:
    """A network ready for quantization, and the plan for it."""

    loaded: LoadedModel
    captured: Graph
    folded: Graph
    plan: Plan
    image: ImageSpec
    endings: tuple[Node, ...]  # a softmax behind the logits: neither trained nor quantized
    in_float: tuple[Node, ...]  # what the user lets stay float between quantized tensors
    meaning: Meaning  # of what the file returns


@dataclass(frozen=True, eq=False)
class Exported:
    """Everything that a run makes, still in memory."""

    prepared: Prepared
    outcome: Outcome
    integer: IntegerModel
    program: IntegerProgram
    agreement: float  # of answers with those of the float network on held-back images, in percent
    error: float  # of the logits there, see `score.py`
    simulation: SimulationGap  # what training saw, against what is exported

    @property
    def forecast(self) -> Forecast | None:
        """What to expect on real images; None for random weights, for decisions, and where the error is too large."""
        if self.prepared.loaded.weights_source == "random" or self.prepared.meaning.decides:
            return None
        return forecast(self.error, self.prepared.captured.num_outputs)

    @property
    def warnings(self) -> list[str]:
        """What the user should not overlook; random weights are far from nothing that matters."""
        loaded, outputs = self.prepared.loaded, self.prepared.captured.num_outputs
        text = warning_of(self.agreement, len(self.outcome.held_back), self.error, outputs)
        return [] if text is None or loaded.weights_source == "random" else [text]

    def to_json(self) -> dict[str, Any]:
        """How far the integers are from the float network, and what that rests on."""
        return {
            "teacher_agreement": self.agreement,
            "agreement_images": len(self.outcome.held_back),
            "logit_error": self.error,
            "forecast": None if self.forecast is None else dataclasses.asdict(self.forecast),
            "simulation": self.simulation.to_json(),
        }


def prepare(loaded: LoadedModel, settings: Settings) -> Prepared:
    """Capture, passes and plan: everything before the first image."""
    if loaded.input_range is not None and settings.input_format == "uint8-nhwc":
        raise UsageError(
            "--input-format uint8-nhwc takes the bytes of images, whose range follows from --mean and --std: leave "
            "--input-range out, or take float-nchw"
        )

    def check(graph: Graph) -> list[Reason]:
        return [*form_reasons(graph, graph.nodes), *float_reasons(graph, settings.allow_float)]

    whole = canonicalize(capture(loaded.module, loaded.input_size, check))
    if "find_channel_shuffle" not in settings.without:
        whole = find_channel_shuffle(whole)
    captured, endings = without_endings(hoist_activations(whole))
    in_float = float_parts(captured, settings.allow_float)
    if reasons := output_reasons(captured):
        raise refusal(reasons)
    if loaded.num_classes is not None and loaded.num_classes != captured.num_outputs:
        raise UsageError(
            f"--num-classes {loaded.num_classes} does not fit the network, whose last layer has "
            f"{captured.num_outputs} outputs: leave it out"
        )
    _check_labels(loaded.labels, captured.num_outputs)
    image = image_spec(loaded.input_size, loaded.mean, loaded.std, loaded.input_range)
    if loaded.weights_source != "random":
        check_evidence(captured, image, is_image=loaded.is_image)
    meaning = meaning_of(with_endings(captured, endings))
    folded = unshared(fold_batch_norm(captured))
    if "space_to_depth" not in settings.without and settings.input_format == "float-nchw":  # see `emit.py`
        folded = space_to_depth(folded)
    if "pad_input" not in settings.without:
        folded = pad_input(folded, large_windows=settings.target == "x86-vnni")
    plan = make_plan(folded, settings.bits, (min(image.low), max(image.high)))
    return Prepared(loaded, captured, folded, plan, image, endings, in_float, meaning)


def _check_labels(labels: tuple[str, ...] | None, outputs: int) -> None:
    wanted = max(outputs, 2)  # one output decides between two classes
    if labels is not None and len(labels) != wanted:
        raise InputFileError(
            f"--labels has {len(labels)} lines, but the network tells {wanted} classes apart: give one line a class, "
            "in the order of the outputs"
        )


def accepted_range(prepared: Prepared, model: IntegerModel | None = None) -> tuple[float, float]:
    """The values of the network's input that are not clipped, or before a run those that are not beyond it.

    Zero is always one of them.
    """
    spec = prepared.plan.tensors[INPUT]
    if model is None or holds_pixels(prepared.plan.groups()[spec.group]):
        return min(spec.low, 0.0), max(spec.high, 0.0)
    tensor = model.tensors[INPUT]  # of fewer bits, for which a narrower range may be better
    low, high = (float(tensor.scale) * (code - tensor.zero_point) for code in (0, tensor.qmax))
    return low, high


def quantize_model(
    prepared: Prepared,
    settings: Settings,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
    real: RealImages = NO_IMAGES,
    store: ImageStore = NO_STORE,
    stopwatch: Stopwatch | None = None,
    preparing: float = 0.0,
) -> Exported:
    """Runs the method and lowers what it returns; deterministic for a seed on one machine.

    A budget is refused at once where the least that works does not fit into it; `preparing` is what `prepare` took.
    """
    torch.manual_seed(settings.seed)
    stopwatch = stopwatch or Stopwatch(settings.schedule.budget_seconds)
    checkpoint, costs = checkpoint or Checkpoint(), Costs()
    if settings.schedule.budget_seconds is not None:
        costs = measure_costs(prepared.folded, prepared.plan, settings, stopwatch, preparing)
        refuse_less_than_the_least(costs, SCORED_STATES.get(settings.method, 1), stopwatch)
        stopwatch.reserve(costs.ending(0))
        stopwatch.open()
    network = (prepared.captured, prepared.folded, prepared.plan, prepared.image)
    if settings.size_budget is not None and prepared.loaded.labels is not None:  # they are in the file too
        room = settings.size_budget - len(json.dumps(prepared.loaded.labels))
        settings = dataclasses.replace(settings, size_budget=max(room, 1))
    task = Task(*network, settings, progress, checkpoint, real, store, stopwatch, costs)
    return lower_outcome(prepared, settings, METHODS[settings.method](task), progress)


def lower_outcome(prepared: Prepared, settings: Settings, outcome: Outcome, progress: Progress = silent) -> Exported:
    """The integers of what a method returned, and how often they agree with the float network."""
    integer = lower(outcome.quantized, settings.target, settings.without)
    logits = IntegerProgram(integer).eval()  # without the endings, which the float network here has not either
    agreement, error = against_teacher(logits, FloatProgram(prepared.folded), outcome.held_back, progress)
    integer = dataclasses.replace(integer, graph=with_endings(integer.graph, prepared.endings))
    program = IntegerProgram(integer).eval()
    simulation = compare_simulation(outcome.quantized, program, outcome.held_back)
    if settings.input_format == "uint8-nhwc":
        integer = with_pixel_input(integer, prepared.loaded.mean, prepared.loaded.std)
    return Exported(prepared, outcome, integer, IntegerProgram(integer).eval(), agreement, error, simulation)


@torch.no_grad()
def against_teacher(
    program: IntegerProgram, teacher: FloatProgram, images: Tensor, progress: Progress
) -> tuple[float, float]:
    """Share of answers that the integer and the float network have in common, in percent, and the logits' error."""
    meaning = meaning_of(teacher.graph)
    same, asked, error, batches = 0, 0, LogitError(meaning), torch.split(images, 32)
    for index, batch in enumerate(batches):
        found, wanted = program(batch), teacher(batch)
        counts = meaning.same_answers(found, wanted)
        same, asked = same + counts[0], asked + counts[1]
        error.add(found, wanted)
        progress("comparing with the float network", index + 1, len(batches))
    return 100 * same / asked, error.value


def write_files(
    exported: Exported, settings: Settings, out: Path, *, companions: bool, report: Path | None = None
) -> dict[str, Any]:
    """Writes the ONNX file, its companions and the report, each whole or not at all; returns the facts about them."""
    files = companions_of(out)
    checksum = None
    float_graph = with_endings(fold_batch_norm(exported.prepared.captured), exported.prepared.endings)
    float_model = float_onnx_from_graph(float_graph)
    name, interface = exported.prepared.loaded.name, interface_of(exported, "float-nchw")
    stamp_input(float_model, interface)
    describe(float_model, f"{name} in float", interface)
    run_once(float_model, "float file")
    fp32 = float_model.SerializeToString(deterministic=True)
    with ExitStack() as stack:  # all of them appear when all of them are good
        if companions:
            program = stack.enter_context(atomic_path(files.fakequant))
            content = program_bytes(exported.program)
            program.write_bytes(content)
            checksum = hashlib.sha256(content).hexdigest()
            stack.enter_context(atomic_path(files.fp32)).write_bytes(fp32)
        model, names = onnx_with_names(exported.integer)
        facts = {**provenance(exported, settings, checksum), **names_fact(names)}
        exact = not exported.prepared.in_float  # what runs in float is not the same to the last bit everywhere
        describe(model, f"{name} as {widths_of(exported.integer)} by gdfq-export", facts)
        stamp(model, facts, golden_vectors(exported.program, exported.outcome.held_back) if exact else None)
        onnx.checker.check_model(model, full_check=True)
        run_once(model, "quantized file")
        data = model.SerializeToString(deterministic=True)
        sizes = {"file_bytes": len(data), "fp32_bytes": len(fp32), "sha256": hashlib.sha256(data).hexdigest()}
        if report is not None:
            page = report_html(exported, settings, sizes)
            stack.enter_context(atomic_path(report)).write_text(page, encoding="utf-8")
        stack.enter_context(atomic_path(out)).write_bytes(data)
    return sizes


def program_bytes(program: IntegerProgram) -> bytes:
    """The integer program as a `.pt2` that plain `torch.export.load` reads.

    Saved to memory, because an archive saved to a file holds that file's (temporary) name.
    """
    channels, height, width = program.model.graph.input_shape
    example = torch.zeros(2, channels, height, width)
    if program.model.pixels is not None:
        example = torch.zeros(2, height, width, channels, dtype=torch.uint8)
    batch = torch.export.Dim("batch", min=1)
    buffer = io.BytesIO()
    with no_collection():  # which takes a third of the time, and finds little
        exported = torch.export.export(program, (example,), dynamic_shapes=({0: batch},))
        asserts = torch.ops.aten._assert_tensor_metadata.default
        for node in exported.graph.find_nodes(op="call_function", target=asserts):
            exported.graph.erase_node(node)  # one beside each cast of a tensor, whose type cannot change
        torch.export.save(exported, buffer)
    return buffer.getvalue()


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's garbage collector, as far as it was at work before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interface_of(exported: Exported, form: InputFormat) -> dict[str, Any]:
    """What the file takes and what it returns."""
    prepared = exported.prepared
    accepted = accepted_range(prepared, exported.integer)
    return {
        "input": input_facts(prepared.loaded, form, accepted),
        "output": output_facts(prepared.meaning, prepared.loaded.labels),
    }


def provenance(exported: Exported, settings: Settings, fakequant_sha256: str | None) -> Mapping[str, Any]:
    """How the file was made, for its metadata."""
    loaded, report = exported.prepared.loaded, exported.integer.report
    return {
        "tool_version": __version__,
        "model": loaded.name,
        "method": settings.method,
        "kept": dataclasses.asdict(exported.outcome.kept),
        "bits": dataclasses.asdict(settings.bits),
        "ranges": settings.ranges,
        "seed": settings.seed,
        "target": settings.target,
        "target_cost": {
            "channels_coarser": report.channels_coarser,
            "channels": report.channels_total,
            "weights_changed": report.weights_changed,
            "weights": report.weights_total,
            "scales_nudged": report.scales_nudged,
            "largest_nudge": report.largest_nudge,
        },
        "figures": dict(exported.outcome.figures),
        **exported.to_json(),
        **interface_of(exported, settings.input_format),
        "output_step": output_step(exported.integer),
        "float_ending": bool(exported.prepared.endings),
        "float_parts": [f"{node.op} at {node.place}" for node in exported.prepared.in_float],
        "weights_source": loaded.weights_source,
        "weights_sha256": loaded.weights_sha256,
        "fakequant_sha256": fakequant_sha256,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}},
    }


def output_step(model: IntegerModel) -> float:
    """The smallest distance between two different logits: one unit of the accumulator, or of the last code."""
    _, last = quantized_part(model.graph)
    if last in model.tensors:
        return float(model.tensors[last].scale)
    source = model.tensors[model.graph[last].inputs[0]]
    return float((source.scale * model.layers[last].scale).min())


def run_facts(prepared: Prepared, settings: Settings, real: RealImages = NO_IMAGES) -> dict[str, Any]:
    """Everything that decides the bytes of the result, by name; a saved state fits only a run with the same."""
    loaded = prepared.loaded
    facts: dict[str, Any] = {
        "model": loaded.name,
        "mean": loaded.mean,
        "std": loaded.std,
        "input_range": loaded.input_range,
    }
    named = None if loaded.labels is None else hashlib.sha256("\n".join(loaded.labels).encode()).hexdigest()
    facts |= {"labels": named, **_flat(dataclasses.asdict(settings), "")}
    for name, source in (("calibration_data", real.calibration), ("real_data", real.training)):
        facts[name] = None if source is None else f"{source.name} ({len(source)} images)"
    facts |= {"weights": digest_of(prepared.captured), "processes": size(), "threads": torch.get_num_threads()}
    return {**facts, "tool": __version__, "torch": torch.__version__}


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def run(
    loaded: LoadedModel,
    settings: Settings,
    out: Path,
    *,
    companions: bool = True,
    progress: Progress = silent,
    work: WorkDirectory | None = None,
    report: Path | None = None,
    real: RealImages = NO_IMAGES,
    store: ImageStore = NO_STORE,
    stopwatch: Stopwatch | None = None,
) -> dict[str, Any]:
    """The whole way from a loaded network to the files; returns what `quantize --json` prints.

    Where several processes train together, process 0 alone writes, and the others return nothing. A budget counts from
    the start of `stopwatch`: of this call, or of the process that makes it.
    """
    stopwatch = stopwatch or Stopwatch(settings.schedule.budget_seconds)
    start = stopwatch.clock()
    prepared = prepare(loaded, settings)
    facts = run_facts(prepared, settings, real)
    preparing = stopwatch.clock() - start
    checkpoint = open_checkpoint(work, facts, stopwatch) if work else Checkpoint()
    try:
        exported = quantize_model(prepared, settings, progress, checkpoint, real, store, stopwatch, preparing)
    except DivergedError as error:
        if work is None:
            raise
        checkpoint.save(DIVERGED, {})
        raise DivergedError(
            f"{error}; the last good state is kept in {work.folder}, and --resume goes on from it with the new values"
        ) from error
    except (UsageError, UnsupportedModelError):  # the next run with other options is no resumption of this one
        checkpoint.mark(REFUSED)
        raise
    if rank() != 0:
        return {}
    checkpoint.save(WRITING, {})
    for path in dataclasses.astuple(companions_of(out)):
        remove_leftovers(path)
    written = write_files(exported, settings, out, companions=companions, report=report)
    checkpoint.remove()
    return {
        "out": str(out),
        "bits": {"weight": settings.bits.weight, "activation": settings.bits.activation},
        "widths": widths_of(exported.integer),
        "method": settings.method,
        "kept": dataclasses.asdict(exported.outcome.kept),
        "seconds": round(stopwatch.own_seconds, 1),
        **written,
        **exported.to_json(),
        "input": interface_of(exported, settings.input_format)["input"],
        "weights_source": loaded.weights_source,
        "target": settings.target,
        "float_parts": [f"{node.op} at {node.place}" for node in prepared.in_float],
        "channels_coarser_for_target": exported.integer.report.channels_coarser,
        "weights_changed_for_target": exported.integer.report.weights_changed,
        "figures": dict(exported.outcome.figures),
        "notes": list(exported.outcome.notes),
        "warnings": exported.warnings,
    }
