# ruff: noqa: E501 - lines of code as they stand in the package
"""Breaks the package on purpose, one line at a time, and expects the tests to notice every time.

    python tests/mutants.py            # hours on two cores
    python tests/mutants.py WORDS      # those with these words in their name

Not collected by pytest. Each mutant is a copy of the package with one line changed, tested until the first failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [
    "test_not_finite.py", "test_caches.py", "test_tracing.py", "test_import.py",
    "test_image_gradient.py", "test_warp.py", "test_identity.py", "test_special_points.py", "test_launch_shapes.py", "test_layouts.py",
    "test_gradients.py", "test_several_transforms.py", "test_flow.py", "test_geometry.py", "test_tps.py",
    "test_transforms.py", "test_memory.py", "test_piecewise_affine.py", "test_fill_and_mask.py",
    "test_basis_expansion.py", "test_torch_path.py", "test_bench.py", "test_bench_gpu.py", "test_bench_picture.py",
]  # fmt: skip
# Tests of a file's own, which come first: most mutants fall to them.
OWN_TESTS = {
    **dict.fromkeys(
        [f"bench/{name}.py" for name in ("gate", "measure", "runner", "steps", "traffic")], "test_bench.py"
    ),
    "bench/report.py": "test_bench.py",
    "bench/results.py": "test_bench.py",
    "bench/picture.py": "test_bench_picture.py",
    "bench/gpu/command_line.py": "test_bench_gpu.py",
    "bench/gpu/tiles.py": "test_bench_gpu.py",
    "backend.py": "test_import.py",
    "caches.py": "test_caches.py",
    "configs.py": "test_launch_shapes.py",
    "eager.py": "test_torch_path.py",
    "transforms/kept_basis.py": "test_torch_path.py",
    "geometry.py": "test_geometry.py",
    "layout.py": "test_layouts.py",
    "torch_sampler.py": "test_torch_path.py",
    "kernels/coordinates.py": "test_special_points.py",
    "kernels/programs.py": "test_several_transforms.py",
    **dict.fromkeys(
        [f"kernels/{name}.py" for name in ("finish", "fixed_point", "gather", "preimage")], "test_image_gradient.py"
    ),
    "launch.py": "test_image_gradient.py",
    "transforms/affine.py": "test_image_gradient.py",
    "transforms/base.py": "test_transforms.py",
    "transforms/basis_expansion.py": "test_basis_expansion.py",
    "transforms/expansion.py": "test_basis_expansion.py",
    "transforms/flow.py": "test_flow.py",
    "transforms/piecewise_affine.py": "test_piecewise_affine.py",
    "transforms/projective.py": "test_torch_path.py",
    "transforms/thin_plate_spline.py": "test_tps.py",
}

# what is broken: (file, line as it is, line as it becomes)
MUTANTS = {
    "sign of a bilinear derivative": (
        "kernels/samplers.py", "((0, 1 - high, -1.0, in_low), (1, high, 1.0, in_high))", "((0, 1 - high, 1.0, in_low), (1, high, 1.0, in_high))",
    ),
    "a corner dropped": (
        "kernels/samplers.py", "inside = inside_y & inside_x if MASKED else inside_y", "inside = inside_y & inside_x & (r + c < 2) if MASKED else inside_y",
    ),
    "a corner's mask in the wrong axis": (
        "kernels/samplers.py", "inside = inside_y & inside_x if MASKED else inside_y", "inside = inside_y & taps_x[r % len(taps_x)][3] if MASKED else inside_y",
    ),
    "right bound one too wide": (
        "kernels/samplers.py", "return index.to(tl.uint32) < n.to(tl.uint32) if", "return index.to(tl.uint32) <= n.to(tl.uint32) if",
    ),
    "left bound missing": (
        "kernels/samplers.py", "return index.to(tl.uint32) < n.to(tl.uint32) if", "return index < n if",
    ),
    "half a pixel": (
        "kernels/warp.py", "of_x, of_y, seen, _ = locate(\n                state, row, column, live, x, y", "of_x, of_y, seen, _ = locate(\n                state, row, column, live, x + 0.5, y",
    ),
    "align_corners ignored in the scale": (
        "kernels/coordinates.py", "half = (n - 1) * 0.5 if ALIGN_CORNERS else n * 0.5", "half = n * 0.5",
    ),
    "rows and columns of the image's strides swapped": (
        "kernels/samplers.py", "return plane + down * stride_h + origin + right * stride_w", "return plane + down * stride_h + origin + right * stride_h",
    ),
    "channel stride taken for granted": (
        "kernels/warp.py", "loaded, image + c * image_c, origin, taps", "loaded, image + c * H * W, origin, taps",
    ),
    "floor that rounds": (
        "kernels/coordinates.py", "above = rounded > t", "above = rounded > t + 1",
    ),
    "ties away from even": (
        "kernels/samplers.py", "t, j = round_half_even(t)", "t, j = floor(t + 0.5)",
    ),
    "border slope 1 at the edge": (
        "kernels/coordinates.py", "inside = (t > 0) & (t < n - 1)\n    t =", "inside = (t >= 0) & (t <= n - 1)\n    t =",
    ),
    "reflection about the wrong place": (
        "kernels/coordinates.py", "low: constexpr = 0.0 if ALIGN_CORNERS else -0.5", "low: constexpr = 0.0",
    ),
    "reflection slope not turned": (
        "kernels/coordinates.py", "tl.where(turned & ~inside, -slope, slope)", "slope",
    ),
    "interior points reflected there and back": (
        "kernels/coordinates.py", "tl.where(inside, t, tl.where(odd,", "tl.where(False, t, tl.where(odd,",
    ),
    "non-finite theta read": (
        "kernels/coordinates.py", 'return live & (tl.abs(u) < float("inf")) & (tl.abs(v) < float("inf"))',
        "return live",
    ),
    "gradient at unknown coordinates": (
        "kernels/warp.py", "seen, seen & known_x & known_y", "seen, seen",
    ),
    "theta gradient transposed": (
        "transforms/affine.py", "tl.store(block + STRIDE_COLUMN, tl.sum(sum_uy)", "tl.store(block + STRIDE_ROW, tl.sum(sum_uy)",
    ),
    "one place of d_theta for all programs": (
        "transforms/affine.py", "store_affine(partial, d_theta + tl.program_id(0).to(tl.int64) * 6, 3, 1, x, axes)", "store_affine(partial, d_theta, 3, 1, x, axes)",
    ),
    "padding slope forgotten": (
        "kernels/warp.py", "tl.where(live, d_u * slope_u, 0.0), tl.where(live, d_v * slope_v, 0.0)", "tl.where(live, d_u, 0.0), tl.where(live, d_v, 0.0)",
    ),
    "tiles not stepped": (
        "kernels/warp.py", "target += TILE_H * out_h", "target += 0",
    ),
    "ragged edge not masked": (
        "kernels/warp.py", "live = live_x & (y <= last_y)\n            of_x, of_y, seen", "live = live_x & (y <= last_y + 1)\n            of_x, of_y, seen",
    ),
    "identity rounded": (
        "transforms/affine.py", "u = tl.fma(a, x, tl.fma(b, y, c))", "u = tl.fma(a, x * 0.1, 0 * x) * 10 + tl.fma(b, y, c)",
    ),
    "atomics lost: a plain store": (
        "kernels/samplers.py", """        tl.atomic_add(
            pointer(d_plane, origin, taps[k], stride_h, stride_w),
            (weight * d_value).to(d_plane.dtype.element_ty),
            mask=inside & (weight != 0),
            sem="relaxed",  # the default orders memory: a fence per atomic
        )
