"""`gdfq-export quantize`: a trained network in, a verified integer ONNX file out."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gdfq_export.ablations import Ablations
from gdfq_export.cli.config import given_options, options_of, read_config
from gdfq_export.cli.options import (
    BYTES,
    OPERATIONS,
    parse_amount,
    parse_budget,
    parse_floats,
    parse_range,
    parse_size,
)
from gdfq_export.cli.quantize_report import agreement_of, has_agreement, print_result
from gdfq_export.cli.streams import users_code
from gdfq_export.cli.switches import PANEL, check_options
from gdfq_export.errors import UsageError
from gdfq_export.names import (
    DEVICE_NAMES,
    INPUT_FORMATS,
    METHOD_NAMES,
    OPTIONAL_PASSES,
    PRESETS,
    RANGE_NAMES,
    READINGS,
    TARGET_NAMES,
)

if TYPE_CHECKING:
    from gdfq_export.pipeline import Prepared
    from gdfq_export.settings import Settings


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        known = options_of(quantize, context.command.params)
        context.default_map = {**(context.default_map or {}), **read_config(path, known)}
    return path


def _one_of(value: str, allowed: tuple[str, ...], option: str) -> str:
    if value not in allowed:
        raise UsageError(f"{option} {value!r} is none of {', '.join(allowed)}")
    return value


def _width_budgets(
    size: str | None, bitops: str | None, weight_bits: int | None, *, dry_run: bool
) -> tuple[int | None, int | None]:
    """The budgets that decide the width of each layer, in bytes and in bit operations; one of them at most."""
    given = {"--size-budget": size, "--bitops-budget": bitops}
    names = [name for name, value in given.items() if value is not None]
    if len(names) == 2:
        raise UsageError("--size-budget and --bitops-budget cannot both decide the widths: leave one of them out")
    if names and weight_bits is not None:
        raise UsageError(f"{names[0]} decides the widths of the weights: leave --weight-bits out")
    if names and dry_run:
        raise UsageError(f"the widths that {names[0]} leads to are only known after a run: leave --dry-run out")
    return (
        None if size is None else parse_amount(size, "--size-budget", "400kB or 1.5MB", BYTES),
        None if bitops is None else parse_amount(bitops, "--bitops-budget", "2.5G", OPERATIONS),
    )


def _writes() -> bool:
    """Whether this process writes the files: the first one where torchrun started several."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def quantize(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Name of a known network, FILE.py:FACTORY, or FILE.pt2.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    weights: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a torch state dict.")] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle", help="Read a whole pickled module as --model or --weights, which runs code from the file."
        ),
    ] = False,
    bits: Annotated[int | None, typer.Option(help="Width of weights and activations, 2 to 8; 8 if not given.")] = None,
    weight_bits: Annotated[int | None, typer.Option(help="Width of weights alone.")] = None,
    act_bits: Annotated[int | None, typer.Option(help="Width of activations alone.")] = None,
    first_last: Annotated[int | None, typer.Option(help="Other width for the first and the last layer.")] = None,
    image_bits: Annotated[int, typer.Option(help="Width of the input image, whose pixels have 8 bits.")] = 8,
    sum_bits: Annotated[
        int | None, typer.Option(help="Other width for residual sums, like 8 for 3-bit activations.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"How to quantize: {', '.join(METHOD_NAMES)}.")] = "auto",
    preset: Annotated[str, typer.Option(help=f"How long to train: {', '.join(PRESETS)}.")] = "fast",
    budget: Annotated[str | None, typer.Option(help="Time to spend, like 90s, 10m or 1h.")] = None,
    generator_lr: Annotated[
        float | None, typer.Option(help="Learning rate of the generator; 1e-3 if not given.")
    ] = None,
    student_lr: Annotated[float | None, typer.Option(help="Learning rate of the student; that of the preset.")] = None,
    size_budget: Annotated[
        str | None, typer.Option(help="zeroq: size of the file, like 400kB; each layer gets its own width.")
    ] = None,
    bitops_budget: Annotated[
        str | None, typer.Option(help="zeroq: bit operations for one image, like 2.5G; each layer gets its own width.")
    ] = None,
    ranges: Annotated[str, typer.Option(help=f"How activation ranges are found: {', '.join(RANGE_NAMES)}.")] = "mse",
    reading: Annotated[
        str | None,
        typer.Option(help="Losses as the paper prints them or as its authors' code has them; that of the preset."),
    ] = None,
    calibration_data: Annotated[
        Path | None, typer.Option(help="Folder of real images to find ranges with, in place of generated ones.")
    ] = None,
    real_data: Annotated[
        Path | None, typer.Option(help="Folder of labelled real images to train on: the upper bound, not data-free.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Keep optimised images in this file, and read them there if it exists: for other widths."),
    ] = None,
    no_generator_ce: Annotated[
        bool, typer.Option("--no-generator-ce", help="No cross-entropy for the generator.", rich_help_panel=PANEL)
    ] = False,
    no_generator_bns: Annotated[
        bool, typer.Option("--no-generator-bns", help="No batch-norm statistics loss.", rich_help_panel=PANEL)
    ] = False,
    no_student_ce: Annotated[
        bool, typer.Option("--no-student-ce", help="No cross-entropy for the student.", rich_help_panel=PANEL)
    ] = False,
    no_student_kd: Annotated[
        bool, typer.Option("--no-student-kd", help="No distillation.", rich_help_panel=PANEL)
    ] = False,
    moving_statistics: Annotated[
        bool,
        typer.Option("--moving-statistics", help="Batch-norm statistics move in training.", rich_help_panel=PANEL),
    ] = False,
    separate: Annotated[
        bool, typer.Option("--separate", help="Train the generator first, then the student.", rich_help_panel=PANEL)
    ] = False,
    stop_threshold: Annotated[
        float | None,
        typer.Option(help="Stop the generator when it is recognised this often, in percent.", rich_help_panel=PANEL),
    ] = None,
    keep_trained: Annotated[
        bool,
        typer.Option("--keep-trained", help="Keep the student even where it agrees less.", rich_help_panel=PANEL),
    ] = False,
    target: Annotated[str, typer.Option(help=f"Where it will run: {', '.join(TARGET_NAMES)}.")] = "portable",
    input_format: Annotated[
        str, typer.Option(help="float-nchw, or uint8-nhwc: bytes as a camera gives them, normalised in the graph.")
    ] = "float-nchw",
    input_size: Annotated[str | None, typer.Option(help="Input as CxHxW, like 3x224x224.")] = None,
    mean: Annotated[str | None, typer.Option(help="Mean of pixels in 0..1 or 0..255, one or one a channel.")] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation of pixels, in the unit of --mean.")] = None,
    input_range: Annotated[
        str | None, typer.Option(help="LOW,HIGH of what the network is fed, where the input is no image; like -2,2.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the classes, one a line, kept in the file.")] = None,
    num_classes: Annotated[int | None, typer.Option(help="Classes, where the last layer does not tell.")] = None,
    no_pretrained: Annotated[bool, typer.Option("--no-pretrained", help="Random weights, for size and speed.")] = False,
    min_agreement: Annotated[
        float | None, typer.Option(help="Exit with 1 if fewer percent of held-back images keep the float class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same machine, same bytes.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores if not given.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with options, whose paths are relative to it; the command line overrides it.",
            is_eager=True,
            callback=_load_config,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the quantization plan and stop.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run of the same command.")] = False,
    work_dir: Annotated[
        Path | None, typer.Option(help="Where an unfinished run is saved; OUT with the ending .work if not given.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write a page about the run: plan, layers, images, figures (HTML).")
    ] = None,
    allow_float: Annotated[
        str | None,
        typer.Option(help="Operators or modules that may stay float, as a regular expression; they are listed."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(help=f"Leave out a pass for speed ({', '.join(OPTIONAL_PASSES)}); may be repeated."),
    ] = None,
    no_companions: Annotated[
        bool, typer.Option("--no-companions", help="Write the ONNX file only, not the PyTorch and float ones.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on the way, only the result.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Quantize a trained classifier without data and write an integer ONNX file.

    Beside model.onnx stand model.fakequant.pt2 (the same integers in PyTorch) and model.fp32.onnx (the float network).
    """
    from gdfq_export.files import check_output, companions_of, work_directory
    from gdfq_export.lock import alone
    from gdfq_export.runtime_checks.class_folders import read_labels

    _one_of(method, METHOD_NAMES, "--method")
    _one_of(preset, PRESETS, "--preset")
    _one_of(target, TARGET_NAMES, "--target")
    _one_of(ranges, RANGE_NAMES, "--ranges")
    _one_of(input_format, INPUT_FORMATS, "--input-format")
    _one_of(device, DEVICE_NAMES, "--device")
    for name in without or []:
        _one_of(name, OPTIONAL_PASSES, "--without")
    seconds = None if budget is None else parse_budget(budget)
    size = None if input_size is None else parse_size(input_size)
    named = None if labels is None else read_labels(labels)
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads} is no number of threads: give 1 or more")
    if min_agreement is not None and not 0 <= min_agreement <= 100:
        raise UsageError(f"--min-agreement {min_agreement:g} is no percentage: give 0 to 100")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative: give 0 or more")
    if bits is not None and weight_bits is not None and act_bits is not None:
        raise UsageError("--bits says the same as --weight-bits and --act-bits together: leave one of them out")
    if reading is not None:
        _one_of(reading, READINGS, "--reading")
    ablations = Ablations(
        generator_cross_entropy=not no_generator_ce,
        generator_statistics=not no_generator_bns,
        student_cross_entropy=not no_student_ce,
        distillation=not no_student_kd,
        fixed_statistics=not moving_statistics,
        alternating=not separate,
        stop_threshold=stop_threshold,
        keep_better=not keep_trained,
    )
    check_options(method, given_options(context), ablations, ranges=ranges)
    rates = {"generator_lr": generator_lr, "student_lr": student_lr}
    for name, rate in rates.items():
        if rate is not None and not 0 < rate < 1e6:
            raise UsageError(
                f"--{name.replace('_', '-')} {rate:g} is no learning rate: give a number above 0, like 1e-4"
            )
    default = 8 if bits is None else bits
    widths = {
        "weight": default if weight_bits is None else weight_bits,
        "activation": default if act_bits is None else act_bits,
        "first_last": first_last,
        "image": image_bits,
        "sums": sum_bits,
    }
    for width in widths.values():
        if width is not None and not 2 <= width <= 8:
            raise UsageError(f"{width} bits cannot be had: choose 2 to 8")

    written = [*dataclasses.astuple(companions_of(out))]
    for option, path in (("--report", report), ("--images", images)):
        if path is not None and path in written:
            raise UsageError(f"{option} {path} is also what another file of the run is called: choose another name")
        written.append(path)
    budgets = _width_budgets(size_budget, bitops_budget, weight_bits, dry_run=dry_run)
    if dry_run and resume:
        raise UsageError("--dry-run trains nothing, so there is nothing to --resume: leave one of them out")

    folder = work_directory(out) if work_dir is None else work_dir
    if not dry_run:
        if _writes():
            context.with_resource(alone([out, folder]))
        check_output(out, force=force or resume)
        if images is not None and not images.is_file():
            check_output(images, force=True, option="--images")
    if not as_json and not quiet:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        logging.getLogger("torch").setLevel(logging.ERROR)
        print("loading PyTorch", file=sys.stderr, flush=True)

    import torch

    from gdfq_export.checkpoint import WorkDirectory, is_writing
    from gdfq_export.cli.image_folder import ImageFolder
    from gdfq_export.distributed import joined, rank
    from gdfq_export.image_store import ImageStore
    from gdfq_export.memory import keep_freed_memory
    from gdfq_export.models.sources import load_model
    from gdfq_export.pipeline import prepare, run
    from gdfq_export.plan import BitWidths
    from gdfq_export.progress import progress_bars, silent
    from gdfq_export.real_images import RealImages
    from gdfq_export.settings import (
        Settings,
        distillation_for,
        reconstruction_for,
        schedule_for,
        tuning_for,
        weighing_for,
        with_budget,
        with_reading,
    )
    from gdfq_export.stopwatch import Stopwatch

    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU and a CUDA build of PyTorch, and neither is here: use --device cpu")
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    files = companions_of(out)
    if not dry_run:
        overwrite = force or (resume and is_writing(folder))  # then they are of the run that goes on
        for path in (files.model, files.fakequant, files.fp32)[: 1 if no_companions else 3]:
            check_output(path, force=overwrite)
        if report is not None:
            check_output(report, force=overwrite, option="--report")
    with users_code():
        loaded = load_model(
            model,
            weights=weights,
            allow_pickle=allow_pickle,
            pretrained=not no_pretrained,
            input_size=size,
            mean=None if mean is None else parse_floats(mean, "--mean"),
            std=None if std is None else parse_floats(std, "--std"),
            input_range=None if input_range is None else parse_range(input_range),
            num_classes=num_classes,
            labels=named,
            seed=seed,
        )
    given: dict[str, Any] = {name: rate for name, rate in rates.items() if rate is not None}
    schedule = dataclasses.replace(schedule_for(preset, loaded.input_size), ablations=ablations)
    schedule = schedule if reading is None else with_reading(schedule, "code" if reading == "code" else "paper")
    schedule = schedule if seconds is None else with_budget(schedule, seconds)
    schedule = dataclasses.replace(schedule, **given)
    longest = preset if seconds is None else "paper"  # a budget cuts it down
    asked = BitWidths(**widths)  # type: ignore[arg-type]
    settings = Settings(
        method=method,
        bits=asked,
        schedule=schedule,
        ranges=ranges,  # type: ignore[arg-type]
        target=target,
        seed=seed,
        input_format="uint8-nhwc" if input_format == "uint8-nhwc" else "float-nchw",
        distillation=distillation_for(longest, loaded.input_size),
        reconstruction=reconstruction_for(longest, loaded.input_size),
        tuning=tuning_for(longest, loaded.input_size, asked),
        weighing=weighing_for(longest, loaded.input_size),
        size_budget=budgets[0],
        bit_operations_budget=budgets[1],
        allow_float=allow_float,
        without=tuple(without or ()),
        device="cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu",
    )
    if dry_run:
        with users_code():
            prepared = prepare(loaded, settings)
        _print_plan(prepared, settings, as_json)
        return
    if not loaded.is_image and (calibration_data or real_data):
        raise UsageError(
            "--calibration-data and --real-data hold images, but --input-range says that the input is none: give "
            "--mean and --std in its place, or leave the images out"
        )
    folders = [None if path is None else ImageFolder(path, loaded, named) for path in (calibration_data, real_data)]
    real = RealImages(*folders)
    work = WorkDirectory(folder, resume=resume, discard=force)
    with users_code(), joined(settings.device) as own_device:
        quiet = quiet or rank() != 0
        settings = dataclasses.replace(settings, device=own_device)
        with nullcontext(silent) if quiet else progress_bars() as progress:
            result = run(
                loaded,
                settings,
                out,
                companions=not no_companions,
                progress=progress,
                work=work,
                report=report,
                real=real,
                store=ImageStore(images),
                stopwatch=Stopwatch(seconds, context.obj),
            )
        if rank() != 0:
            return
    enough = has_agreement(result, min_agreement)
    if as_json:
        print(json.dumps({**result, "enough_agreement": enough}))
    else:
        beside = () if no_companions else (files.fakequant, files.fp32)
        print_result(result, loaded.name, out, beside, report)
    if not enough:
        print(f"FAIL: {agreement_of(result)}, but --min-agreement asks for {min_agreement:g} %", file=sys.stderr)
        raise typer.Exit(1)


def _print_plan(prepared: Prepared, settings: Settings, as_json: bool) -> None:
    """The plan as a table, or as JSON."""
    from gdfq_export.interface import input_facts, input_sentence
    from gdfq_export.pipeline import accepted_range

    columns = ("name", "kind", "bits", "sign", "symmetry", "granularity", "shares range with", "reason")
    rows = prepared.plan.rows()
    taken = input_facts(prepared.loaded, settings.input_format, accepted_range(prepared))
    if as_json:
        bits = {"weight": settings.bits.weight, "activation": settings.bits.activation}
        plan = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json.dumps({"bits": bits, "plan": plan, "input": taken}))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns, title=f"quantization plan of {prepared.loaded.name}")
    for row in rows:
        table.add_row(*map(str, row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    print(f"input: {input_sentence(taken)}")
    tensors, groups = len(prepared.plan.tensors), len(prepared.plan.groups())
    print(f"{tensors} tensors in {groups} ranges, {len(prepared.plan.weights)} layers; nothing was written")
