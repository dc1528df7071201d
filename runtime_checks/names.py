"""The names that a user of the checks chooses from, each list written once; nothing heavy is imported."""

from __future__ import annotations

from typing import Literal, get_args

Level = Literal["all", "extended", "basic", "disabled"]
RuntimeName = Literal["openvino", "ort-web", "reference"]

LEVEL_NAMES: tuple[Level, ...] = get_args(Level)
RUNTIME_NAMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