""", """        tl.store(
            pointer(d_plane, origin, taps[k], stride_h, stride_w),
            (weight * d_value).to(d_plane.dtype.element_ty),
            mask=inside,
        )
""",
    ),
    "64-bit offsets never taken": (
        "plan.py", "return tl.int64 if max(spans) >= 2**31 else tl.int32", "return tl.int32",
    ),
    "the gradient's plane forgotten in its offsets": (
        "plan.py", "theta=theta, d_image=added, d_mask", "theta=theta, d_mask",
    ),
    "one theta read for the whole batch": (
        "plan.py", "(0 if theta.shape[0] == 1 else theta.stride[0], *of_parameters, 0, 0)", "(0, *of_parameters, 0, 0)",
    ),
    "channels_last lost": (
        "layout.py", "return torch.channels_last if neighbours else torch.contiguous_format", "return torch.contiguous_format",
    ),
    "pending negation ignored": (
        "launch.py", "image, theta = image.resolve_neg(), theta.resolve_neg()", "image, theta = image, theta",
    ),
    "the image copied": (
        "launch.py", "image, theta = image.resolve_neg(), theta.resolve_neg()", "image, theta = image.resolve_neg().clone(), theta.resolve_neg()",
    ),
    "broadcast theta not summed": (
        "launch.py", "d_theta = d_theta.sum(0, keepdim=True)", "d_theta = d_theta[:1]",
    ),
    "corner test a pixel too wide": (
        "kernels/warp.py", "largest(u00, u01, u10, u11) < (W - 1 - REACH).to(ACC)", "largest(u00, u01, u10, u11) < (W - REACH).to(ACC)",
    ),
    "corner test of one axis only": (
        "kernels/warp.py", "return inside_x & (smallest(v00", "return (smallest(v00",
    ),
    "a corner forgotten": (
        "kernels/warp.py", "largest(v00, v01, v10, v11)", "largest(v00, v01, v10, v10)",
    ),
    "a divisor's multiplier rounded down": (
        "configs.py", "// d + 1, shift", "// d, shift",
    ),
    "one place of a dense gradient for all blocks of channels": (
        "kernels/warp.py", "part = sample.to(tl.int64) * channel_blocks + channel_block", "part = sample.to(tl.int64)",
    ),
    "products of the last channel only": (
        "kernels/samplers.py", "loaded[k].to(ACC), sums[k]),)", "loaded[k].to(ACC), sums[k] * 0),)",
    ),
    "attention's scale learns from one axis": (
        "transforms/attention.py", "tl.store(block, tl.sum(sum_u * x) * ratio_x + tl.sum(sum_vy) * ratio_y)", "tl.store(block, tl.sum(sum_u * x) * ratio_x)",
    ),
    "a denominator's gradient has the wrong sign": (
        "transforms/projective.py", "tl.where(near, -tl.fma(d_p, u, d_q * v), 0.0)", "tl.where(near, tl.fma(d_p, u, d_q * v), 0.0)",
    ),
    "a homography's sign is not taken back": (
        "transforms/projective.py", "tl.store(block + 6, tl.sum(sum_r * x) * (sign * pitch_x))", "tl.store(block + 6, tl.sum(sum_r * x) * pitch_x)",
    ),
    "what lies behind the camera is drawn": (
        "transforms/projective.py", 'inverse = tl.where(front, inverse, float("nan"))', "inverse = tl.where(front, inverse, 1.0)",
    ),
    "the horizon at the camera itself": (
        "transforms/projective.py", "front = r > horizon", "front = r > 0",
    ),
    "points far away have a gradient": (
        "transforms/projective.py", "near = (tl.abs(u) < far) & (tl.abs(v) < far)", "near = u == u",
    ),
    "a small homography is divided by on the CPU": (
        "transforms/projective.py", "(HORIZON * largest[:, 2]).clamp(min=LEAST)", "(HORIZON * largest[:, 2])",
    ),
    "pixels of a flow taken for normalised": (
        "transforms/flow.py", "    if PIXELS:", "    if False:",
    ),
    "a flow's gradient without its unit": (
        "transforms/flow.py", "tl.store(point + 1, d_v * state[5], mask=live)", "tl.store(point + 1, d_v, mask=live)",
    ),
    "a displacement lost where its pixel is no float32": (
        "transforms/flow.py", "tl.fma(d_x, 0.0, d_y * 0.0) == 0", "tl.fma(u, 0.0, v * 0.0) == 0",
    ),
    "a displacement in pixels doubled before it is divided": (
        "transforms/flow.py", "displacements, torch.stack(halves, -1))", "2 * displacements, 2 * torch.stack(halves, -1))",
    ),
    "one theta for all transforms of an image": (
        "kernels/programs.py", " + m.to(tl.int64) * stride_m", "",
    ),
    "transforms walk through the images": (
        "kernels/programs.py", "n, m = divide(sample, transforms[0]", "m, n = divide(sample, transforms[0]",
    ),
    "composed the other way round": (
        "geometry.py", "product = _product(a, b)", "product = _product(b, a)",
    ),
    "samples whose derivatives overflow count as defined": (
        "geometry.py", "_magnitude(slope) < numbers.eps * numbers.max", "_magnitude(slope) < numbers.max",
    ),
    "an affine inverse steeper than its slope": (
        "geometry.py", "return inverse, inverse / determinant / scale", "return inverse, inverse / determinant",
    ),
    "an inverse steeper than its slope": (
        "geometry.py", "return inverse, inverse / determinant[..., None, None]", "return inverse, inverse",
    ),
    "corners steeper than their slope": (
        "geometry.py", "scaled / areas.sum(-1)[..., None, None] / scale", "scaled",
    ),
    "a pose steeper than its slope": (
        "geometry.py", "lean = 1 + shear * shear", "lean = 1 + 0 * shear",
    ),
    "CPU path, d_out reaches a colour that is not seen": (
        "eager.py", "colour = torch.where(mask == 1, colour.detach(), colour)", "pass",
    ),
    "traces keep 0 times infinity": (
        "torch_sampler.py", "return torch.where(counts(grid.detach())[..., None], grid, grid.detach())", "return grid",
    ),
    "a graph is lost where gradients come many at a time": (
        "tracing.py", '"FuncTorchBatched", "FuncTorchGradWrapper", "AutogradOther")', '"FuncTorchBatched", "FuncTorchGradWrapper")',
    ),
    "an inverse in another unit": (
        "geometry.py", "columns / determinant[..., None, None] / scale", "columns / determinant[..., None, None]",
    ),
    "a homography whose corners' areas are all alike": (
        "geometry.py", "scaled = (areas / areas.sum(-1, keepdim=True))[..., None] * points", "scaled = points / 4",
    ),
    "two corners of a homography swapped": (
        "geometry.py", "[second - first + third - fourth, third - first + fourth - second,", "[third - first + fourth - second, second - first + third - fourth,",
    ),
    "a pixel's centre off by half": (
        "geometry.py", "_Axis((n - 1 if align_corners else n) / 2, (n - 1) / 2)", "_Axis((n - 1 if align_corners else n) / 2, n / 2)",
    ),
    "a missed tap keeps what another tile read": (
        "kernels/samplers.py", "zeros += (tl.zeros([taps[0][2].shape[0], BLOCK_C], DTYPE),)", "zeros += (tl.full([taps[0][2].shape[0], BLOCK_C], 1, DTYPE),)",
    ),
    "no program takes the loop without bounds checks": (
        "kernels/warp.py", "return inside_x & (smallest(v00", "return inside_x & (1 < smallest(v00, v01, v10, v11) - largest(v00, v01, v10, v11)) & (smallest(v00",
    ),
    "a channel of the trip read twice": (
        "kernels/warp.py", "at = origin + c * (BLOCK_C * image_c)\n                        value", "at = origin + (c // 2) * (BLOCK_C * image_c)\n                        value",
    ),
    "a spline's last block of control points left out": (
        "transforms/thin_plate_spline.py", "for first in range(0, count, BLOCK):", "for first in range(0, count - BLOCK, BLOCK):",
    ),
    "sign of the gradient of control points": (
        "transforms/thin_plate_spline.py", "* (-2 * (log + 1 / ln2))", "* (2 * (log + 1 / ln2))",
    ),
    "sums that forget the tile before": (
        "transforms/expansion.py", "tl.store(place, tl.load(place, mask=known) + ", "tl.store(place, ",
    ),
    "a last block of coefficients left out": (
        "transforms/basis_expansion.py", "for first in range(0, count, BLOCK):\n            add", "for first in range(0, count - BLOCK, BLOCK):\n            add",
    ),
    "a basis that is nowhere finite for the gradient's sums": (
        "transforms/basis_expansion.py", "b = tl.where(moves, value(k, x, y, BASIS), 0.0)", "b = value(k, x, y, BASIS)",
    ),
    "both rows of a basis in units of one axis": (
        "transforms/basis_expansion.py", "d_u, d_v = d_u * half_x, d_v * half_y", "d_u, d_v = d_u * half_x, d_v * half_x",
    ),
    "CPU path, infinities of a basis met by a gradient": (
        "transforms/basis_expansion.py", "known = basis.isfinite()", "known = basis == basis",
    ),
    "a spline whose log is natural": (
        "transforms/thin_plate_spline.py", "d_x = tl.fma(sum_x, ln2,", "d_x = tl.fma(sum_x, 1.0,",
    ),
    "points of an image taken for those of a transform": (
        "transforms/base.py", "else at[:, None]", "else at[None]",
    ),
    "cells split from top right to bottom left": (
        "transforms/piecewise_affine.py", "upper = a > b\n    high, low = tl.where", "upper = a + b < 1\n    high, low = tl.where",
    ),
    "hats of vertices below that are those above": (
        "transforms/piecewise_affine.py", "add_to_sums(below, hat_2, hat_3", "add_to_sums(below, hat_1, hat_2",
    ),
    "sums of vertices lost where rows pass over a cell": (
        "transforms/piecewise_affine.py", "write_sums(place, vertex + 1, below, axes)\n            above", "above",
    ),
    "one place for two blocks of rows": (
        "transforms/piecewise_affine.py", "row // rows % at_a_vertex * to_next_block", "row // rows // at_a_vertex * to_next_block",
    ),
    "vertices not as theta's dtype holds them": (
        "transforms/piecewise_affine.py", "- self._vertices(theta)", "- self._vertices(theta.to(torch.promote_types(theta.dtype, torch.float32)))",
    ),
    "CPU path, a mesh's rows and columns swapped": (
        "transforms/piecewise_affine.py", "first = row * gw + column", "first = row + column * gw",
    ),
    "bicubic with another A": (
        "kernels/samplers.py", "return -0.75 * s * r * r", "return -0.5 * s * r * r",
    ),
    "sign of a cubic derivative": (
        "kernels/samplers.py", "tl.fma(r, -3.75, 4.5) * r", "tl.fma(r, 3.75, -4.5) * r",
    ),
    "cubic taps padded a pixel away": (
        "kernels/samplers.py", "PAD(tl.where(near, below + (k - 1), below)", "PAD(tl.where(near, below + k, below)",
    ),
    "bicubic slope where there is no fraction": (
        "kernels/samplers.py", "tl.where(near, 1.0, 0.0)", "tl.where(near, 1.0, 1.0)",
    ),
    "bicubic taps reach no further than bilinear's": (
        "plan.py", "return max(0, int(self.radius) - 1)", "return 0",
    ),
    "the fill where the image is": (
        "kernels/warp.py", "tl.fma(1 - cover, colour, value)", "tl.fma(cover, colour, value)",
    ),
    "a fill that does not pull at theta": (
        "kernels/warp.py", "return tl.fma(-d_value,", "return tl.fma(0 * d_value,",
    ),
    "coverage moves in the other axis": (
        "kernels/warp.py", "tl.fma(d_cover, slope_x * cover_y, d_u)", "tl.fma(d_cover, cover_x * slope_y, d_u)",
    ),
    "every block of channels adds the mask's gradient": (
        "kernels/warp.py", "mask=differentiable & partly & covers", "mask=differentiable & partly",
    ),
    "a fill of one transform for the gradient of all": (
        "ops.py", "d_fill.sum(1)", "d_fill[:, 0]",
    ),
    "CPU path, a fill that leaks into the image": (
        "eager.py", "torch.where(known | (off <= nearly), 0, colour)", "torch.where(known, 0, colour)",
    ),
    "CPU path lets NaN through": (
        "transforms/affine.py", "return bounded_forms_over_grid(theta, size, align_corners) if is_bounded(theta) else None", "return bounded_forms_over_grid(theta, size, align_corners)",
    ),
    "CPU path, channel groups that overlap": (
        "torch_sampler.py", "image, grid = image.view(shares, channels // shares, *in_size)", "image, grid = image[:, : channels // shares].expand(shares, -1, -1, -1)",
    ),
    "CPU path, bands in another order": (
        "torch_sampler.py", "out = out.transpose(0, 1).contiguous()", "out = out.contiguous()",
    ),
    "CPU path, a gradient of the image for every thread": (
        "torch_sampler.py", "bands = min(bands, MOST_GRADIENTS) if", "bands = bands if",
    ),
    "CPU path, rows where channels would do": (
        "torch_sampler.py", "if of_rows > of_channels else", "if of_rows >= of_channels else",
    ),
    "CPU path, displacements that may grow": (
        "transforms/kept_basis.py", "if not farthest * growth < far:", "if not farthest < far:",
    ),
    "CPU path, results that are views": (
        "eager.py", "return torch.ops.aten._unsafe_view(out, out.shape)", "return out",
    ),
    "a spline with somewhere to go nowhere": (
        "transforms/thin_plate_spline.py", "(~self.is_singular(theta) & theta.isfinite().flatten(-2).all(-1))", "(~self.is_singular(theta))",
    ),
    "CPU path, displacements from nowhere": (
        "transforms/kept_basis.py", "torch.cat([values, some.T])", "torch.cat([values, 0 * some.T])",
    ),
    "CPU path, displacements from points that theta's dtype does not hold": (
        "transforms/thin_plate_spline.py", "- points.to(theta.dtype)", "- points.to(torch.promote_types(theta.dtype, torch.float32))",
    ),
    "CPU path, a basis row off": (
        "transforms/homogeneous.py", "by_row[2, :, 1] = 1, y, 1", "by_row[2, 1:, 1] = 1, y, 1",
    ),
    "CPU path, a denominator's gradient of the wrong sign": (
        "transforms/projective.py", "torch.addcmul(d_p * u, d_q, v).neg()", "torch.addcmul(d_p * u, d_q, v)",
    ),
    "CPU path, a homography whose second derivatives are lost": (
        "transforms/projective.py", "if torch.is_grad_enabled():  # a graph of", "if False:  # a graph of",
    ),
    "CPU path, NaN taken for bounded": (
        "torch_sampler.py", "float(torch.dot(flat, flat)) < 0.5 * bound(values.dtype) ** 2", "not float(torch.dot(flat, flat)) >= 0.5 * bound(values.dtype) ** 2",
    ),
    "CPU path, a grid that is somebody else's": (
        "transforms/base.py", "grid.to(theta.dtype).clone(memory_format=torch.contiguous_format)", "grid.to(theta.dtype).contiguous()",
    ),
    "benchmark that does not wait for the device": (
        "bench/measure.py", "    clock.synchronize()\n    return [clock.seconds", "    return [clock.seconds",
    ),
    "benchmark whose host waits for the device": (
        "bench/measure.py", "        clock.synchronize()\n        start = clock.now()", "        start = clock.now()",
    ),
    "benchmark in which one always comes first": (
        "bench/measure.py", "random.shuffle(names)", "names.sort()",
    ),
    "benchmark that times what is prepared": (
        "bench/steps.py", "Step(forward, backward, partial(backward, keep=True))", "Step(_nothing, lambda _: backward(forward()))",
    ),
    "gate that NaN passes": (
        "bench/gate.py", "if not error <= self.limits[name]]", "if error > self.limits[name]]",
    ),
    "gate that looks at no gradient": (
        "bench/gate.py", "leaves = {} if job.forward_only else", "leaves = {} if job else",
    ),
    "gate that is open": (
        "bench/runner.py", "            if verdict.complaint:", "            if False:",
    ),
    "gate that closes for rivals only": (
        "bench/runner.py", 'if {"ours", "pytorch"} <= jobs.keys() else ()', "if jobs else ()",
    ),
    "gate whose measure nobody measures": (
        "bench/gate.py", "return min(limit, MOST + rounding)", "return limit",
    ),
    "gate that single elements pass": (
        "bench/gate.py", "return min(limit + rounding, MOST_OF_ONE + rounding)", 'return float("inf")',
    ),
    "gate whose inputs change": (
        "bench/gate.py", '["changed its inputs"] * changed + ', "",
    ),
    "gate whose inputs stay changed": (
        "bench/gate.py", "tensor.data.copy_(given)", "pass",
    ),
    "gate that ours passes once": (
        "bench/runner.py", "            if complaint:", "            if False:",
    ),
    "a rival that fails and takes the row with it": (
        "bench/measure.py", "raise Failed(name, error) from error", "raise",
    ),
    "an unsteady machine that is believed": (
        "bench/report.py", "if high > WIDEST * low:", "if False:",
    ),
    "results put where another file is": (
        "bench/results.py", "file = file.resolve()  # a link stays one", "pass",
    ),
    "a table of two states of the code": (
        "bench/picture.py", 'same = ("device", "threads", "source", "versions")', 'same = ("device", "threads", "versions")',
    ),
    "bytes of an image that nobody can touch": (
        "bench/traffic.py", "read = touched * c * itemsize", "read = image",
    ),
    "bytes of another sampler": (
        "bench/traffic.py", "replace(workload, mask=False), image", 'replace(workload, mask=False, mode="bilinear"), image',
    ),
    "a graph in name only": (
        "bench/steps.py", "return Step(_nothing, lambda _, kept=prepared: graph.replay())", "return step",
    ),
    "a graph whose results nobody looks at": (
        "bench/steps.py", "if not replays(", "if False and not replays(",
    ),
    "the time of a graph for that of a call": (
        "bench/runner.py", "[t / calls for t in taken]", "[t for t in taken]",
    ),
    "a rival that is not replayed and not named": (
        "bench/report.py", 'if last in result.get("no_graph", {}):', "if False:",
    ),
    "half types excused": (
        "bench/gate.py", "torch.finfo(torch.float32).eps", "torch.finfo(torch.bfloat16).eps",
    ),
    "CPU path, coverage rounded as in exact coordinates": (
        "eager.py", "(2 * (image.shape[2] + image.shape[3]) + 32)", "8",
    ),
    "CPU path, bicubic coverage rounded as bilinear's": (
        "eager.py", '(32 if spec.mode == "bicubic" else 8)', "8",
    ),
    "marks of a fill with a gradient": (
        "ops.py", "torch.where(fill.isfinite(), d_fill, 0)", "d_fill",
    ),
    "CPU path, displacements of half an image that are lost": (
        "transforms/flow.py", "field.clamp(-most, most)", "field",
    ),
    "marks of a fill that pull": (
        "eager.py", "bounded = is_bounded(colour)", "bounded = True",
    ),
    "results of another package taken up": (
        "bench/gpu/command_line.py", 'if all(earlier["environment"][key] == environment[key] for key in ("source", "versions")):', "if earlier:",
    ),
    "launch shapes timed without the gate": (
        "bench/gpu/tiles.py", "complaint = gate.judge(job, ours=True).complaint", 'complaint = ""',
    ),
    "gather, a column of every box": (
        "kernels/gather.py", "for column in tl.static_range(TOGETHER):", "for column in tl.static_range(TOGETHER - 1):",
    ),
    "gather, the columns that are left": (
        "kernels/gather.py", "for _column in range(together, columns):", "for _column in range(together, together):",
    ),
    "gather, beyond the end of a row": (
        "kernels/gather.py", " & (x + column <= last_x)", "",
    ),
    "gather, beyond the last row": (
        "kernels/gather.py", "(x + column <= last_x) & in_output", "(x + column <= last_x)",
    ),
    "gather, weights of one axis": (
        "kernels/gather.py", "weights += ((weight_y * weight_x, reads),)", "weights += ((weight_y * weight_y, reads),)",
    ),
    "gather, two columns left over": (
        "kernels/gather.py", "(columns + TOGETHER - 2) // TOGETHER * TOGETHER", "columns // TOGETHER * TOGETHER",
    ),
    "gather, bounds of the first rows of lanes": (
        "kernels/gather.py", "first_row.to(ACC) + middle, last_row.to(ACC) + middle", "first_row.to(ACC), last_row.to(ACC)",
    ),
    "gather, bounds without the last row": (
        "kernels/gather.py", "// LANE_ROWS * LANE_ROWS", "// LANE_ROWS * LANE_ROWS - LANE_ROWS",
    ),
    "gather, an order by address": (
        "plan.py", "together = 1 if wide else", "together = 1 if vector > 1 else",
    ),
    "gather, the first row of a lane twice": (
        "kernels/gather.py", "WEIGHT_AT(v, i + r)", "WEIGHT_AT(v, i)",
    ),
    "gather, boxes of the first row of a lane": (
        "kernels/gather.py", "BOX(numbers, j, i + (LANE_ROWS - 1) / 2)", "BOX(numbers, j, i)",
    ),
    "gather, boxes as high as those of one pixel": (
        "kernels/gather.py", "RADIUS, RADIUS + (LANE_ROWS - 1) / 2, ACC", "RADIUS, RADIUS, ACC",
    ),
    "gather, a row below the image": (
        "kernels/gather.py", "tl.store(place, totals[c * LANE_ROWS + r].to(d_image.dtype.element_ty), mask=in_row & live)", "tl.store(place, totals[c * LANE_ROWS + r].to(d_image.dtype.element_ty), mask=in_row)",
    ),
    "gather, what is not read": (
        "kernels/gather.py", "new += (tl.where(weights[r][1], total, totals[c * LANE_ROWS + r]),)", "new += (total,)",
    ),
    "gather, 0 times what is not finite": (
        "kernels/gather.py", "new += (tl.where(weights[r][1], total, totals[c * LANE_ROWS + r]),)", "new += (tl.fma(tl.where(weights[r][1], weights[r][0], 0.0), d_value.to(ACC), totals[c * LANE_ROWS + r]),)",
    ),
    "gather, one transform of several": (
        "kernels/gather.py", "for m in range(transforms if MANY else 1):", "for m in range(1):",
    ),
    "gather, boxes a row late": (
        "kernels/gather.py", "first_pixel(top, ", "first_pixel(top + 1, ",
    ),
    "gather, whatever it costs": (
        "kernels/gather.py", "gathers = candidates <= most", "gathers = candidates > -1",
    ),
    "gather, what is left is not cleared": (
        "kernels/gather.py", "tl.store(place, zero, mask=in_row & live)", "pass",
    ),
    "gather, rests are not cleared": (
        "kernels/gather.py", "tl.store(place + rests, zero, mask=in_row & live)", "pass",
    ),
    "gather, every image is scattered, too": (
        "kernels/warp.py", "scatters = tl.load(scattered + n) != 0", "scatters = tl.load(scattered + n) >= 0",
    ),
    "a tap outside, times d_out": (
        "kernels/samplers.py", "product = tl.where(taps[k][5], product, 0.0)", "pass",
    ),
    "a tap of weight 0, scattered": (
        "kernels/samplers.py", "mask=inside & (weight != 0),", "mask=inside,",
    ),
    "a tap of weight 0, gathered": (
        "kernels/samplers.py", "return weight, weight > 0", "return weight, weight >= 0",
    ),
    "a tap of weight 0, gathered by bicubic": (
        "kernels/samplers.py", "return weight, weight != 0", "return weight, rest >= 0",
    ),
    "taps beside a coordinate without a fraction": (
        "kernels/samplers.py", "PAD(tl.where(near, below + (k - 1), below)", "PAD(below + (k - 1)",
    ),
    "a mask's gradient where it is constant": (
        "kernels/warp.py", "mask=differentiable & partly & covers", "mask=differentiable & covers",
    ),
    "a fill's pull where coverage is constant": (
        "kernels/warp.py", "d_cover = tl.where(partly, tl.sum(d_cover, 1, keep_dims=True), 0.0)", "d_cover = tl.sum(d_cover, 1, keep_dims=True)",
    ),
    "a cell's fourth vertex, top right": (
        "transforms/piecewise_affine.py", "upper_u, upper_v = tl.where(upper, d_u, 0.0), tl.where(upper, d_v, 0.0)", "upper_u, upper_v = d_u, d_v",
    ),
    "a cell's fourth vertex, bottom left": (
        "transforms/piecewise_affine.py", "lower_u, lower_v = tl.where(upper, 0.0, d_u), tl.where(upper, 0.0, d_v)", "lower_u, lower_v = d_u, d_v",
    ),
    "a fill's gradient where it is not read": (
        "ops.py", "torch.where(mask == 1, 0, d_out * (1 - mask))", "(d_out * (1 - mask))",
    ),
    "CPU path, d_out that no tap reads": (
        "torch_sampler.py", 'if mode == "bilinear" and padding_mode == "zeros":', "if False:",
    ),
    "CPU path, a mask's gradient where it is constant": (
        "eager.py", "with_gradient_where(torch.ops.aten.alias(grid), partial(_is_partly_inside, spec, image.shape[2:]))", "grid",
    ),
    "CPU path, all vertices of a mesh": (
        "transforms/piecewise_affine.py", "if is_bounded(d_grid):", "if True:",
    ),
    "CPU path, pixel 0 for what is unknown": (
        "torch_sampler.py", "clean = with_gradient_where(clean, lambda points: known)", "pass",
    ),
    "a mask forgotten in the offsets": (
        "plan.py", "return spec.size[0] * spec.size[1] - 1 if spec.mask else 0", "return 0",
    ),
    "plans that keep transforms": (
        "plan.py", "if settings is None:\n            plans = self._by_transform.get(transform)", "options.append(transform)\n        if False:\n            plans = self._by_transform.get(transform)",
    ),
    "functions that keep transforms": (
        "transforms/base.py", "return weakref.ref(self) if settings is None else", "return self if settings is None else",
    ),
    "solved systems that weigh nothing": (
        "functional.py", "max_bytes=2**26, bytes_of=ThinPlateSpline.bytes_of_systems", "",
    ),
    "a mask of 1 where there is no point": (
        "kernels/warp.py", "cover = tl.where(seen, cover_x * cover_y, 0.0)", "cover = cover_x * cover_y",
    ),
    "the line of another frame": (
        "backend.py", "level, frame = level + 1, frame.f_back", "level, frame = level + 2, frame.f_back",
    ),
    "boxes with too little room for roundings": (
        "kernels/preimage.py", "return 3.6e-15 if tl.float64 == ACC else 1.9e-6", "return 3.6e-15 if tl.float64 == ACC else 1.9e-7",
    ),
    "a cache without a limit of bytes": (
        "caches.py", "or self._bytes() > self.max_bytes", "",
    ),
    "boxes cut short at the end": (
        "kernels/preimage.py", "tl.where(low <= 2 * last, low", "tl.where(low <= 2 * last - 1, low",
    ),
    "boxes without room for roundings": (
        "kernels/preimage.py", "return 3.6e-15 if tl.float64 == ACC else 1.9e-6", "return 0.0",
    ),
    "boxes of one corner": (
        "kernels/preimage.py", "for k in tl.static_range(1, 4):", "for k in tl.static_range(1, 2):",
    ),
    "inverse of an affine map, a sign": (
        "transforms/affine.py", "e * scale, -b * scale", "e * scale, b * scale",
    ),
    "boxes without what turns": (
        "transforms/affine.py", "half_x = tl.abs(x_by_u) * reach_u + tl.abs(x_by_v) * reach_v", "half_x = tl.abs(x_by_u) * reach_u",
    ),
    "inverse of a homography, a cofactor": (
        "transforms/projective.py", "determinant(f, d, i, g)", "determinant(f, d, g, i)",
    ),
    "a horizon that is overlooked": (
        "transforms/projective.py", "regular = regular & (least * 1000 > most)", "regular = regular & (most > 0)",
    ),
    "nearest, ties to both": (
        "kernels/samplers.py", "t.dtype), rounded == pixel", "t.dtype), tl.abs(t - pixel) <= 0.5",
    ),
    "sums rounded in one step": (
        "kernels/finish.py", "for _step in range(STEPS):", "for _step in range(1):",
    ),
    "scales of another channel": (
        "kernels/finish.py", "at // stride_c.to(INDEX) % C", "at * 0",
    ),
    "the same scale for all programs": (
        "kernels/warp.py", "peaks + (n.to(tl.int64) * C + first_channel)", "peaks + n.to(tl.int64) * C",
    ),
    "rests lost": (
        "kernels/fixed_point.py", "tl.atomic_add(place + rests, rest, mask=inside & (rest != 0), sem=\"relaxed\")", "pass",
    ),
    "negative sums cut down": (
        "kernels/fixed_point.py", "((whole + 2147483648) >> 32) << 32", "(whole >> 32) << 32",
    ),
    "exponents one too small": (
        "kernels/fixed_point.py", ".to(tl.int32) - 1022", ".to(tl.int32) - 1023",
    ),
    "a scale in one factor": (
        "kernels/fixed_point.py", "return power_of_two(half, ACC), power_of_two(exponent - half, ACC)", "return power_of_two(exponent, ACC), power_of_two(0 * half, ACC)",
    ),
    "what is not finite is lost": (
        "kernels/fixed_point.py", 'tl.where(peak < float("inf"), value, float("nan"))', "value",
    ),
    "the largest of one transform": (
        "launch.py", "peaks.unflatten(0, (-1, spec.transforms)).amax(1)", "peaks.unflatten(0, (-1, spec.transforms))[:, 0].contiguous()",
    ),
    "no deterministic sums": (
        "launch.py", "if spec.deterministic or torch.are_deterministic_algorithms_enabled():", "if spec.deterministic:",
    ),
    "CPU path, gradients as they come": (
        "eager.py", "if out.requires_grad and is_plain(out):", "if False:",
    ),
}  # fmt: skip


def within(root: Path, file: str) -> Path:
    """A mutant's file: of the package, or of the benchmark."""
    return root / file if file.startswith("bench/") else root / "stn_triton" / file


