"""One function from what the user typed to a network ready for capture: `load_model`.

NAME             a network of the table: embedded, downloaded, `--weights` or random weights
FILE.py:FACTORY  a network of the user's own, with its own weights or `--weights`
FILE.pt2         a program of `torch.export.save`, which carries its weights
FILE.pt          a whole pickled module, where the user allows it: loading it runs code from the file
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from gdfq_export.errors import InputFileError, UnknownModelError, UnsupportedModelError, UsageError, WeightsError
from gdfq_export.models.architectures import build_architecture
from gdfq_export.models.download import download_weights
from gdfq_export.models.factories import is_factory_spec, module_from_factory
from gdfq_export.models.kinds import kind_of, torchscript_advice
from gdfq_export.models.normalisation import is_identity, normalisation
from gdfq_export.models.pickles import module_from_pickle
from gdfq_export.models.programs import program_input_size, program_num_classes, read_program
from gdfq_export.models.random_weights import has_untouched_statistics, set_batch_norm_statistics
from gdfq_export.models.state import fit_state, read_state, sha256_of
from gdfq_export.models.table import NORMALISATIONS, ModelEntry, find_model
from gdfq_export.models.values import bad_values
from gdfq_export.precision import named, program_floats, widen
from gdfq_export.refusals import check_module
from gdfq_export.trial import check_runs

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
    weights_source: str  # "embedded", "pytorchcv", "file", "factory", "pickle", "random" or "program"
    weights_sha256: str | None  # of the file the weights came from
    input_range: tuple[float, float] | None = None  # of what the network is fed, where pixels do not decide it
    labels: tuple[str, ...] | None = None  # names of the classes

    @property
    def is_image(self) -> bool:
        """Whether the input is made from pixels: an input with a range and no normalisation holds other features."""
        return self.input_range is None or not is_identity(self.mean, self.std)


@dataclass(frozen=True)
class _Request:
    """What the user asked for; None leaves it to the table or the file."""

    weights: Path | None
    allow_pickle: bool
    pretrained: bool
    input_size: tuple[int, int, int] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    input_range: tuple[float, float] | None
    num_classes: int | None
    seed: int


def load_model(
    spec: str,
    *,
    weights: Path | None = None,
    allow_pickle: bool = False,
    pretrained: bool = True,
    input_size: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    input_range: tuple[float, float] | None = None,
    num_classes: int | None = None,
    labels: tuple[str, ...] | None = None,
    seed: int = 0,
) -> LoadedModel:
    """The network that `spec` names; the options override what the table or the file says."""
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other")
    if input_size is not None and (len(input_size) != 3 or min(input_size) < 1):
        raise UsageError(f"the input size must be channels, height and width, all positive, not {input_size}")
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"the number of classes must be positive, not {num_classes}")
    if allow_pickle and weights is None and (is_factory_spec(spec) or not Path(spec).is_file()):
        raise UsageError(
            "--allow-pickle is for a file of a pickled module, but neither --model nor --weights names one"
        )
    asked = _Request(weights, allow_pickle, pretrained, input_size, mean, std, input_range, num_classes, seed)
    loaded = replace(_loaded(spec, asked), input_range=input_range, labels=labels)
    _check_values(loaded, spec)
    return loaded


def _loaded(spec: str, asked: _Request) -> LoadedModel:
    if is_factory_spec(spec):
        return _load_factory(spec, asked)
    path = Path(spec)
    if spec.lower().endswith(".pt2") and not path.is_file():
        return _load_program(path, asked)
    if spec.lower().endswith((".pt2", *WEIGHTS_SUFFIXES)):
        return _load_file(path, asked)
    try:
        return _load_known(find_model(spec), asked)
    except UnknownModelError:
        if not path.is_file():
            raise
    return _load_file(path, asked)


def _load_file(path: Path, asked: _Request) -> LoadedModel:
    """A network from a file that holds one; other files are told apart by what they hold, not by their names."""
    as_weights = f"pass it as --model NAME --weights {path}, or as --model FILE.py:FACTORY --weights {path}"
    if not path.is_file():
        raise UsageError(f"{path} does not exist, and by its name it is a file of weights, not a network: {as_weights}")
    found = kind_of(path)
    if found.kind == "program" or (found.kind == "other" and path.suffix.lower() == ".pt2"):
        return _load_program(path, asked)
    if found.kind == "torchscript":
        raise UnsupportedModelError(f"{path} is {torchscript_advice(path)}")
    if found.kind in ("safetensors", "tensors"):
        raise UsageError(f"{path} is a file of weights, not a network: {as_weights}")
    if found.kind == "other":
        raise InputFileError(
            f"{path} is no network that can be read, or damaged: pass a .pt2 file of torch.export.save, or the "
            "module's source as FILE.py:FACTORY with its state_dict() as --weights"
        )
    if not asked.allow_pickle:
        raise UsageError(
            f"{path} holds pickled Python objects ({found.pickled}), and loading them would run code from the file: "
            "pass the module's source as --model FILE.py:FACTORY with its state_dict() as --weights, or add "
            "--allow-pickle where you trust the file"
        )
    return _load_module(path.stem, str(path), asked, lambda: module_from_pickle(path), path)


def _load_known(entry: ModelEntry, asked: _Request) -> LoadedModel:
    size = asked.input_size or entry.input_size
    classes = asked.num_classes or entry.num_classes
    mean, std = _normalisation(asked, size[0], (entry.mean, entry.std))
    if asked.pretrained:
        weights_file, source = _weights_file(entry, asked.weights)  # first: a missing file is found at once
    module = build_architecture(entry, size, classes, asked.seed)
    if size != entry.input_size:
        check_runs(module, size, entry.name, UsageError)
    if asked.pretrained:
        # pytorchcv's files may hold tensors of training only, and pytorchcv itself drops them.
        state = read_state(weights_file, asked.allow_pickle and source == "file")
        fit_state(module, state, str(weights_file), ignore_extra=source == "pytorchcv")
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
    return _load_module(spec.rpartition(":")[2], spec, asked, lambda: module_from_factory(spec, asked.seed), None)


def _load_module(
    name: str, spec: str, asked: _Request, make: Callable[[], torch.nn.Module], file: Path | None
) -> LoadedModel:
    """A module of the user's own, which `make` makes: from source, or from `file`, which then holds its weights too."""
    size = asked.input_size or DEFAULT_INPUT_SIZE
    state = None if asked.weights is None else read_state(asked.weights, asked.allow_pickle)
    mean, std = _normalisation(asked, size[0], NORMALISATIONS["imagenet"])
    module = make()
    check_module(module)  # before it runs: what is refused here fails in many ways
    _say_precision(spec, widen(module.cpu()))
    check_runs(module, size, spec, UsageError)
    _say_assumptions(spec, asked)
    source = "factory" if file is None else "pickle"
    if state is not None:
        source = "file"
        fit_state(module, state, str(asked.weights), ignore_extra=False)
    elif not asked.pretrained:
        source = "random"
        set_batch_norm_statistics(module, size, asked.seed)
    elif has_untouched_statistics(module):
        logger.warning("%s looks untrained (all batch-norm statistics are 0 and 1): pass --weights FILE", spec)
    weights = file if asked.weights is None else asked.weights
    return LoadedModel(
        name=name,
        module=_ready(module),
        input_size=size,
        mean=mean,
        std=std,
        num_classes=asked.num_classes,
        resize=_usual_resize(size),
        weights_source=source,
        weights_sha256=None if weights is None else sha256_of(weights),
    )


