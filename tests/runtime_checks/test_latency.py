"""Latency and speedup. Times are not asserted on, only their bookkeeping: machines differ and are busy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from gdfq_export.runtime_checks import bench as module
from gdfq_export.runtime_checks.bench import Latency, _median_interval, _Runner, _warm_up, _warnings, bench
from gdfq_export.runtime_checks.errors import CheckError


def network(path: Path, kind: int = TensorProto.FLOAT, shape: tuple[int | str, ...] = ("n", 3, 8, 8)) -> Path:
    value = helper.make_tensor_value_info("image", kind, list(shape))
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, list(shape))
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["floats"], ["out"]),
    ]
    graph = helper.make_graph(nodes, "g", [value], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def test_each_number_of_threads_has_the_runs_that_were_asked_for(tmp_path: Path) -> None:
    path = network(tmp_path / "a.onnx")
    results = bench(path, path, threads=(1, 2), seconds=0.1, runs=30)
    assert [result.threads for result in results] == [1, 2]
    for result in results:
        assert result.baseline is not None
        assert result.model.runs == result.baseline.runs == 30
        assert result.model.p50_ms <= result.model.p90_ms <= result.model.p99_ms
        assert result.speedup is not None
        assert result.speedup_low is not None
        assert result.speedup_high is not None
        assert result.speedup_low <= result.speedup <= result.speedup_high


def test_without_a_baseline_there_is_no_speedup(tmp_path: Path) -> None:
    (result,) = bench(network(tmp_path / "a.onnx"), None, threads=(1,), seconds=0.1, runs=5)
    assert (result.baseline, result.speedup) == (None, None)


def test_a_time_limit_still_gives_enough_runs_for_a_median(tmp_path: Path) -> None:
    (result,) = bench(network(tmp_path / "a.onnx"), None, threads=(1,), seconds=1e-3)
    assert result.model.runs >= module.MIN_RUNS


def test_a_network_that_takes_pixels_is_measured_against_one_that_takes_floats(tmp_path: Path) -> None:
    pixels = network(tmp_path / "a.onnx", TensorProto.UINT8, ("n", 8, 8, 3))
    (result,) = bench(pixels, network(tmp_path / "b.onnx"), threads=(1,), seconds=0.1, runs=3)
    assert result.baseline is not None


def test_pairs_run_in_turns_and_swap_their_order() -> None:
    order: list[str] = []
    runners = [_Runner(lambda: order.append("ours"), 0.0, None), _Runner(lambda: order.append("base"), 0.0, None)]
    module._measure(runners, threads=1, seconds=0.0, runs=4)
    assert order == ["ours", "base", "base", "ours", "ours", "base", "base", "ours"]


def test_the_speedup_is_the_median_of_ratios_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ours": iter([1.0, 2.0, 4.0]), "base": iter([2.0, 6.0, 4.0])}  # ratios 2, 3, 1
    monkeypatch.setattr(module, "_timed", lambda runner: next(times[runner.run()]))
    result = module._measure([_Runner(lambda: "ours", 0.0, None), _Runner(lambda: "base", 0.0, None)], 1, 0.0, runs=3)
    assert result.speedup == 2.0


def test_the_interval_holds_the_true_median_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(500):
        _, low, high = _median_interval(list(generator.exponential(1.0, 100)))
        held += low <= np.log(2) <= high  # the median of the exponential distribution
    assert held >= 0.93 * 500  # 95 % nominal; a binomial deviation of 500 trials is 1 %


def test_warm_up_ends_when_a_block_is_no_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [9.0, 5.0, 3.0, 3.0, 1.0]
    calls: list[float] = []

    def timed(runner: _Runner) -> float:
        calls.append(blocks[len(calls) // module.WARM_UP_BLOCK])
        return calls[-1]

    monkeypatch.setattr(module, "_timed", timed)
    _warm_up(_Runner(lambda: None, 0.0, None), seconds=60.0)
    assert len(calls) == 4 * module.WARM_UP_BLOCK


def test_a_noisy_machine_and_an_uncertain_speedup_are_said() -> None:
    quiet, noisy = Latency(1.0, 1.1, 1.2, 1.0, 99, 1.0, None), Latency(1.0, 4.0, 9.0, 2.0, 99, 1.0, None)
    assert _warnings(1, [quiet, quiet], 2.0, 1.99, 2.01) == []
    assert "noisy (p90 is 4.0 times the median)" in _warnings(1, [quiet, noisy], 2.0, 1.99, 2.01)[0]
    assert "uncertain (1.50 to 2.50)" in _warnings(1, [quiet, quiet], 2.0, 1.5, 2.5)[0]
    assert "threads on" in _warnings(10_000, [quiet], None, None, None)[0]


def test_a_file_that_the_runtime_cannot_run_is_one_sentence(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 2])
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4, 2], [0.0] * 8)
    graph = helper.make_graph([helper.make_node("MatMul", ["image", "w"], ["out"])], "g", [value], [out], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "a.onnx")
    with pytest.raises(CheckError, match=r"a\.onnx: ONNX Runtime cannot run it: ") as caught:
        bench(tmp_path / "a.onnx", None, threads=(1,), seconds=0.1)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="no such file"):
        bench(tmp_path / "none.onnx", None, threads=(1,), seconds=0.1)
