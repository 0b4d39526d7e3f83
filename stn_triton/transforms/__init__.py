"""The transforms, one file each. A new one is a file like `affine` and a line in `TRANSFORMS`."""

from .affine import Affine
from .base import Transform
from .dense import Dense

TRANSFORMS: dict[str, Transform] = {
    transform.name: transform
    for transform in (
        Affine(),
        Dense(),
    )
}

__all__ = ["TRANSFORMS", "Affine", "Dense", "Transform"]
