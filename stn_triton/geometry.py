"""Transform parameters as geometry: composed, inverted, of corners, as matrices of pixels, and as a pose.

Everything is differentiable, in closed form, without a synchronisation, and in full precision whatever matrix products
are set to. Parameters are told apart by their shape: affine (..., 2, 3), or projective (..., 8) or (..., 3, 3), with
any leading axes; those of attention are none of these. Half types are computed in float32, and results rounded once to
the dtype given: pixel matrices of large images want more. A singular map has no inverse: the result is not finite, and
a warp by it reads nothing. That sample, and whatever it is composed with, gets zero gradient; the rest of the batch is
unaffected. The same holds for a map so nearly singular that its derivatives overflow.

The sign of a homography says which side of its horizon is in front of the camera. The warps take the one that puts the
middle of the output in front, whatever went before; OpenCV and kornia draw both sides. So across a horizon composed,
inverted and converted homographies draw the same points, but perhaps not the same half of them.

Errors: TypeError for what is no floating-point tensor, ValueError for a shape that is none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import check_bool, check_size, check_tensor
from .tracing import is_plain


def as_matrix(theta: Tensor) -> Tensor:
    """(..., 3, 3) of affine parameters (..., 2, 3), projective ones (..., 8), or a matrix, which is returned."""
    _check("theta", theta)
    if theta.shape[-2:] == (3, 3):
        return theta
    last = torch.eye(3, dtype=theta.dtype, device=theta.device)[2]
    if _is_affine(theta):
        return torch.cat([theta, last.expand(*theta.shape[:-2], 1, 3)], -2)
    return torch.cat([theta, last[2:].expand(*theta.shape[:-1], 1)], -1).unflatten(-1, (3, 3))


def compose(first: Tensor, then: Tensor) -> Tensor:
    """The parameters of one warp that does what two do: by ``first``, then of the result by ``then``.

    ``sample(image, compose(first, then))`` is ``sample(sample(image, first), then)`` without what the image between
    loses: interpolated once, cut off at the edges of the last output alone (and of homographies perhaps the other half,
    see above). Target points go through ``then`` first, so the matrix is first @ then. A recurrent transformer composes
    what it has with each correction.

    Args:
        first, then: affine or projective, with the same number of leading axes, which broadcast. To combine M
            transforms per image, (N, M, ...), with one per image, (N, ...), pass the latter as ``then[:, None]``. A
            single transform for all has no leading axes, or only axes of length 1.

    Returns:
        (..., 2, 3) if both are affine, else (..., 3, 3): the product, but at the nearest scale within 1e-12 to 1e12,
        which is the same map, where its own lies beyond.
    """
    _check("first", first)
    _check("then", then)
    a, b = _wide(as_matrix(first)), _wide(as_matrix(then))
    _check_pairs(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    affine = _is_affine(first) and _is_affine(then)
    product = _composed(a, b, affine=affine).to(torch.promote_types(first.dtype, then.dtype))
    return product[..., :2, :] if affine else product


def invert(theta: Tensor) -> Tensor:
    """The parameters of the inverse map: from image points to output points.

    Args:
        theta: affine or projective.

    Returns:
        (..., 2, 3) for affine parameters, else (..., 3, 3). Where theta is singular, the result is not finite and its
        gradient is 0.
    """
    _check("theta", theta)
    inverse = _affine_inverse(_wide(theta)) if _is_affine(theta) else _inverse(_wide(as_matrix(theta)))
    return inverse.to(theta.dtype)


def to_pixel_matrix(
    theta: Tensor, image_size: Sequence[int], size: Sequence[int] | None = None, *, align_corners: bool = False
) -> Tensor:
    """The matrix that OpenCV and kornia take for the same map: from pixels of the image to pixels of the output.

    Their convention: (column, row) counted from 0 at the centre of the first pixel, and the opposite direction of
    theta's, which maps output points to image points. ``warpAffine`` and ``warp_affine`` take ``matrix[..., :2, :]``
    of an affine map.

    Args:
        theta: affine or projective.
        image_size: (H, W) of the image.
        size: (h, w) of the output; the image's by default.
        align_corners: what theta's normalised coordinates mean, as in `affine_sample`.

    Returns:
        (..., 3, 3).

    Raises:
        ValueError: an axis of one pixel with align_corners, which has no extent.
    """
    _check("theta", theta)
    image = _axes("image_size", image_size, align_corners)
    output = image if size is None else _axes("size", size, align_corners)
    return _between(output, as_matrix(invert(_wide(theta))), image, to_pixels=True).to(theta.dtype)


def from_pixel_matrix(
    matrix: Tensor, image_size: Sequence[int], size: Sequence[int] | None = None, *, align_corners: bool = False
) -> Tensor:
    """theta for a matrix from pixels of the image to pixels of the output: `to_pixel_matrix` the other way.

    Args:
        matrix: (..., 3, 3), or (..., 2, 3) for an affine map, as kornia gives them; ``torch.from_numpy`` of OpenCV's.
        image_size: (H, W) of the image.
        size: (h, w) of the output; the image's by default.
        align_corners: what theta's normalised coordinates are to mean, as in `affine_sample`.

    Returns:
        theta, (..., 2, 3) for a matrix (..., 2, 3), else (..., 3, 3).

    Raises:
        ValueError: an axis of one pixel with align_corners, which has no extent.
    """
    _check("matrix", matrix)
    image = _axes("image_size", image_size, align_corners)
    output = image if size is None else _axes("size", size, align_corners)
    theta = _between(image, as_matrix(invert(_wide(matrix))), output, to_pixels=False).to(matrix.dtype)
    return theta[..., :2, :] if _is_affine(matrix) else theta


def from_corners(corners: Tensor) -> Tensor:
    """The homography whose crop has these corners: a page in a photograph, a plate, a sign.

    With w_k the area of the triangle of the other three corners c_k, w_0 c_0 + w_2 c_2 = w_1 c_1 + w_3 c_3, also of
    homogeneous points (c_k, 1): so what interpolates the points w_k (c_k, 1) bilinearly has no term in x y.

    Args:
        corners: (..., 4, 2), where the output's corners (-1, -1), (1, -1), (1, 1) and (-1, 1) lie in the image, (u, v).

    Returns:
        (..., 3, 3), scaled so that the last entry is 1. Of a convex quadrilateral, also a mirrored one, the whole
        output is in front of the camera; of others the horizon crosses it; of points on one line it is not finite
        and its gradient is 0.

    Raises:
        ValueError: corners are not (..., 4, 2).
    """
    _check_corners(corners)
    return _homography(_wide(corners)).to(corners.dtype)


def corner_areas(corners: Tensor) -> Tensor:
    """Signed areas (..., 4) of the triangles that are left of quadrilaterals (..., 4, 2) without each corner in turn.

    All positive: convex, and clockwise as y points down. All negative: convex and mirrored. In float32 at least.

    Raises:
        ValueError: corners are not (..., 4, 2).
    """
    _check_corners(corners)
    a, b, c, d = _wide(corners).unbind(-2)

    def area(p: Tensor, q: Tensor, r: Tensor) -> Tensor:
        (x, y), (x_2, y_2) = (q - p).unbind(-1), (r - p).unbind(-1)
        return (x * y_2 - y * x_2) / 2

    return torch.stack([area(b, c, d), area(a, c, d), area(a, b, d), area(a, b, c)], -1)


class Pose(NamedTuple):
    """Where an affine crop lies in the image: its x axis is turned by ``rotation``, its axes are ``scale`` long.

    The linear part is R(rotation) [[1, shear], [0, 1]] diag(scale), so that shear 0 means a right angle between the
    axes. In the coordinates of theta: y points down, so that positive angles turn clockwise, and on an image that is
    not square a right angle of normalised coordinates is none of pixels.
    """

    scale: Tensor  #: (..., 2): of x, positive, and of y, negative for a mirror image
    rotation: Tensor  #: (...): radians, in (-pi, pi]
    shear: Tensor  #: (...): how far y leans along x
    translation: Tensor  #: (..., 2): the crop's centre (tx, ty)


def to_pose(theta: Tensor) -> Pose:
    """The pose of affine parameters (..., 2, 3). Where the x axis or the area is 0, it is not finite, its gradient 0.

    Its parts are views of one tensor.

    Raises:
        ValueError: theta is not (..., 2, 3).
    """
    check_tensor("theta", theta)
    if not _is_affine(theta):
        raise ValueError(f"theta: expected shape (..., 2, 3), got {tuple(theta.shape)}")
    numbers = _pose(_wide(theta))[..., 0].to(theta.dtype)
    return Pose(numbers[..., :2], numbers[..., 2], numbers[..., 3], numbers[..., 4:])


def from_pose(pose: Pose) -> Tensor:
    """Affine parameters of a pose, the inverse of `to_pose`.

    Args:
        pose: tensors, whose leading axes broadcast.

    Returns:
        (..., 2, 3), of the scale's dtype, differentiable.

    Raises:
        TypeError, ValueError: not a `Pose` of tensors of its shapes.
    """
    if not isinstance(pose, Pose):
        raise TypeError(f"pose: expected a geometry.Pose, got {type(pose).__name__}")
    for name, part in pose._asdict().items():
        check_tensor(name, part)
        if name in ("scale", "translation") and part.shape[-1:] != (2,):
            raise ValueError(f"{name}: expected shape (..., 2), got {tuple(part.shape)}")
    scale, rotation, shear, translation = (_wide(part) for part in pose)
    theta = _posed(scale[..., None], rotation[..., None, None], shear[..., None, None], translation[..., None])
    return theta.to(pose.scale.dtype)


def _closed_form(formula: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    """Gives zero gradient, not NaN, to samples for which a formula is undefined.

    The formula takes matrices (..., r, c), whose leading axes broadcast. It returns its result and a slope, which is
    about as large as the result's largest derivative. A sample is defined if its slope is finite, and stays finite
    times 1 / eps. Where a gradient may be needed the formula runs twice: on all samples for the values, then with
    undefined samples replaced by the identity for the gradients.
    """

    @wraps(formula)
    def differentiable(*matrices: Tensor, **options: bool) -> Tensor:
        result, slope = formula(*(matrix.detach() for matrix in matrices), **options)
        if is_plain(*matrices) and not (torch.is_grad_enabled() and any(matrix.requires_grad for matrix in matrices)):
            return result
        numbers = torch.finfo(slope.dtype)
        defined = _magnitude(slope) < numbers.eps * numbers.max
        safe = (torch.where(defined, matrix, _identity_like(matrix)) for matrix in matrices)
        return torch.where(defined, formula(*safe, **options)[0], result)

    return differentiable


@_closed_form
def _composed(a: Tensor, b: Tensor, *, affine: bool) -> tuple[Tensor, Tensor]:
    """Computes the product of `compose`, which is its own slope.

    Its derivatives are a and b, and it is finite only if they are.
    """
    if not affine:
        scale = (_magnitude(a).sqrt() * _magnitude(b).sqrt()).clamp(min=torch.finfo(a.dtype).tiny)
        excess = scale / scale.clamp(1e-6, 1e6)  # 1 unless the product might overflow or underflow float32
        a, b = a / excess, b / excess
    product = _product(a, b)
    return product, product


@_closed_form
def _affine_inverse(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts (..., 2, 3). The derivatives are products of two entries of the inverse."""
    linear, shift = theta.split([2, 1], -1)
    scale = _magnitude(linear)
    (a, b), (c, d) = (row.unbind(-1) for row in (linear / scale).unbind(-2))
    determinant = (a * d - b * c)[..., None, None]
    inverse = torch.stack([d, -b, -c, a], -1).unflatten(-1, (2, 2)) / determinant / scale
    inverse = torch.cat([inverse, -_product(inverse, shift)], -1)
    return inverse, inverse / determinant / scale


