"""The workloads in pytest-benchmark, for those who compare commits with its tools.

pytest bench -k "mnist and ours" --benchmark-autosave      # and after a change
pytest bench -k "mnist and ours" --benchmark-compare
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from bench.inputs import make_inputs
from bench.measure import device_times
from bench.rivals import RIVALS
from bench.runner import Runner
from bench.steps import PASSES, steps_of
from bench.workloads import WORKLOADS, Workload
from stn_triton.plan import INTERPRETED

if INTERPRETED:
    pytest.skip("TRITON_INTERPRET is set: nobody times an interpreter", allow_module_level=True)

SECONDS, FEWEST_ROUNDS, MOST_ROUNDS = 0.2, 5, 200
RUNNER = Runner.on(torch.device("cuda" if torch.cuda.is_available() else "cpu"), rivals=())


@cache
def fitted(workload: Workload) -> tuple[Workload, dict[str, str]]:
    """The workload as it is measured, and what the gate has against ours and PyTorch's."""
    measured = RUNNER.fitted(workload)
    rivals: dict[str, dict[str, str]] = {}
    RUNNER.passed(measured, make_inputs(measured, RUNNER.device), rivals)
    return measured, {name: result.get("red") or result.get("missing") or "" for name, result in rivals.items()}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("rival", RUNNER.rivals)
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_time(benchmark, workload, rival, name):
    """One call and the wait for the device, what has to be there before it made outside of its time."""
    measured, complaints = fitted(workload)
    wrong = [f"{each}: {complaints[each]}" for each in dict.fromkeys(("ours", "pytorch", rival)) if complaints[each]]
    if wrong:  # of ours nobody is timed, nor without PyTorch's to measure by
        pytest.fail(f"not timed: {', '.join(wrong)}")
    inputs = make_inputs(measured, RUNNER.device)
    steps = steps_of(RIVALS[rival](measured, inputs), inputs)
    if name not in steps:
        pytest.skip("no gradient is needed")
    step, clock = steps[name], RUNNER.clock

    def run(prepared):
        step.run(prepared)
        clock.synchronize()

    def prepare():
        prepared = step.prepare()
        clock.synchronize()
        return (prepared,), {}

    length = min(device_times(clock, step, 3))
    # With N, so that what was measured of another number of images is not compared.
    benchmark.group = f"{workload.name} {name}, N = {measured.image[0]}"
    benchmark.name, benchmark.fullname = (
        f"{each}, N = {measured.image[0]}" for each in (benchmark.name, benchmark.fullname)
    )
    benchmark.extra_info["workload"] = measured.description
    rounds = int(max(FEWEST_ROUNDS, min(MOST_ROUNDS, SECONDS / max(length, 1e-9))))
    benchmark.pedantic(run, setup=prepare, rounds=rounds, warmup_rounds=1)
