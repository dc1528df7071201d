"""One function from what the user typed to a network ready for capture: `load_model`.

NAME             a network of the table: embedded, downloaded, `--weights` or random weights
FILE.py:FACTORY  a network of the user's own, with its own weights or `--weights`
FILE.pt2         a program of `torch.export.save`, which carries its weights
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gdfq_export.errors import UsageError, WeightsError
from gdfq_export.models.architectures import build_architecture
from gdfq_export.models.download import download_weights
from gdfq_export.models.factories import is_factory_spec, module_from_factory
from gdfq_export.models.programs import program_input_size, program_num_classes, read_program
from gdfq_export.models.random_weights import has_untouched_statistics, set_batch_norm_statistics
from gdfq_export.models.state import fit_state, read_state, sha256_of
from gdfq_export.models.table import NORMALISATIONS, ModelEntry, find_model
from gdfq_export.refusals import check_module

EMBEDDED_FOLDER = Path(__file__).parent / "weights"
DEFAULT_INPUT_SIZE = (3, 224, 224)
CROP_RATIO = 0.875  # crop / resize in the usual evaluation of ImageNet networks
SMALLEST_CROPPED_SIDE = 65  # images of 64 pixels and less are used whole
WEIGHTS_SUFFIXES = (".pt", ".pth", ".pth.tar", ".safetensors", ".bin", ".ckpt", ".zip")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network in eval mode, and how its input is made from an image."""

    name: str  # what the user typed, short
    module: torch.nn.Module | torch.export.ExportedProgram
    input_size: tuple[int, int, int]  # (C, H, W)
    mean: tuple[float, ...]  # of pixels in [0, 1], one a channel
    std: tuple[float, ...]
    num_classes: int | None
    resize: int | None  # shorter side before the centre crop
    weights_source: str  # "embedded", "pytorchcv", "file", "factory", "random" or "program"
    weights_sha256: str | None  # of the file the weights came from


@dataclass(frozen=True)
class _Request:
    """What the user asked for; None leaves it to the table or the file."""

    weights: Path | None
    pretrained: bool
    input_size: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    num_classes: int | None
    seed: int


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    pretrained: bool = True,
    input_size: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    num_classes: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """The network that `spec` names; the options override what the table or the file says."""
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other")
    if input_size is not None and (len(input_size) != 3 or min(input_size) < 1):
        raise UsageError(f"the input size must be channels, height and width, all positive, not {input_size}")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"the number of classes must be positive, not {num_classes}")
    asked = _Request(weights, pretrained, input_size, mean, std, num_classes, seed)
    if spec.lower().endswith(".pt2"):
        if weights is not None or not pretrained:
            raise UsageError(f"{spec} carries its weights: --weights and --no-pretrained do not apply")
        return _load_program(Path(spec), asked)
    if is_factory_spec(spec):
        return _load_factory(spec, asked)
    if spec.lower().endswith(WEIGHTS_SUFFIXES):
        raise UsageError(f"{spec} is a file of weights, not a network: pass it as --model NAME --weights {spec}")
    return _load_known(find_model(spec), asked)


def _load_known(entry: ModelEntry, asked: _Request) -> LoadedModel:
    size = asked.input_size or entry.input_size
    classes = asked.num_classes or entry.num_classes
    mean, std = _normalisation(asked, size[0], (entry.mean, entry.std))
    if asked.pretrained:
        weights_file, source = _weights_file(entry, asked.weights)  # first: a missing file is found at once
    module = build_architecture(entry, size, classes, asked.seed)
    if size != entry.input_size:
        _check_size(module, size, entry.name)
    if asked.pretrained:
        # pytorchcv's files may hold tensors of training only, and pytorchcv itself drops them.
        fit_state(module, read_state(weights_file), str(weights_file), ignore_extra=source == "pytorchcv")
    else:
        source = "random"
        set_batch_norm_statistics(module, size, asked.seed)
    return LoadedModel(
        name=entry.name,
        module=_ready(module),
        input_size=size,
        mean=mean,
        std=std,
        num_classes=classes,
        resize=entry.resize if size == entry.input_size else _usual_resize(size),
        weights_source=source,
        weights_sha256=sha256_of(weights_file) if asked.pretrained else None,
    )


