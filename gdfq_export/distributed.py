"""Several processes that train as one: PyTorch's DistributedDataParallel, with statistics of the whole batch.

    torchrun --nproc-per-node 2 -m gdfq_export quantize ...

Every process draws the same whole batch and takes its part, so that the parts together are the batch of one process.
DistributedDataParallel averages gradients over the processes. A loss of the whole batch (the batch-norm statistics)
is therefore computed alike in each of them from sums over all, and the gradient of such a sum is again summed:

    forward   S = sum over processes of s_r          backward  dL/ds_r = sum over processes of dL_q/dS
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from gdfq_export.errors import LostProcessError, UsageError

LAUNCHED = "TORCHELASTIC_RUN_ID"  # set by torchrun
T = TypeVar("T")


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Joins the processes that torchrun started, if it did; gives this one's device."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if LAUNCHED not in os.environ or count == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    except RuntimeError as error:
        if not is_connection_lost(error):
            raise
        raise LostProcessError(
            f"another of the {count} processes ended, so this one stops: see its message above; "
            "--resume goes on from the last saved state"
        ) from error
    finally:
        dist.destroy_process_group()


def is_connection_lost(error: RuntimeError) -> bool:
    """What gloo and NCCL say when a peer is gone."""
    text = str(error).lower()
    return any(sign in text for sign in ("connection closed", "connection reset", "connection refused", "nccl", "gloo"))


class _SumOverAll(torch.autograd.Function):
    """An all-reduce whose gradient is an all-reduce."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        """The sum over processes."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Every process has a copy of the loss: their gradients add up."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def sum_over_all(value: Tensor) -> Tensor:
    """The sum over processes, differentiable; the value itself where there is one process."""
    return torch.as_tensor(_SumOverAll.apply(value)) if size() > 1 else value  # type: ignore[no-untyped-call]


def part_of(value: Tensor) -> Tensor:
    """This process's part of a whole batch."""
    if size() == 1:
        return value
    if len(value) % size():
        raise UsageError(
            f"a batch of {len(value)} cannot be shared by {size()} processes: start a number that divides it"
        )
    return value.chunk(size())[rank()].contiguous()


def shared(module: nn.Module) -> nn.Module:
    """The module to call in training, to be kept as long: gradients are averaged over processes."""
    return nn.parallel.DistributedDataParallel(module) if size() > 1 else module


def agreed(value: T) -> T:
    """What process 0 says: clocks and files of others do not count."""
    if size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
