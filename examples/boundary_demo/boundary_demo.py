"""The toy demonstration of GDFQ's section 5.2 (Fig. 1): where generated points lie, beside what the network learned.

    pip install gdfq-export[demo]
    python examples/boundary_demo/boundary_demo.py --out boundary.png

A small network of linear layers, batch norms and ReLUs learns two classes of points drawn uniformly from -4..4. Then,
without the data, points are made in three ways: noise with random labels; points optimised to match the batch-norm
statistics (as ZeroQ does, without labels); and a generator trained with the exporter's own losses (GDFQ, eqs. 4, 5
and 9). Prints how often the network gives the points their labels, and how near they lie to its boundary.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gdfq_export.capture import capture
from gdfq_export.losses import (
    generator_cross_entropy,
    generator_loss,
    run_with_statistics,
    statistics_loss,
    stored_statistics,
)
from gdfq_export.passes import canonicalize
from gdfq_export.program import FloatProgram

LIMIT = 4.0
POINTS = 1500
BATCH = 256
BETA = 1.0


def label_of(points: Tensor) -> Tensor:
    """The classes: above and below a curve that bends twice."""
    x, y = points.unbind(1)
    return (y > 1.6 * torch.sin(1.2 * x)).long()


def network() -> nn.Module:
    """Linear layers, batch norms and ReLUs."""
    widths, layers = [2, 64, 64], []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2))


def trained(randomness: torch.Generator) -> nn.Module:
    """The network after it has seen the data."""
    module = network().train()
    optimizer = torch.optim.Adam(module.parameters(), 5e-3)
    for _ in range(1500):
        points = LIMIT * (2 * torch.rand(BATCH, 2, generator=randomness) - 1)
        loss = nn.functional.cross_entropy(module(points), label_of(points))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval().requires_grad_(False)


class PointGenerator(nn.Module):
    """The knowledge matching generator for points: the label's embedding times the noise, then three layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 32)
        layers: list[nn.Module] = []
        for a, b in ((32, 128), (128, 128)):
            layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.LeakyReLU(0.2)]
        self.body, self.last = nn.Sequential(*layers), nn.Linear(128, 2)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """(N, 32), (N,) -> (N, 2), inside the square."""
        return LIMIT * torch.tanh(self.last(self.body(self.embedding(labels) * noise)))


@dataclass(frozen=True, eq=False)
class Points:
    """Made points with the labels that they were made for."""

    title: str
    positions: Tensor  # (N, 2)
    labels: Tensor  # (N,)


def noise(randomness: torch.Generator) -> Points:
    """Gaussian noise, each point with a label of chance."""
    positions = torch.randn(POINTS, 2, generator=randomness)
    return Points("(b) noise", positions, torch.randint(0, 2, (POINTS,), generator=randomness))


def zeroq(program: FloatProgram, randomness: torch.Generator) -> Points:
    """Points moved until the batch-norm statistics fit; the label is what the network says afterwards."""
    stored = stored_statistics(program.graph)
    positions = torch.randn(POINTS, 2, generator=randomness).requires_grad_()
    optimizer = torch.optim.Adam([positions], 0.05)
    for _ in range(500):
        _, found = run_with_statistics(program, positions, list(stored))
        loss = statistics_loss(found, list(stored.values()), "code")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    positions = positions.detach()
    return Points("(c) ZeroQ", positions, torch.randint(0, 2, (POINTS,), generator=randomness))


def gdfq(program: FloatProgram, randomness: torch.Generator) -> Points:
    """Points of a generator that the network recognises and whose statistics fit."""
    stored, generator = stored_statistics(program.graph), PointGenerator()
    optimizer = torch.optim.Adam(generator.parameters(), 1e-3, (0.5, 0.999))

    def draw(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 32, generator=randomness), torch.randint(0, 2, (count,), generator=randomness)

    for _ in range(3000):
        z, labels = draw(BATCH)
        logits, found = run_with_statistics(program, generator(z, labels), list(stored))
        statistics = statistics_loss(found, list(stored.values()), "code")
        loss = generator_loss(generator_cross_entropy(logits, labels), statistics, BETA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    z, labels = draw(POINTS)
    with torch.no_grad():
        return Points("(d) GDFQ", generator(z, labels), labels)


@torch.no_grad()
def facts(points: Points, program: FloatProgram) -> str:
    """How often the label is recognised, and how much of the square the points reach."""
    recognised = 100 * float((program(points.positions).argmax(1) == points.labels).float().mean())
    cells = ((points.positions.clamp(-LIMIT, LIMIT - 1e-3) + LIMIT) / (2 * LIMIT) * 8).long()
    reached = len({(int(a), int(b)) for a, b in cells})
    return f"{points.title}: label recognised {recognised:.0f} %, {reached} of 64 cells of the square reached"


def draw(panels: list[Points], program: FloatProgram, out: Path) -> None:
    """Four panels with the network's boundary in each."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise SystemExit("matplotlib draws the panels: install gdfq-export[demo]") from None

    mpl.use("Agg")
    from matplotlib import pyplot

    axis = torch.linspace(-LIMIT, LIMIT, 200)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    with torch.no_grad():
        logits = program(grid)
    margin = (logits[:, 1] - logits[:, 0]).reshape(200, 200).numpy()
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 9), layout="constrained")
    for panel, axes_ in zip(panels, axes.flat, strict=True):
        for label, colour in enumerate(("tab:blue", "tab:orange")):
            chosen = panel.positions[panel.labels == label].numpy()
            axes_.scatter(chosen[:, 0], chosen[:, 1], s=4, c=colour, label=f"class {label}")
        axes_.contour(axis.numpy(), axis.numpy(), margin, levels=[0.0], colors="black")
        axes_.set(title=panel.title, xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal")
    axes.flat[0].legend(loc="upper right")
    figure.savefig(out, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("boundary.png"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    randomness = torch.Generator().manual_seed(args.seed)
    module = trained(randomness)
    positions = LIMIT * (2 * torch.rand(POINTS, 2, generator=randomness) - 1)
    data = Points("(a) data", positions, label_of(positions))
    program = FloatProgram(canonicalize(capture(module, (2,))))
    panels = [data, noise(randomness), zeroq(program, randomness), gdfq(program, randomness)]
    for panel in panels:
        print(facts(panel, program))
    draw(panels, program, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
