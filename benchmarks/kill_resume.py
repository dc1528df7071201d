"""Kills a run with -9 at random moments, resumes it, and compares the file with that of an uninterrupted run.

    python benchmarks/kill_resume.py --model resnet20_cifar10 --kills 5 --seed 0 -- --method gdfq

Every option behind `--` is passed on to `quantize`. The run is killed at moments drawn uniformly over the time that the
uninterrupted run took, each time resumed from what the killed process had saved, and then left to
finish. Exits with 1 when a byte differs or a work directory is left over.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def command(out: Path, options: list[str]) -> list[str]:
    return [sys.executable, "-m", "gdfq_export", "quantize", "--out", str(out), *options]


def finish(words: list[str]) -> float:
    """Runs to the end; the seconds that it took."""
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: exit code {done.returncode}: {done.stderr.strip()}")
    return time.monotonic() - start


def kill_after(seconds: float, words: list[str]) -> bool:
    """Starts the run and kills it; whether it was still running."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def digests(out: Path) -> dict[str, str]:
    """The files beside `out` and including it, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.parent.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20_cifar10")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("options", nargs="*", help="of quantize, behind --")
    args = parser.parse_args()

    options = ["--model", args.model, *args.options]
    with tempfile.TemporaryDirectory() as name:
        whole, killed = (Path(name) / part / "model.onnx" for part in ("whole", "killed"))
        for out in (whole, killed):
            out.parent.mkdir()
        seconds = finish(command(whole, options))
        print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
        print(f"uninterrupted: {seconds:.1f} s\n\n| kill | after | state saved by then |\n|---|---|---|", flush=True)
        drawn = random.Random(args.seed)
        moments = sorted(drawn.uniform(0.05, 0.95) * seconds for _ in range(args.kills))
        for index, moment in enumerate(b - a for a, b in itertools.pairwise([0.0, *moments])):
            running = kill_after(moment, command(killed, [*options, "--resume"]))
            work = killed.with_suffix(".work")
            stages = ", ".join(sorted(path.stem for path in work.glob("*.state"))) if work.is_dir() else "none"
            print(f"| {index + 1} | {moment:.1f} s | {stages if running else 'finished before'} |", flush=True)
            if not running:
                break
        else:
            rest = finish(command(killed, [*options, "--resume"]))
            print(f"\nthe last resumed run took {rest:.1f} s")
        same = digests(whole) == digests(killed)
        print(f"files {'identical' if same else 'DIFFER'}: {', '.join(digests(killed))}")
        sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
