"""Caches are bounded and keep none of the user's objects alive."""

import gc
import weakref

import numpy as np
import pytest
import torch
from device_code import quadratic

from stn_triton import BasisExpansion, PiecewiseAffine, ThinPlateSpline, functional, plan, tps_sample, transform_sample
from stn_triton.caches import BoundedCache
from stn_triton.transforms import kept_basis, piecewise_affine


def alive(references):
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_the_values_used_last_are_kept():
    cache = BoundedCache(3, 10, len)
    for key in "abcabd":
        cache.get(key, lambda: [0] * 3)
    assert cache.misses == 4
    cache.get("e", lambda: [0] * 8)  # leaves room for none
    assert list(cache._values) == ["e"]
    cache.get("f", lambda: [0] * 100)  # larger than all, and the one that is used
    assert list(cache._values) == ["f"]


def test_a_value_may_need_another_of_the_same_cache():
    cache = BoundedCache(3)
    assert cache.get("a", lambda: cache.get("b", lambda: 1) + 1) == 2
    assert list(cache._values) == ["b", "a"]


def test_a_value_that_grows_counts_as_what_it_is():
    cache, values = BoundedCache(10, 10, len), [[0], [0]]
    for key, value in enumerate(values):
        cache.get(key, lambda value=value: value)
    values[0].extend([0] * 10)
    cache.get(2, lambda: [0])
    assert list(cache._values) == [1, 2]


def test_splines_of_control_points_that_are_not_used_again_go(path, monkeypatch):
    """The systems that they solved, on the image's device, go with them."""
    splines, init = [], ThinPlateSpline.__init__

    def watched(self, *args):
        init(self, *args)
        splines.append(weakref.ref(self))

    monkeypatch.setattr(ThinPlateSpline, "__init__", watched)
    image, rng = torch.rand(1, 1, 4, 4, device=path.device), np.random.default_rng(0)
    theta = torch.zeros(1, 9, 2, device=path.device)
    limit = functional._splines.max_entries
    for _ in range(2 * limit + 2 if path.name == "torch" else limit + 6):
        tps_sample(image, theta, control_points=rng.uniform(-1, 1, (9, 2)))
    assert alive(splines) <= limit


def test_splines_are_kept_by_their_bytes(monkeypatch):
    """Fewer splines are kept than there may be if their systems are large."""
    monkeypatch.setattr(functional._splines, "max_bytes", 10 * 8 * 23 * 20)
    functional._splines.clear()
    image, theta = torch.rand(1, 1, 4, 4), torch.zeros(1, 20, 2)
    for seed in range(15):
        tps_sample(image, theta, control_points=np.random.default_rng(seed).uniform(-1, 1, (20, 2)))
    with_points = 8 * 20 * (23 + 2)  # a system, and its control points
    assert len(functional._splines._values) == 10 * 8 * 23 * 20 // with_points
    assert functional._splines._bytes() == len(functional._splines._values) * with_points


@pytest.mark.parametrize("make", [
    lambda: ThinPlateSpline(np.random.default_rng(0).uniform(-1, 1, (5, 2))),
    lambda: BasisExpansion(quadratic, 3, lambda x, y: torch.stack([torch.ones_like(x), x, y])),
], ids=["spline", "basis"])  # fmt: skip
def test_a_transform_of_ones_own_can_go(path, make):
    """After a forward and a backward pass neither plans nor kept functions hold it."""
    transforms = []
    for _ in range(3):
        transform = make()
        theta = torch.zeros(1, *transform.parameter_shape((4, 4)), device=path.device, requires_grad=True)
        image = torch.rand(1, 1, 4, 4, device=path.device, requires_grad=True)
        transform_sample(transform, image, theta).sum().backward()
        transforms.append(weakref.ref(transform))
    del transform
    assert alive(transforms) == 0


def test_a_transform_that_is_kept_is_planned_once(kernel_path):
    transform = ThinPlateSpline(np.random.default_rng(0).uniform(-1, 1, (5, 2)))
    image, theta = (torch.zeros(shape, device=kernel_path.device) for shape in ((1, 1, 4, 4), (1, 5, 2)))
    for _ in range(3):
        transform_sample(transform, image, theta)
    assert plan.plan_forward.misses == 1


def test_no_cache_grows_without_end(torch_path):
    """Meshes, sizes and plans: what is kept of them has bounds."""
    image = torch.rand(1, 1, 3, 3)
    for k in range(300):
        mesh = PiecewiseAffine((2, 2 + k))
        transform_sample(mesh, image, mesh.identity()[None])
    assert len(piecewise_affine._vertices._values) <= piecewise_affine._vertices.max_entries
    assert len(kept_basis._kept._values) <= kept_basis._kept.max_entries
    assert kept_basis._kept._bytes() <= kept_basis._kept.max_bytes
