"""Which of its states a method gives back, and why: said on the screen, in the JSON and in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """The name of the state that is in the file, and what decided."""

    state: str
    why: str


ONLY_STATE = Kept("calibrated", "the method makes no other")


def least(errors: Mapping[str, float]) -> Kept:
    """The state with the least error; the first of several, so that training must gain to count."""
    return Kept(min(errors, key=errors.__getitem__), f"least {listed(errors)}")


def listed(errors: Mapping[str, float]) -> str:
    """Every state with its error, in the order in which they were made."""
    return "error of the logits: " + ", ".join(f"{name} {error:.4g}" for name, error in errors.items())
