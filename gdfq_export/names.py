"""The names that a user chooses from, each list written once; nothing heavy is imported, so that `--help` is quick."""

from __future__ import annotations

from typing import Literal, get_args

Method = Literal["gdfq", "calibrate", "auto", "recon", "dfq", "zeroq", "dfqf"]
Preset = Literal["fast", "standard", "paper"]
TargetName = Literal["portable", "x86-vnni", "x86-avx2", "arm64"]
InputFormat = Literal["float-nchw", "uint8-nhwc"]
Ranges = Literal["mse", "aciq", "kl", "ema", "percentile", "learned"]
"""How ranges are found; `learned` starts from `mse`, and training moves them."""
Reading = Literal["paper", "code"]
"""Where the paper and its authors' code differ, which of them to follow."""
OptionalPass = Literal["find_channel_shuffle", "pad_depthwise", "pad_input", "pool_as_conv", "space_to_depth"]
"""Passes for speed alone, which can be left out by name; `pad_depthwise`, `pool_as_conv`: on the lowered model."""
DeviceName = Literal["auto", "cpu", "cuda"]

METHOD_NAMES: tuple[Method, ...] = get_args(Method)
PRESETS: tuple[Preset, ...] = get_args(Preset)
TARGET_NAMES: tuple[TargetName, ...] = get_args(TargetName)
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)
RANGE_NAMES: tuple[Ranges, ...] = get_args(Ranges)
READINGS: tuple[Reading, ...] = get_args(Reading)
OPTIONAL_PASSES: tuple[OptionalPass, ...] = get_args(OptionalPass)
DEVICE_NAMES: tuple[DeviceName, ...] = get_args(DeviceName)
