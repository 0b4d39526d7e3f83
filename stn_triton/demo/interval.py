"""What a count of errors says about the error."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist


def wilson_interval(errors: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an error rate.

    Args:
        errors: how many went wrong; a mean over seeds need not be whole.
        trials: out of how many, at least 1.
        confidence: from 0 to 1.

    Returns:
        low, high: shares from 0 to 1.
    """
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (errors + z2 / 2) / (trials + z2)
    reach = sqrt(z2 * (errors * (trials - errors) / trials + z2 / 4)) / (trials + z2)
    return max(centre - reach, 0.0), min(centre + reach, 1.0)
