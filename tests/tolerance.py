"""How close is close enough: never a number of its own, always PyTorch's error and the dtype's rounding.

Truth is the float64 reference at the very inputs. ours <= 2 x PyTorch's + 4 ulp of the output dtype times the
largest magnitude a rounding can act on, for the maximum and for the median.
"""

import numpy as np
import torch

#: By how much a pixel's move changes what a sampler computes, at most and along one axis: a value, per max|image|
#: (sum |k'| sum |k|); a tap's weight (max |k'|, rounded up); a value's derivative (sum |k''| sum |k| + sum |k'|^2).
#: For cubic convolution with A = -0.75: sum |k| <= 11/8, sum |k'| <= 3, |k'| < 3/2, sum |k''| <= 12.
MOVES = {"nearest": (0.0, 0.0, 0.0), "bilinear": (2.0, 1.0, 2.0), "bicubic": (33 / 8, 1.5, 51 / 2)}
#: The largest value a sampler makes of pixels up to 1.
OVERSHOOT = {"nearest": 1.0, "bilinear": 1.0, "bicubic": (11 / 8) ** 2}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.double().numpy(force=True)


def assert_as_good_as_pytorch(
    ours: torch.Tensor, theirs: torch.Tensor, truth: np.ndarray, magnitude: float, what: str = "out"
) -> None:
    """``theirs`` is PyTorch's result in ``ours``' dtype: for half types its float32 one, rounded once."""
    assert ours.shape == truth.shape, what
    assert torch.isfinite(ours).all(), f"{what}: not finite"
    error = np.abs(to_numpy(ours) - truth)
    error_theirs = np.abs(to_numpy(theirs.to(ours.dtype)) - truth)
    eps = 4 * torch.finfo(ours.dtype).eps * magnitude
    for statistic in (np.max, np.median):
        assert statistic(error) <= 2 * statistic(error_theirs) + eps, (
            f"{what}: {statistic.__name__} error {statistic(error):.3g}, PyTorch's {statistic(error_theirs):.3g}, "
            f"rounding {eps:.3g}"
        )
