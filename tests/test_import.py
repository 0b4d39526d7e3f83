"""Importing the package needs no triton and no GPU, and starts neither."""

import subprocess
import sys
import textwrap

import pytest

HIDE_TRITON = "import sys; sys.modules['triton'] = None\n"


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True, text=True, env={"PATH": "", "HOME": "/nonexistent", **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_without_triton():
    out = run(
        HIDE_TRITON
        + """
import torch, stn_triton
from stn_triton.kernels.language import TRITON_MISSING
assert TRITON_MISSING
image = torch.randn(1, 2, 4, 4, requires_grad=True)
theta = torch.eye(2, 3)[None].requires_grad_()
stn_triton.affine_sample(image, theta).sum().backward()
stn_triton.grid_sample(image, stn_triton.affine_grid(theta, (1, 2, 3, 3), False), align_corners=False).sum().backward()
basis = stn_triton.BasisExpansion(None, 1, lambda x, y: x[None])
stn_triton.transform_sample(basis, image, theta[..., :1]).sum().backward()
print(theta.grad.shape)
"""
    )
    assert "torch.Size([1, 2, 3])" in out


def test_without_triton_the_interpreter_is_asked_for_in_vain_but_loudly():
    """TRITON_INTERPRET=1 asks for kernels; without triton the answer is one warning, of the caller's own line."""
    out = run(
        HIDE_TRITON
        + """
import warnings
import torch, stn_triton
image, theta = torch.rand(1, 1, 2, 2), torch.eye(2, 3)[None]
layer = stn_triton.SpatialTransformer(lambda image: theta)
calls = [
    lambda: stn_triton.affine_sample(image, theta),
    lambda: stn_triton.grid_sample(image, torch.zeros(1, 2, 2, 2), align_corners=False),
    lambda: layer(image),
]
for call in calls:
    stn_triton.backend._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
        call()
    places = [(w.filename, w.lineno) for w in caught]
    assert places == [("<string>", call.__code__.co_firstlineno)], places
    print(caught[0].message)
""",
        TRITON_INTERPRET="1",
    )
    assert out.count("stn_triton uses torch operations on cpu: triton cannot be imported") == 3


def test_import_touches_no_driver():
    pytest.importorskip("triton")
    run(
        """
        import stn_triton
        from triton.runtime import driver
        assert driver._active is None
        import sys
        assert not {"matplotlib", "mlxtend"} & set(sys.modules)
        """
    )
