"""The table at the end. Every number in it was measured by the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

import torch

from .. import launch
from .compare import Difference
from .interval import wilson_interval


def error_table(errors: Mapping[str, Sequence[int]], parameters: Mapping[str, int], trials: int) -> str:
    """Each model's size and test error; with several seeds their mean, standard deviation and every single one.

    Args:
        errors: of each model, the wrong digits of each seed.
        parameters: of each model, how many it has.
        trials: how many digits were tested.
    """
    lines = [f"{'':26}{'parameters':>10}  {'test error':>10}   95 % interval (Wilson, of {trials:,} test digits)"]
    for model, counts in errors.items():
        low, high = wilson_interval(mean(counts), trials)
        lines.append(f"{model:26}{parameters[model]:10,}  {mean(counts) / trials:10.2%}   {low:.2%} to {high:.2%}")
        if len(counts) > 1:
            single = ", ".join(f"{count / trials:.2%}" for count in counts)
            spread = stdev(counts) / trials
            lines.append(f"{'':4}mean of {len(counts)} seeds: {single} (standard deviation {spread:.2%})")
    return "\n".join(lines)


def time_table(times: Mapping[str, float], batch: int, repeats: int, device: torch.device) -> str:
    """Milliseconds per training step of each implementation.

    Args:
        times: of each implementation, the median.
        batch: digits per step.
        repeats: steps timed.
        device: where.
    """
    lines = [f"Training step with ST, {batch} digits, median of {repeats} steps in turn, on {describe(device)}"]
    lines += [f"    {name:41}{time:8.2f} ms" for name, time in times.items()]
    return "\n".join(lines)


def difference_table(differences: Mapping[str, Difference]) -> str:
    """Largest absolute differences between the two implementations."""
    lines = [
        "Largest absolute difference between the two on the same inputs, float32 (at a whole pixel the slope jumps:",
        "a point within rounding of one may take either, and shows in the gradient to theta)",
    ]
    lines += [f"    {name:41}{d.largest:8.1e}    (values up to {d.out_of:.3g})" for name, d in differences.items()]
    return "\n".join(lines)


def describe(device: torch.device) -> str:
    """The device in words, and what runs the warp there."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({torch.get_num_threads()} threads)"
    return f"{name}; stn_triton warps by {'its Triton kernels' if launch.takes(device) else 'torch operations there'}"
