"""The CPU path against PyTorch's two calls and against torch's sampler with a ready grid, in one run.

    python bench/cpu_path.py

Affine, forward and backward, medians of interleaved calls. `bound` is pair / ready: what the CPU path would
reach if making the grid and its gradient cost nothing, since torch's sampler stays in it. A single image may pass it:
its channels or rows are shared among the threads, where torch's sampler takes one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from stn_triton import affine_sample

# (row of the workload table, image shape, output size, padding, align_corners, gradients needed)
ROWS = [
    ("1 STN tutorial", (64, 1, 28, 28), (28, 28), "zeros", False, "theta"),
    ("9 BEVFormer", (1, 256, 200, 200), (200, 200), "zeros", False, "image"),
    ("10 drqv2", (256, 9, 92, 92), (84, 84), "zeros", False, "none"),
    ("12 kornia, N=1", (1, 3, 256, 256), (256, 256), "zeros", True, "both"),
    ("12 kornia, N=8", (8, 3, 256, 256), (256, 256), "zeros", True, "both"),
    ("12 kornia, N=32", (32, 3, 256, 256), (256, 256), "zeros", True, "both"),
    ("14 MNIST", (256, 1, 42, 42), (42, 42), "zeros", False, "both"),
    ("14 cluttered MNIST", (256, 1, 60, 60), (60, 60), "zeros", False, "both"),
    ("14 SVHN features", (128, 3, 64, 64), (64, 64), "zeros", False, "both"),
    ("birds, one crop", (16, 3, 448, 448), (224, 224), "zeros", False, "both"),
    ("ImageNet size", (32, 3, 224, 224), (224, 224), "zeros", False, "both"),
    ("ImageNet size", (32, 3, 224, 224), (224, 224), "zeros", False, "theta"),
    ("14 MNIST", (256, 1, 42, 42), (42, 42), "zeros", False, "theta"),
]
SECONDS = 4.0  # per row
IN_A_ROW = 5  # calls of one implementation before the next one's turn, as a training loop would


def medians(calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns of a few."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + SECONDS
    names = list(calls)
    while time.perf_counter() < end or len(times[names[0]]) < 15:
        names.append(names.pop(0))  # nobody always runs after the same other
        for name in names:
            for _ in range(IN_A_ROW):
                start = time.perf_counter()
                calls[name]()
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measure(shape, size, padding_mode, align_corners, needs) -> dict[str, float]:
    torch.manual_seed(0)
    image = torch.randn(shape, requires_grad=needs in ("image", "both"))
    theta = (torch.eye(2, 3) + 0.1 * torch.randn(shape[0], 2, 3)).requires_grad_(needs in ("theta", "both"))
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    out_shape = (*shape[:2], *size)
    grid = F.affine_grid(theta.detach(), list(out_shape), align_corners=align_corners)
    grid.requires_grad_(theta.requires_grad)
    d_out = torch.randn(out_shape)

    def run(sample: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Callable[[], object]:
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return lambda: torch.autograd.grad(sample(), wanted, d_out) if wanted else sample()

    def pair() -> torch.Tensor:
        return F.grid_sample(image, F.affine_grid(theta, list(out_shape), align_corners=align_corners), **options)

    return medians(
        {
            "pair": run(pair, image, theta),
            "ready": run(lambda: F.grid_sample(image, grid, **options), image, grid),
            "ours": run(lambda: affine_sample(image, theta, size, **options), image, theta),
        }
    )


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, ms")
    print(f"{'row':20} {'image':18} {'grad':6} {'pair':>8} {'ready':>8} {'ours':>8} {'speed-up':>8} {'of bound':>8}")
    for name, shape, *options in ROWS:
        ms = measure(shape, *options)
        row = f"{name:20} {'x'.join(map(str, shape)):18} {options[-1]:6}"
        times = " ".join(f"{ms[key]:8.2f}" for key in ("pair", "ready", "ours"))
        print(f"{row} {times} {ms['pair'] / ms['ours']:7.2f}x {ms['ready'] / ms['ours']:8.0%}", flush=True)


if __name__ == "__main__":
    main()