@_closed_form
def _inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Inverts (..., 3, 3). The slope does not depend on the scale of the homography."""
    scale = _magnitude(matrix)
    rows = (matrix / scale).unbind(-2)
    # Cramer's rule: the columns are cross products of the rows.
    columns = torch.stack([torch.cross(rows[k - 2], rows[k - 1], dim=-1) for k in range(3)], -1)
    determinant = (rows[0] * columns[..., 0]).sum(-1)
    inverse = columns / determinant[..., None, None] / scale
    return inverse, inverse / determinant[..., None, None]


@_closed_form
def _homography(corners: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the homography of `from_corners`. The slope is (..., 4, 3)."""
    scale = _magnitude(corners)
    areas = corner_areas(corners / scale)
    points = torch.cat([corners, torch.ones_like(corners[..., :1])], -1)
    scaled = (areas / areas.sum(-1, keepdim=True))[..., None] * points
    first, second, third, fourth = scaled.unbind(-2)
    columns = [second - first + third - fourth, third - first + fourth - second, first + second + third + fourth]
    return torch.stack(columns, -1), scaled / areas.sum(-1)[..., None, None] / scale


@_closed_form
def _pose(theta: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the numbers of a `Pose` as a column (..., 6, 1). The slope is (..., 4, 1)."""
    (a, b, tx), (d, e, ty) = (row.unbind(-1) for row in theta.unbind(-2))
    along_x = torch.hypot(a, d)
    cos, sin = a / along_x, d / along_x
    along_y = cos * e - sin * b
    shear = (cos * b + sin * e) / along_y
    numbers = torch.stack([along_x, along_y, torch.atan2(d, a), shear, tx, ty], -1)
    lean = 1 + shear * shear
    slope = [1 / along_x / along_x, lean / along_x, lean * along_y / along_x, lean.sqrt() / along_y]
    return numbers[..., None], torch.stack(slope, -1)[..., None]


@_closed_form
def _posed(scale: Tensor, rotation: Tensor, shear: Tensor, translation: Tensor) -> tuple[Tensor, Tensor]:
    """Builds theta from the parts of a pose, columns (..., 2, 1) or (..., 1, 1). It is finite only if they are."""
    (along_x, along_y), (x, y) = (part[..., 0].unbind(-1) for part in (scale, translation))
    cos, sin, shear = torch.cos(rotation[..., 0, 0]), torch.sin(rotation[..., 0, 0]), shear[..., 0, 0]
    rows = [cos * along_x, (cos * shear - sin) * along_y, x, sin * along_x, (sin * shear + cos) * along_y, y]
    theta = torch.stack(torch.broadcast_tensors(*rows), -1).unflatten(-1, (2, 3))
    return theta, theta


def _check(name: str, theta: Tensor) -> None:
    check_tensor(name, theta)
    if not theta.dim() or not (_is_affine(theta) or theta.shape[-2:] == (3, 3) or theta.shape[-1] == 8):
        raise ValueError(f"{name}: expected shape (..., 2, 3), (..., 3, 3) or (..., 8), got {tuple(theta.shape)}")


def _check_pairs(first: tuple[int, ...], then: tuple[int, ...]) -> None:
    """Raises ValueError unless leading axes broadcast unambiguously: (N,) with (N, M) would pair wrongly if N = M."""
    (short, axes), (long, more) = sorted([("first", first), ("then", then)], key=lambda pair: len(pair[1]))
    if len(axes) < len(more) and any(n != 1 for n in axes) and any(n != 1 for n in more):
        missing = len(more) - len(axes)
        advice = f"for one of each image write {short}[:{', None' * missing}]"
        if not _broadcast((*axes, *[1] * missing), more):
            advice = f"for one of each transform write {short}[{', '.join(['None'] * missing)}]"
        raise ValueError(f"{short}: expected as many leading axes as {long}'s {more}, got {axes}; {advice}")
    if not _broadcast(first, then):
        raise ValueError(f"then: expected leading axes that go with first's {first}, got {then}")


def _broadcast(first: tuple[int, ...], then: tuple[int, ...]) -> bool:
    """Whether two shapes broadcast."""
    try:
        torch.broadcast_shapes(first, then)
    except RuntimeError:
        return False
    return True


def _check_corners(corners: Tensor) -> None:
    check_tensor("corners", corners)
    if corners.shape[-2:] != (4, 2):
        raise ValueError(f"corners: expected shape (..., 4, 2), got {tuple(corners.shape)}")


def _magnitude(matrix: Tensor) -> Tensor:
    """The largest entry, (..., 1, 1), a constant to autograd: in units of it no product over- or underflows."""
    return matrix.detach().abs().amax((-2, -1), keepdim=True)


def _identity_like(matrix: Tensor) -> Tensor:
    """The (r, c) matrix with ones on its diagonal."""
    return torch.eye(*matrix.shape[-2:], dtype=matrix.dtype, device=matrix.device)


def _is_affine(theta: Tensor) -> bool:
    return theta.shape[-2:] == (2, 3)


def _wide(theta: Tensor) -> Tensor:
    """In float32 at least."""
    return theta.to(torch.promote_types(theta.dtype, torch.float32))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b as sums: matrix products may be set to a reduced precision."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


class _Axis(NamedTuple):
    """Pixels of one axis: pixel = half * unit + centre."""

    half: float
    centre: float


def _axes(name: str, size: Sequence[int], align_corners: bool) -> tuple[_Axis, _Axis]:
    """Of x and of y; raises ValueError where a normalised coordinate has no extent."""
    align_corners = check_bool("align_corners", align_corners)
    h, w = check_size(size, name, 1 + align_corners)
    x, y = (_Axis((n - 1 if align_corners else n) / 2, (n - 1) / 2) for n in (w, h))
    return x, y


def _between(after: tuple[_Axis, _Axis], matrix: Tensor, before: tuple[_Axis, _Axis], to_pixels: bool) -> Tensor:
    """A matrix of normalised coordinates as one of pixels, or the other way: changes of units before and after it."""
    (x_before, y_before), (x_after, y_after) = before, after
    if to_pixels:  # unit = (pixel - centre) / half
        x_before, y_before = (_Axis(1 / axis.half, -axis.centre / axis.half) for axis in before)
    else:
        x_after, y_after = (_Axis(1 / axis.half, -axis.centre / axis.half) for axis in after)
    x, y, one = matrix.unbind(-1)
    columns = [x * x_before.half, y * y_before.half, x * x_before.centre + y * y_before.centre + one]
    p, q, r = torch.stack(columns, -1).unbind(-2)
    return torch.stack([p * x_after.half + r * x_after.centre, q * y_after.half + r * y_after.centre, r], -2)
