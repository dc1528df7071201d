"""State dicts: reading them from a file without running code from it, and fitting them into a network.

Formats: safetensors, torch files with `weights_only=True` (a pickle that wants to run code is refused unless the user
allows it), and the zipped torch files that pytorchcv publishes. Common wrappers (`{"state_dict": ...}`, `module.`,
`_orig_mod.`) are undone.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from gdfq_export.errors import WeightsError
from gdfq_export.models.kinds import kind_of, torchscript_advice
from gdfq_export.models.pickles import load_pickle, module_in
from gdfq_export.models.values import bad_values

WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.")
NAMED_KEYS = 2  # how many keys of a kind an error message names

State = dict[str, torch.Tensor]


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path, allow_pickle: bool = False) -> State:
    """The tensors of a weights file, by name; `allow_pickle` takes those of a whole pickled module too."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise WeightsError(f"weights file {path} does not exist") from None
    except IsADirectoryError:
        raise WeightsError(f"weights file {path} is a folder") from None
    except OSError as error:
        raise WeightsError(f"weights file {path} cannot be read: {error.strerror or error}") from error
    if path.suffix == ".safetensors" or start[8:] == b"{":  # eight bytes of length, then JSON
        return _read_safetensors(path)
    return _unwrap(_read_torch(path, allow_pickle), path)


def fit_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], source: str, ignore_extra: bool) -> None:
    """Copies `state` into `module`; every tensor must be there, of the right shape, and finite.

    `num_batches_tracked` only counts training steps and may be missing. `ignore_extra` drops tensors that the network
    does not have, as pytorchcv does with its own files.
    """
    wanted = module.state_dict()
    state = _without_prefix(state, wanted)
    for key, tensor in state.items():
        if key in wanted and wanted[key].is_floating_point() and not tensor.is_floating_point():
            raise WeightsError(
                f"the weights in {source} are already quantized ({key} is {tensor.dtype}): "
                "pass those of the float network"
            )
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    missing = [key for key in wanted if key not in state and key not in counters]
    extra = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked")]
    reshaped = [key for key in wanted if key in state and state[key].shape != wanted[key].shape and key not in counters]
    problems = [
        _listed("lacks", missing),
        _listed("has unknown", [] if ignore_extra else extra),
        _listed("disagrees in shape at", [_shapes(key, state[key], wanted[key]) for key in reshaped]),
    ]
    if any(problems):
        raise WeightsError(f"the weights in {source} belong to another network: it {', '.join(filter(None, problems))}")
    fitting = {key: state[key] for key in wanted if key in state and key not in counters}
    damage = bad_values(fitting.items())
    if damage is not None:
        raise WeightsError(f"the weights in {source} are damaged: {damage}")
    module.load_state_dict(fitting, strict=False)


def _read_safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"weights file {path} is damaged or not safetensors: {_first_line(error)}") from error


def _read_torch(path: Path, allow_pickle: bool) -> object:
    with _opened(path) as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported" in str(error) or "GLOBAL" in str(error):
                if allow_pickle:
                    return load_pickle(path)
                pickled = kind_of(path).pickled
                raise WeightsError(
                    f"weights file {path} holds pickled Python objects{pickled and f' ({pickled})'}, which could run "
                    "code and are not loaded: save the network's state_dict() instead, best as safetensors, or add "
                    "--allow-pickle where you trust the file"
                ) from error
            raise WeightsError(f"weights file {path} is damaged, or neither safetensors nor a torch file") from error
        except Exception as error:  # torch has RuntimeError, EOFError, KeyError, ... for the many ways to be damaged
            raise WeightsError(f"weights file {path} is damaged, or neither safetensors nor a torch file") from error


def _opened(path: Path) -> IO[bytes]:
    """The torch file's bytes; pytorchcv publishes it zipped once more, and other zip archives are told apart."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if len(members) == 1 and members[0].endswith(".pth"):
                return io.BytesIO(_read_member(archive, members[0], path))
        if any(member.endswith("archive_format") for member in members):
            raise WeightsError(f"weights file {path} is an exported program: pass it as --model {path}")
        if any("/code/" in member for member in members):
            raise WeightsError(f"weights file {path} is {torchscript_advice(path)}")
    return path.open("rb")


def _read_member(archive: zipfile.ZipFile, member: str, path: Path) -> bytes:
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise WeightsError(f"weights file {path} is a damaged zip archive") from error


def _unwrap(content: object, path: Path) -> State:
    module = module_in(content)
    content = content if module is None else module.state_dict()
    for key in WRAPPER_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    entries: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    state = {str(key): value for key, value in entries.items() if isinstance(value, torch.Tensor)}
    if not state:
        raise WeightsError(f"weights file {path} holds no state dict: expected names with tensors")
    return state


def _without_prefix(state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> State:
    """`state` without prefixes that all of its keys share and the network's keys do not."""
    for prefix in WRAPPER_PREFIXES:
        shared = all(key.startswith(prefix) for key in state)
        if shared and not any(key.startswith(prefix) for key in wanted):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return dict(state)


def _listed(verb: str, keys: Sequence[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - NAMED_KEYS} more" if len(keys) > NAMED_KEYS else ""
    return f"{verb} {', '.join(keys[:NAMED_KEYS])}{more}"


def _shapes(key: str, have: torch.Tensor, want: torch.Tensor) -> str:
    return f"{key} ({'x'.join(map(str, have.shape)) or 'scalar'}, not {'x'.join(map(str, want.shape)) or 'scalar'})"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
