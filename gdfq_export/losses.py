"""The losses of GDFQ, each with its equation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gdfq_export.distributed import size, sum_over_all
from gdfq_export.graph import Graph
from gdfq_export.meaning import ONE_CLASS, Meaning
from gdfq_export.names import Reading
from gdfq_export.program import FloatProgram


def cross_entropy(logits: Tensor, labels: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """CE(p, y): over the classes, or over the no and the yes of the decision that the label asks for."""
    if not meaning.decides:
        return F.cross_entropy(logits, labels)
    return F.nll_loss(meaning.log_probabilities(logits), labels)


def generator_cross_entropy(teacher_logits: Tensor, labels: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """CE(M(G(z|y)), y): the teacher recognises the label (GDFQ, eq. 4)."""
    return cross_entropy(teacher_logits, labels, meaning)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean and variance of one batch norm's input: of a batch, or stored by training."""

    mean: Tensor  # (C,)
    variance: Tensor  # (C,)


def stored_statistics(graph: Graph) -> dict[str, Statistics]:
    """Tensor that a batch norm reads -> the statistics that its training stored."""
    return {
        node.inputs[0]: Statistics(
            graph.parameters[node.parameters["mean"]].float(), graph.parameters[node.parameters["variance"]].float()
        )
        for node in graph.of("batch_norm")
    }


class _Moments(torch.autograd.Function):
    """Mean and biased variance of each channel, with one pass over the data in the backward direction.

    d mean / dx = 1 / M,   d variance / dx = 2 (x - mean) / M
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, ...) -> (C,), (C,), by what batch norm itself calls in training."""
        mean, variance = torch.batch_norm_update_stats(x.float(), None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """(C,), (C,) -> (N, C, ...)."""
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = gradients[1] * (2 / count)
        offset = gradients[0] / count - slope * mean
        shape = (-1, *[1] * (x.ndim - 2))
        return torch.addcmul(offset.to(x.dtype).view(shape), x, slope.to(x.dtype).view(shape))


def batch_statistics(value: Tensor) -> Statistics:
    """Statistics of a batch norm's input (N, C, ...)."""
    if size() > 1:  # the whole batch lies in parts with several processes
        rows = value.movedim(1, -1).reshape(-1, value.shape[1]).float()  # (N * space, C)
        count = size() * len(rows)
        mean = sum_over_all(rows.sum(0)) / count
        return Statistics(mean, sum_over_all((rows - mean).square().sum(0)) / count)
    mean, variance = _Moments.apply(value)  # type: ignore[no-untyped-call]
    return Statistics(mean, variance)


def run_with_statistics(program: FloatProgram, images: Tensor, names: Sequence[str]) -> tuple[Tensor, list[Statistics]]:
    """Logits and the named tensors' batch statistics (biased variance), in one forward pass without hooks."""
    wanted, found = set(names), {}

    def visit(name: str, value: Tensor) -> None:
        if name in wanted:
            found[name] = batch_statistics(value)

    logits = program(images, visit)
    return logits, [found[name] for name in names]


def statistics_loss(batch: Sequence[Statistics], stored: Sequence[Statistics], reading: Reading = "paper") -> Tensor:
    """Batch-norm statistics loss (GDFQ, eq. 5).

    paper: sum over layers of |mean_r - mean|^2 + |var_r - var|^2
    code:  mean over layers of the mean squared differences
    """
    if reading == "paper":
        terms = [
            (b.mean - s.mean).square().sum() + (b.variance - s.variance).square().sum()
            for b, s in zip(batch, stored, strict=True)
        ]
        return torch.stack(terms).sum()
    terms = [
        F.mse_loss(b.mean, s.mean) + F.mse_loss(b.variance, s.variance) for b, s in zip(batch, stored, strict=True)
    ]
    return torch.stack(terms).mean()


def generator_loss(cross_entropy: Tensor | None, statistics: Tensor | None, beta: float) -> Tensor:
    """L1(G) = CE + beta * BNS (GDFQ, eq. 9); a term that is None is switched off (Table 2)."""
    return _sum(cross_entropy, None if statistics is None else beta * statistics)


def student_cross_entropy(student_logits: Tensor, labels: Tensor, meaning: Meaning = ONE_CLASS) -> Tensor:
    """CE(Q(x), y) on generated images (GDFQ, eq. 7)."""
    return cross_entropy(student_logits, labels, meaning)


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float = 1.0,
    reading: Reading = "paper",
    meaning: Meaning = ONE_CLASS,
) -> Tensor:
    """KL(Q(x), M(x)) at a temperature (GDFQ, eq. 8); where each output is a decision, the sum over all of them.

    paper: T^2 * mean over the batch of KL;  code: the same divided by the number of classes, or of a no and a yes each
    """
    student = meaning.log_probabilities(student_logits, temperature)
    teacher = meaning.log_probabilities(teacher_logits, temperature)
    divergence = F.kl_div(student, teacher, log_target=True, reduction="batchmean") * temperature**2
    return divergence / student.shape[1] if reading == "code" else divergence


def student_loss(cross_entropy: Tensor | None, distillation: Tensor | None, gamma: float) -> Tensor:
    """L2(Q) = CE + gamma * KD (GDFQ, eq. 10); a term that is None is switched off (Table 3)."""
    return _sum(cross_entropy, None if distillation is None else gamma * distillation)


def _sum(*terms: Tensor | None) -> Tensor:
    present = [term for term in terms if term is not None]
    if not present:
        raise ValueError("no loss is left")
    return torch.stack(present).sum()
