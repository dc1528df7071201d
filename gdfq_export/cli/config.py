"""Options in a TOML file, `option-name = value`, each value checked and turned into what the command line would say.

Numbers with commas may be lists, and paths are relative to the file, so that it can be used from anywhere.
"""

from __future__ import annotations

import inspect
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer

from gdfq_export.errors import InputFileError, UsageError

WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text, a number or a list of numbers",
    Path: "a path in quotes",
}
SEPARATORS = {"input-size": "x"}  # of the numbers in a list; others have commas
FILES_OR_NAMES = "model"
SIGNS_OF_A_FILE = frozenset("./\\")  # no known network has them in its name


@dataclass(frozen=True)
class Option:
    """One option of a command."""

    parameter: str  # of the function behind the command
    kind: type
    several: bool  # it may be repeated


def given_options(context: typer.Context) -> list[str]:
    """Parameters that the user set, on the command line or in a config, be it to their default."""
    sources = {parameter.name: context.get_parameter_source(parameter.name) for parameter in context.command.params}
    return [name for name, source in sources.items() if source is not None and source.name != "DEFAULT"]


def options_of(command: Callable[..., None], parameters: Iterable[Any]) -> dict[str, Option]:
    """Every option of a command by its name without dashes; `parameters` are those that typer made of it."""
    hints = get_type_hints(inspect.unwrap(command))
    options: dict[str, Option] = {}
    for parameter in parameters:
        kinds = [kind for kind in get_args(hints[parameter.name]) or [hints[parameter.name]] if kind is not type(None)]
        several = get_origin(kinds[0]) is list
        option = Option(parameter.name, get_args(kinds[0])[0] if several else kinds[0], several)
        options |= {name.lstrip("-"): option for name in parameter.opts}
    return options


def read_config(path: Path, options: Mapping[str, Option]) -> dict[str, Any]:
    """The options in a TOML file by parameter; the command line overrides them."""
    found = {}
    for key, value in _parsed(path).items():
        name = key.replace("_", "-")
        option = options.get(name)
        if option is None:
            raise UsageError(f"--config {path} sets {key!r}, which is no option of quantize")
        if name == "config":
            raise UsageError(f"--config {path} names another config: write its options into this one")
        found[option.parameter] = _value(path, name, option, value)
    return found


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputFileError(f"cannot read --config {path} ({error.strerror}): check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputFileError(f"--config {path} is not valid TOML ({error}): correct it") from error


def _value(path: Path, name: str, option: Option, value: Any) -> Any:
    """What the command line would hand over; UsageError where the type is another."""
    if option.several:
        return [_single(path, name, option.kind, each) for each in (value if isinstance(value, list) else [value])]
    if option.kind is str and isinstance(value, list) and value and all(map(_is_number, value)):
        return SEPARATORS.get(name, ",").join(map(str, value))
    return _single(path, name, option.kind, value)


def _single(path: Path, name: str, kind: type, value: Any) -> Any:
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: _is_number(value),
        str: isinstance(value, str) or _is_number(value),
        Path: isinstance(value, str) and value != "",
    }
    if not fits[kind]:
        shown = json.dumps(value, default=str)
        raise UsageError(f"--config {path}: {name} takes {WANTED[kind]}, not {shown}")
    if kind is Path or (name == FILES_OR_NAMES and SIGNS_OF_A_FILE & set(str(value))):
        return str(path.parent / value)
    return str(value) if kind is str else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
