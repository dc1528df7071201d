"""What a user has: a file with networks, and commands that go wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gdfq_export.cli import main

HEAD = "import torch\nfrom torch import nn\n"
GOOD = """
def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )
"""
SOFTMAX = """
def soft():
    return nn.Sequential(build(), nn.Softmax(1))
"""
NO_NORM = """
def no_norm():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
"""
ODD = """
class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    def forward(self, x):
        return torch.sort(self.stem(x).mean((2, 3)))[0]

def odd():
    return Sorts()

class Two(nn.Module):
    def forward(self, x, y):
        return x + y

def two():
    return Two()

class Chooses(nn.Module):
    def __init__(self, choose):
        super().__init__()
        self.net, self.choose = build(), choose
    def forward(self, x):
        return self.choose(self.net(x))

def shape():
    return Chooses(lambda logits: logits[:, : int(logits.argmax())])

def branch():
    return Chooses(lambda logits: logits if logits.sum() > 0 else -logits)

def quantized():
    model = build().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    return torch.ao.quantization.convert(torch.ao.quantization.prepare(model))
"""
SIZE = ["--input-size", "3x16x16", "--mean", "0.5", "--std", "0.5"]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and the one sentence on stderr."""
    capsys.readouterr()
    code = main(words)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("gdfq-export: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    return code, lines[0]


def build(folder: Path, factory: str = "build") -> list[str]:
    return ["quantize", "--model", f"{folder}/net.py:{factory}", *SIZE]
