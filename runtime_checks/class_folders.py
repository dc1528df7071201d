"""Which class a folder of images stands for, or why nobody can tell.

DIR has one folder a class. The first of these that applies decides:

labels    a folder has the name of a class; the names come from a file with a line a class, or from the model's metadata
numbers   every name starts with an integer that ends there or is followed by `_` (`7`, `0012_n01443537`)
order     sorted by name, where there are as many folders as classes

One folder more or less would shift the order behind it, so that right answers count as wrong: then it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gdfq_export.runtime_checks.errors import CheckError

NUMBERED = re.compile(r"(\d+)(?:_|$)")
_NAME_THEM = "begin each name with the index of its class (0_cat, 7_dog), or give --labels FILE, a line a class"


def read_labels(path: Path) -> tuple[str, ...]:
    """The names of the classes, one a line in the order of the outputs."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CheckError(f"{path}: cannot be read as labels: {reason}") from error
    names = [line.strip() for line in lines]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise CheckError(f"{path}: no labels in it; it needs a line a class")
    first: dict[str, int] = {}
    for number, name in enumerate(names, 1):
        if not name:
            raise CheckError(f"{path}: line {number} is empty; it needs a line a class, in the order of the outputs")
        if name in first:
            raise CheckError(f"{path}: lines {first[name]} and {number} are both '{name}': no folder could be told")
        first[name] = number
    return tuple(names)


def class_indices(names: Sequence[str], classes: int, labels: Sequence[str] | None = None) -> list[int]:
    """The class of each folder, by the rule above; `names` are sorted."""
    if labels is not None and len(labels) != classes:
        raise CheckError(f"{len(labels)} labels for {classes} classes: they are not those of this model")
    numbers = [NUMBERED.match(name) for name in names]
    if labels is not None and (set(names) & set(labels) or not all(numbers) or any(map(NUMBERED.match, labels))):
        return [_labelled(name, labels) for name in names]
    if all(numbers):
        return _numbered(names, [int(match.group(1)) for match in numbers if match], classes)
    if len(names) != classes:
        raise CheckError(
            f"{len(names)} folders for {classes} classes, and their names do not say which they are: {_NAME_THEM}"
        )
    return list(range(len(names)))


def _labelled(name: str, labels: Sequence[str]) -> int:
    count = list(labels).count(name)
    if count != 1:
        found = "none" if not count else f"{count}"
        raise CheckError(
            f"the folder '{name}' is {found} of the {len(labels)} labels ('{labels[0]}' to '{labels[-1]}'): rename it, "
            "or give other labels with --labels FILE"
        )
    return labels.index(name)


def _numbered(names: Sequence[str], numbers: Sequence[int], classes: int) -> list[int]:
    known: dict[int, str] = {}
    for name, number in zip(names, numbers, strict=True):
        if number >= classes:
            raise CheckError(
                f"the folder '{name}' is class {number}, but this model has the classes 0 to {classes - 1}: "
                "rename the folders, or give --labels FILE, a line a class"
            )
        if number in known:
            raise CheckError(f"the folders '{known[number]}' and '{name}' are both class {number}: rename one of them")
        known[number] = name
    return list(numbers)
