"""Two processes with half a batch each do what one does with all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gdfq_export import distributed
from gdfq_export.errors import UsageError

HERE = Path(__file__).parent
Found = dict[int, dict[str, dict[str, torch.Tensor]]]  # number of processes -> part -> name -> value


def start(out: Path, count: int, script: Path = HERE / "two_processes.py") -> list[subprocess.Popen[str]]:
    """Starts the processes with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(out)],
            env={**os.environ, **common, "TORCHELASTIC_RUN_ID": "x", "RANK": str(index), "LOCAL_RANK": str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one and what two processes computed."""
    folder = tmp_path_factory.mktemp("distributed")
    started = [(count, process) for count in (1, 2) for process in start(folder / f"{count}.pt", count)]
    for _, process in started:
        _, errors = process.communicate(timeout=1800)
        assert process.returncode == 0, errors
    return {count: torch.load(folder / f"{count}.pt", weights_only=True) for count in (1, 2)}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


@pytest.mark.parametrize("network", ["generator", "student"])
def test_gradients_are_those_of_one_process(network: str, found: Found) -> None:
    one, two = found[1][network], found[2][network]
    assert one.keys() == two.keys()
    largest = max(float(value.norm()) for value in one.values())
    for name, value in one.items():
        # Gradients that nearly cancel, as a bias has in front of a batch norm, are measured by the largest of all.
        assert (two[name] - value).norm() <= 1e-5 * max(float(value.norm()), 0.1 * largest), name
    whole = [torch.cat([value.flatten() for value in part.values()]) for part in (two, one)]
    assert relative(*whole) <= 1e-5


def test_a_sum_over_all_has_the_gradient_of_every_copy(found: Found) -> None:
    """S = 6, and dL/dS = S in each of two copies; DistributedDataParallel's average halves it again."""
    assert found[1]["toy"]["x"].tolist() == [6.0] * 4
    assert found[2]["toy"]["x"].tolist() == [12.0] * 2


@pytest.mark.parametrize(("trained", "begun"), [("trained", "start"), ("trained by dfqf", "start of dfqf")])
def test_a_short_training_changes_what_one_process_changes(trained: str, begun: str, found: Found) -> None:
    one, two = (
        torch.cat([(part[trained][name] - start).flatten() for name, start in part[begun].items()])
        for part in (found[1], found[2])
    )
    # A tenth of the change: values at a boundary are rounded the other way, and Adam enlarges small differences.
    assert relative(two, one) < 0.1


def test_a_process_that_is_alone_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of some other tool
    with distributed.joined("cpu") as device:
        assert (device, distributed.size(), distributed.rank()) == ("cpu", 1, 0)
    value = torch.arange(3.0)
    assert distributed.part_of(value) is value
    assert distributed.sum_over_all(value) is value
    assert distributed.agreed("x") == "x"


def test_a_batch_that_cannot_be_shared_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 3)
    with pytest.raises(UsageError, match="divides it"):
        distributed.part_of(torch.arange(4))


def test_a_process_whose_peer_dies_says_so_and_how_to_go_on(tmp_path: Path) -> None:
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, torch\n"
        "from gdfq_export.distributed import joined, rank, sum_over_all\n"
        "with joined('cpu'):\n"
        "    sum_over_all(torch.ones(1))\n"
        "    if rank() == 1:\n"
        "        os._exit(9)\n"
        "    while True:\n"
        "        sum_over_all(torch.ones(1))\n"
    )
    first, second = start(tmp_path / "none", 2, script)
    _, errors = first.communicate(timeout=1800)
    second.communicate(timeout=1800)
    assert first.returncode != 0
    assert "LostProcessError: another of the 2 processes ended" in errors
    assert "--resume" in errors
