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
    """TRITON_INTERPRET=1 asks for kernels; without triton the answer is a warning, not silence."""
    code = HIDE_TRITON + "import torch, stn_triton as s; s.affine_sample(torch.rand(1,1,2,2), torch.eye(2,3)[None])"
    with pytest.raises(
        AssertionError,
        match=r"<string>\", line 2[\s\S]*stn_triton uses torch operations on cpu: triton cannot be imported",
    ):
        run(code, TRITON_INTERPRET="1")


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