def _weights_file(entry: ModelEntry, weights: Path | None) -> tuple[Path, str]:
    """The file with the weights of a network of the table, and what kind of source it is."""
    if weights is not None:
        if not weights.is_file():
            raise WeightsError(f"weights file {weights} does not exist")
        return weights, "file"
    if entry.weights == "embedded":
        file = EMBEDDED_FOLDER / f"{entry.architecture}.safetensors"
        if not file.is_file():
            raise WeightsError(f"this installation lacks the embedded weights {file}: install it again")
        return file, "embedded"
    return download_weights(entry), "pytorchcv"


def _load_factory(spec: str, asked: _Request) -> LoadedModel:
    size = asked.input_size or DEFAULT_INPUT_SIZE
    state = None if asked.weights is None else read_state(asked.weights)
    mean, std = _normalisation(asked, size[0], NORMALISATIONS["imagenet"])
    module = module_from_factory(spec, asked.seed)
    check_module(module)  # before it runs: what is refused here fails in many ways
    _check_size(module, size, spec)
    _say_assumptions(spec, asked)
    source = "factory"
    if state is not None:
        source = "file"
        fit_state(module, state, str(asked.weights), ignore_extra=False)
    elif not asked.pretrained:
        source = "random"
        set_batch_norm_statistics(module, size, asked.seed)
    elif has_untouched_statistics(module):
        logger.warning("%s looks untrained (all batch-norm statistics are 0 and 1): pass --weights FILE", spec)
    return LoadedModel(
        name=spec.rpartition(":")[2],
        module=_ready(module),
        input_size=size,
        mean=mean,
        std=std,
        num_classes=asked.num_classes,
        resize=_usual_resize(size),
        weights_source=source,
        weights_sha256=None if asked.weights is None else sha256_of(asked.weights),
    )


def _load_program(path: Path, asked: _Request) -> LoadedModel:
    program = read_program(path)
    size = program_input_size(program, path)
    if asked.input_size is not None and asked.input_size != size:
        raise UsageError(f"{path} was exported for images of {_by(size)}, not {_by(asked.input_size)}")
    _say_assumptions(str(path), replace(asked, input_size=size))  # the program knows its size
    mean, std = _normalisation(asked, size[0], NORMALISATIONS["imagenet"])
    return LoadedModel(
        name=path.stem,
        module=program,
        input_size=size,
        mean=mean,
        std=std,
        num_classes=asked.num_classes or program_num_classes(program),
        resize=_usual_resize(size),
        weights_source="program",
        weights_sha256=sha256_of(path),
    )


def _ready(module: torch.nn.Module) -> torch.nn.Module:
    return module.eval().requires_grad_(False)


def _normalisation(
    asked: _Request, channels: int, default: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with one value a channel; one value given stands for all channels."""
    means, stds = (
        tuple(given) * channels if len(given) == 1 else tuple(given)
        for given in (asked.mean or default[0], asked.std or default[1])
    )
    for option, values, given in (("--mean", means, asked.mean), ("--std", stds, asked.std)):
        if len(values) != channels:
            needed = "has" if given else "needs"
            raise UsageError(f"{option} {needed} {len(values)} values where the input has {channels} channels")
    if min(stds) <= 0:
        raise UsageError(f"--std must be positive, not {min(stds)}")
    return means, stds


def _usual_resize(size: tuple[int, int, int]) -> int | None:
    side = min(size[1:])
    return round(side / CROP_RATIO) if side >= SMALLEST_CROPPED_SIDE else None


def _check_size(module: torch.nn.Module, size: tuple[int, int, int], spec: str) -> None:
    """Runs one empty image, so that a size the network cannot take is found before anything else happens."""
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, *size))
    except Exception as error:  # whatever the user's own code raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{spec} cannot run an image of {_by(size)} (see --input-size): {reason}") from error


def _say_assumptions(spec: str, asked: _Request) -> None:
    assumed = [] if asked.input_size else [f"input {_by(DEFAULT_INPUT_SIZE)} (--input-size)"]
    assumed += [] if asked.mean and asked.std else ["ImageNet's mean and std (--mean, --std)"]
    if assumed:
        logger.warning("%s: assuming %s", spec, " and ".join(assumed))


def _by(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))