def _load_program(path: Path, asked: _Request) -> LoadedModel:
    if asked.weights is not None or not asked.pretrained:
        raise UsageError(f"{path} carries its weights: --weights and --no-pretrained do not apply")
    program = read_program(path)
    size = program_input_size(program, path)
    if asked.input_size is not None and asked.input_size != size:
        raise UsageError(f"{path} was exported for images of {_by(size)}, not {_by(asked.input_size)}")
    _say_assumptions(str(path), replace(asked, input_size=size))  # the program knows its size
    _say_precision(str(path), program_floats(program))
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
    return normalisation(asked.mean, asked.std, asked.input_range, channels, default)


def _usual_resize(size: tuple[int, int, int]) -> int | None:
    side = min(size[1:])
    return round(side / CROP_RATIO) if side >= SMALLEST_CROPPED_SIDE else None


def _check_values(loaded: LoadedModel, spec: str) -> None:
    """Weights that are not finite are found before anything runs, wherever they stand."""
    module = loaded.module
    if isinstance(module, torch.export.ExportedProgram):
        damage = bad_values([*module.state_dict.items(), *_tensors(module.constants)])
    else:
        damage = bad_values([*module.named_parameters(), *module.named_buffers()])
    if damage is None:
        return
    if loaded.weights_source in ("program", "pickle"):
        raise WeightsError(f"the weights in {spec} are damaged: {damage}")
    raise UnsupportedModelError(f"{damage} in the network that {spec} makes: correct it there, or pass --weights FILE")


def _tensors(constants: Mapping[str, object]) -> list[tuple[str, torch.Tensor]]:
    return [(name, value) for name, value in constants.items() if isinstance(value, torch.Tensor)]


def _say_precision(spec: str, types: set[torch.dtype]) -> None:
    if types:
        logger.warning("%s is in %s: it is computed in float32", spec, named(types))


def _say_assumptions(spec: str, asked: _Request) -> None:
    assumed = [] if asked.input_size else [f"input {_by(DEFAULT_INPUT_SIZE)} (--input-size)"]
    assumed += [] if asked.mean or asked.input_range else ["ImageNet's mean and std (--mean, --std)"]
    if assumed:
        logger.warning("%s: assuming %s", spec, " and ".join(assumed))


def _by(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))
