"""The CPU path of thin plate splines against the ways that models have of computing them, in one run.

    python bench/cpu_tps.py

Medians of interleaved calls. The rivals make a grid for torch's sampler: `batched` by a product of each sample's
coefficients with a constant basis (h w, K + 3), as text recognisers do; `one GEMM` by a single product for the batch,
with the inverse multiplied into the basis; kornia, where it is installed, by `get_tps_transform` and `warp_image_tps`
as it documents them: another spline through the same points, its kernels at theta.
`ready` is torch's sampler alone, with the grid for free. All constants are made beforehand, ours by the first call.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from cpu_path import medians

from stn_triton import ThinPlateSpline, reference, transform_sample

try:
    from kornia.geometry.transform import get_tps_transform, warp_image_tps
except ImportError:
    warp_image_tps = None

# (row of the workload table, image shape, columns and rows of control points, padding, align_corners, gradients needed)
ROWS = [
    ("2 text recognition", (192, 1, 32, 100), (10, 2), "border", True, "theta"),
    ("14 cluttered MNIST", (256, 1, 60, 60), (4, 4), "zeros", False, "both"),
    ("14 SVHN features", (128, 3, 64, 64), (4, 4), "zeros", False, "both"),
    ("kornia's memory", (4, 3, 256, 256), (5, 5), "zeros", False, "both"),
    ("kornia's memory", (4, 3, 256, 256), (5, 5), "zeros", False, "none"),
    ("one image", (1, 3, 256, 256), (4, 4), "zeros", False, "both"),
    ("14 birds", (16, 3, 448, 448), (4, 4), "zeros", False, "both"),
]
COLUMNS = ("batched", "one GEMM", "kornia", "ready", "ours")


def measure(shape, lattice, padding_mode, align_corners, needs) -> dict[str, float]:
    torch.manual_seed(0)
    n, size = shape[0], shape[2:]
    x, y = (np.linspace(-1, 1, count) for count in lattice)
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    count, spline = len(points), ThinPlateSpline(points)
    control_points = torch.tensor(points, dtype=torch.float32).expand(n, -1, -1)
    image = torch.randn(shape, requires_grad=needs == "both")
    theta = (0.95 * control_points + 0.03 * torch.randn(n, count, 2)).requires_grad_(needs != "none")
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    d_out = torch.randn(shape)

    # float64 constants, rounded once
    system = reference.spline_system(points, 0.0)
    exact_basis = reference.spline_basis(reference.target_points(size, align_corners), points).reshape(-1, count + 3)
    basis, inverse, both = (torch.tensor(a, dtype=torch.float32) for a in (exact_basis, system, exact_basis @ system))
    grid = spline.grid(theta.detach(), size, align_corners).requires_grad_(needs != "none")

    def run(sample: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Callable[[], object]:
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        return lambda: torch.autograd.grad(sample(), wanted, d_out) if wanted else sample()

    def batched() -> torch.Tensor:
        made = torch.bmm(basis.expand(n, -1, -1), inverse @ theta).view(n, *size, 2)
        return F.grid_sample(image, made, **options)

    def one_gemm() -> torch.Tensor:
        made = (both @ theta.permute(1, 0, 2).reshape(count, -1)).view(*size, n, 2).permute(2, 0, 1, 3)
        return F.grid_sample(image, made, **options)

    def kornias() -> torch.Tensor:
        weights, affine = get_tps_transform(control_points, theta)
        return warp_image_tps(image, theta, weights, affine, **options)  # theta: where its kernels lie

    calls = {
        "ours": run(lambda: transform_sample(spline, image, theta, **options), image, theta),
        "batched": run(batched, image, theta),
        "one GEMM": run(one_gemm, image, theta),
        "ready": run(lambda: F.grid_sample(image, grid, **options), image, grid),
    }
    if warp_image_tps is not None:
        calls["kornia"] = run(kornias, image, theta)
    return medians(calls)


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, ms")
    print(f"{'row':20} {'image':14} {'K':>3} {'grad':6} " + " ".join(f"{name:>8}" for name in COLUMNS))
    for name, shape, lattice, *options in ROWS:
        ms = measure(shape, lattice, *options)
        row = f"{name:20} {'x'.join(map(str, shape)):14} {lattice[0] * lattice[1]:3} {options[-1]:6}"
        print(row, " ".join(f"{ms[key]:8.2f}" if key in ms else " missing" for key in COLUMNS), flush=True)


if __name__ == "__main__":
    main()
