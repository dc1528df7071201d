"""Train the embedded network, resnet20_cifar10, on sheets of CIFAR-10 training images.

    python scripts/train_embedded.py --data DIR --out models/weights/resnet20_cifar10.safetensors

DIR holds PNG sheets (`train_00.png`, ..., one 32x32x3 image a row) and `labels.json`. Training sees
`train_00..39` (40,000 images) only. `val_00..04` (5,000 other images) is read once, after the last step:
no checkpoint, schedule or seed was selected on it.

Schedule: SGD with Nesterov momentum, linear warm-up then linear decay to zero, bf16 autocast, and
"alternating flip": an image is mirrored in every second epoch, starting at random.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorchcv.model_provider import get_model
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

MEAN = STD = 0.5


def load_sheets(root: Path, prefix: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as normalised float (N, 3, 32, 32) and labels (N,) of every sheet named `prefix`_*.png."""
    labels = json.loads((root / "labels.json").read_text())
    images, classes = [], []
    for sheet in sorted(root.glob(f"{prefix}_*.png")):
        images.append(np.asarray(Image.open(sheet)).reshape(-1, 32, 32, 3))
        classes.extend(labels[sheet.stem] if sheet.stem in labels else labels[sheet.name])
    if not images:
        raise SystemExit(f"no sheet {prefix}_*.png in {root}")
    pixels = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - MEAN) / STD, torch.tensor(classes)


def augment(images: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random crop of the reflect-padded images, mirrored where `flip` says so."""
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")  # (N, 3, 40, 40)
    top = torch.randint(0, 9, (n, 1, 1, 1), generator=generator)
    left = torch.randint(0, 9, (n, 1, 1, 1), generator=generator)
    rows = top + torch.arange(32).view(1, 1, 32, 1)
    columns = torch.arange(32).view(1, 1, 1, 32).expand(n, 1, 1, 32)
    columns = left + torch.where(flip.view(n, 1, 1, 1), 31 - columns, columns)
    index = (rows * 40 + columns).view(n, 1, -1).expand(n, 3, -1)
    return padded.flatten(2).gather(2, index).view(n, 3, 32, 32)


@torch.no_grad()
def top1(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of `images` whose largest logit is the label, in percent."""
    model.eval()
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return 100 * hits / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    images, labels = load_sheets(args.data, "train")
    model: nn.Module = get_model("resnet20_cifar10").to(memory_format=torch.channels_last)
    # Weight decay only on weights: batch-norm scales and all biases stay free.
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=0.9, nesterov=True)
    steps_per_epoch = len(images) // args.batch
    total, warmup = args.epochs * steps_per_epoch, 5 * steps_per_epoch

    def factor(step: int) -> float:
        return min((step + 1) / warmup, (total - step) / (total - warmup))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    flip_phase = torch.randint(0, 2, (len(images),), generator=generator)
    state_path, first = args.out.with_suffix(".training.pt"), 0
    if state_path.exists():
        state: dict[str, Any] = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        first = state["epoch"]

    start = time.time()
    for epoch in range(first, args.epochs):
        model.train()
        order, running = torch.randperm(len(images), generator=generator), 0.0
        for step in range(steps_per_epoch):
            rows = order[step * args.batch : (step + 1) * args.batch]
            x = augment(images[rows], (flip_phase[rows] + epoch) % 2 == 1, generator)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x.to(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            running += loss.item()
        print(f"epoch {epoch + 1:3d}  loss {running / steps_per_epoch:.4f}  {time.time() - start:.0f} s", flush=True)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": {k: v for k, v in schedule.state_dict().items() if k != "lr_lambdas"},
            "generator": generator.get_state(),
            "epoch": epoch + 1,
        }
        torch.save(state, state_path.with_suffix(".tmp"))
        state_path.with_suffix(".tmp").replace(state_path)

    weights = {k: v.contiguous() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(weights, args.out)
    state_path.unlink()
    print(f"train top-1 {top1(model, images[:5000], labels[:5000]):.2f} % (first 5,000 images, not augmented)")
    print(f"val   top-1 {top1(model, *load_sheets(args.data, 'val')):.2f} % (5,000 images never seen)")


if __name__ == "__main__":
    main()
