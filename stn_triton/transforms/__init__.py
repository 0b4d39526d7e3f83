"""The transforms, one file each. A new one is a file like `affine` and a line in `TRANSFORMS`."""

from .affine import Affine
from .attention import Attention
from .base import Transform
from .basis_expansion import BasisExpansion
from .dense import Dense
from .flow import Flow
from .piecewise_affine import PiecewiseAffine
from .projective import Homography, Projective
from .thin_plate_spline import FreeThinPlateSpline, ThinPlateSpline

TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Attention(),
        Affine(),
        Projective(),
        Homography(),
        ThinPlateSpline(),
        PiecewiseAffine(),
        Dense(),
        Flow(),
    )
}


def find_transform(transform: str | Transform) -> Transform:
    """A transform by its name in `TRANSFORMS`; an object is returned as it is."""
    if isinstance(transform, Transform):
        return transform
    if not isinstance(transform, str) or transform not in TRANSFORMS:
        names = ", ".join(map(repr, TRANSFORMS))
        got = repr(transform) if isinstance(transform, str) else f"{type(transform).__name__}"
        if isinstance(transform, type):
            got = f"the class {transform.__name__}, of which an object is meant"
        raise ValueError(f"transform: expected a Transform object or one of {names}, got {got}")
    return TRANSFORMS[transform]


__all__ = [
    "TRANSFORMS",
    "Affine",
    "Attention",
    "BasisExpansion",
    "Dense",
    "Flow",
    "FreeThinPlateSpline",
    "Homography",
    "PiecewiseAffine",
    "Projective",
    "ThinPlateSpline",
    "Transform",
    "find_transform",
]