def place(file: str, before: str) -> str:
    """The file's text; ValueError unless it has the line once."""
    text = within(ROOT, file).read_text()
    if text.count(before) != 1:
        raise ValueError(f"{file}: expected one place to break, got {text.count(before)} of {before!r}")
    return text


def survives(file: str, before: str, after: str) -> bool:
    """Whether all tests pass with the change."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("stn_triton", "bench", "tests", "pyproject.toml", "README.md"):
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, Path(folder, name))
        within(Path(folder), file).write_text(place(file, before).replace(before, after))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider"]
        own = [OWN_TESTS[file]] if file in OWN_TESTS else []
        command += [str(Path(folder, "tests", name)) for name in dict.fromkeys(own + TESTS)]
        environment = {**os.environ, "PYTHONPATH": folder}
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode not in (0, 1):
            # A crash of the whole process is a failure of the tests too, an error of pytest itself is not.
            assert result.returncode < 0, result.stdout[-3000:] + result.stderr[-3000:]
        last = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
        print(f"    {last[0][:110] if last else f'exit {result.returncode}'}")
        return result.returncode == 0


def main() -> int:
    chosen = {name: MUTANTS[name] for name in MUTANTS if not sys.argv[1:] or sys.argv[1] in name}
    for file, before, _ in chosen.values():
        place(file, before)  # all of them before the first minute is spent
    alive = []
    for name, mutant in chosen.items():
        print(name, flush=True)
        if survives(*mutant):
            alive.append(name)
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants caught")
    print(*(f"survived: {name}" for name in alive), sep="\n")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
