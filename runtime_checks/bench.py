"""Latency of a model, and its speedup over a baseline, on a machine that is never quite quiet.

Both sessions are warmed up until their times stop falling. Then they run in turns, a pair at a time and the order
swapped in every second pair, so that a slow moment hits both:

    speedup = median over pairs of (baseline time / model time)

Its confidence interval (95 %) takes two order statistics of the ratios, at ranks n/2 -+ 0.98 sqrt(n): it assumes
nothing about the distribution of the times.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from gdfq_export.runtime_checks.errors import CheckError
from gdfq_export.runtime_checks.graph import graph_from_model
from gdfq_export.runtime_checks.input_spec import InputSpec, input_spec, random_batch
from gdfq_export.runtime_checks.loading import DEFAULT_MAX_MEMORY, load_model
from gdfq_export.runtime_checks.metadata import read_provenance
from gdfq_export.runtime_checks.session_memory import session_memory_mb

MIN_RUNS = 20  # a median of fewer says little
MAX_RUNS = 100_000  # microsecond models need no more
WARM_UP_BLOCK = 5  # runs whose fastest is compared with the block before
WARM_UP_GAIN = 0.02  # stable when a block is at most this much faster than the best before
WARM_UP_SHARE = 0.25  # of the time for measuring, at most
CONFIDENCE_95 = 0.98  # 1.96 / 2: half the normal quantile, for ranks around n/2
NOISY_TAIL = 1.5  # p90 / p50 of a quiet machine stays below
NOISY_INTERVAL = 0.10  # width of the speedup's interval, relative to the speedup


@dataclass(frozen=True)
class Latency:
    """Times of one model at one number of threads."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    runs: int
    load_ms: float  # to create the session: reading, optimising, packing weights
    memory_mb: float | None  # of the session and its first run; None where it cannot be measured


@dataclass(frozen=True)
class Comparison:
    """One number of threads: the model, the baseline where there is one, and how much faster the model is."""

    threads: int
    model: Latency
    baseline: Latency | None
    speedup: float | None
    speedup_low: float | None  # 95 % confidence interval
    speedup_high: float | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Runner:
    run: Callable[[], object]
    load_ms: float
    memory_mb: float | None


def bench(
    path: Path,
    baseline: Path | None,
    threads: Sequence[int],
    seconds: float,
    runs: int | None = None,
    seed: int = 0,
    max_memory: int = DEFAULT_MAX_MEMORY,
) -> list[Comparison]:
    """Measures each number of threads for about `seconds`, or for `runs` pairs; batch 1 and random input."""
    files = [path] if baseline is None else [path, baseline]
    inputs = [_input_of(load_model(file, max_memory)) for file in files]
    return [
        _measure(
            [_runner(file, spec, count, seed) for file, spec in zip(files, inputs, strict=True)], count, seconds, runs
        )
        for count in threads
    ]


def _input_of(model: onnx.ModelProto) -> InputSpec:
    return input_spec(graph_from_model(model), read_provenance(model))


def _runner(path: Path, spec: InputSpec, threads: int, seed: int) -> _Runner:
    runtime: Any = importlib.import_module("onnxruntime")  # untyped
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads of one session would spin on the cores that the other session is being timed on.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    feed = {spec.name: random_batch(spec, 1, np.random.default_rng(seed))}
    start = time.perf_counter()
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        load_ms = (time.perf_counter() - start) * 1e3
        session.run(None, feed)
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise CheckError(f"{path}: ONNX Runtime cannot run it: {_first_line(error)}") from error
    memory = session_memory_mb(path, spec.name, feed[spec.name], threads)
    return _Runner(lambda: session.run(None, feed), load_ms, memory)


def _measure(runners: Sequence[_Runner], threads: int, seconds: float, runs: int | None) -> Comparison:
    for runner in runners:
        _warm_up(runner, seconds * WARM_UP_SHARE / len(runners))
    times: list[list[float]] = [[] for _ in runners]
    order = list(range(len(runners)))
    deadline = time.perf_counter() + seconds * (1 - WARM_UP_SHARE)
    while not _enough(len(times[0]), runs, deadline):
        for index in order:
            times[index].append(_timed(runners[index]))
        order.reverse()
    ratios = [base / ours for ours, base in zip(times[0], times[1], strict=True)] if len(times) == 2 else []
    median, low, high = _median_interval(ratios) if ratios else (None, None, None)
    latencies = [_latency(one, runner) for one, runner in zip(times, runners, strict=True)]
    return Comparison(
        threads=threads,
        model=latencies[0],
        baseline=latencies[1] if len(latencies) == 2 else None,
        speedup=median,
        speedup_low=low,
        speedup_high=high,
        warnings=tuple(_warnings(threads, latencies, median, low, high)),
    )


def _enough(done: int, runs: int | None, deadline: float) -> bool:
    if runs is not None:
        return done >= runs
    return done >= MAX_RUNS or (done >= MIN_RUNS and time.perf_counter() >= deadline)


def _warm_up(runner: _Runner, seconds: float) -> None:
    """Runs until a block of runs is hardly faster than the best before it, or the time is up."""
    deadline = time.perf_counter() + seconds
    best = math.inf
    while time.perf_counter() < deadline:
        fastest = min(_timed(runner) for _ in range(WARM_UP_BLOCK))
        if fastest >= best * (1 - WARM_UP_GAIN):
            return
        best = fastest


def _timed(runner: _Runner) -> float:
    """Milliseconds of one run."""
    start = time.perf_counter_ns()
    runner.run()
    return (time.perf_counter_ns() - start) / 1e6


def _latency(times: Sequence[float], runner: _Runner) -> Latency:
    p50, p90, p99 = (float(value) for value in np.percentile(times, [50, 90, 99]))
    return Latency(p50, p90, p99, float(np.mean(times)), len(times), runner.load_ms, runner.memory_mb)


def _median_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the order statistics around it that hold the true one with 95 % confidence."""
    ranked = sorted(ratios)
    n = len(ranked)
    reach = CONFIDENCE_95 * math.sqrt(n)
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach))
    return float(np.median(ranked)), ranked[low], ranked[high]


def _warnings(
    threads: int, latencies: Sequence[Latency], speedup: float | None, low: float | None, high: float | None
) -> list[str]:
    said = []
    cores = os.cpu_count() or 1
    if threads > cores:
        said.append(f"{threads} threads on {cores} cores: the threads wait for each other")
    tail = max(latency.p90_ms / latency.p50_ms for latency in latencies)
    if tail > NOISY_TAIL:
        said.append(f"the machine is noisy (p90 is {tail:.1f} times the median): close other programs and run again")
    if speedup and low is not None and high is not None and (high - low) / speedup > NOISY_INTERVAL:
        said.append(f"the speedup is uncertain ({low:.2f} to {high:.2f}): raise --seconds")
    return said


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
