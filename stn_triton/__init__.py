"""Fused Triton kernels for Spatial Transformer Networks: theta and an image in, the warped feature map out."""

from . import reference
from .functional import affine_grid, affine_sample, grid_sample, transform_sample, warmup
from .modules import (
    ConvolutionalLocalisation,
    FullyConnectedLocalisation,
    SpatialTransformer,
    start_at_identity,
)
from .transforms import TRANSFORMS, Affine, Dense, Transform

__version__ = "0.1.0"

__all__ = [
    "TRANSFORMS",
    "Affine",
    "ConvolutionalLocalisation",
    "Dense",
    "FullyConnectedLocalisation",
    "SpatialTransformer",
    "Transform",
    "affine_grid",
    "affine_sample",
    "grid_sample",
    "reference",
    "start_at_identity",
    "transform_sample",
    "warmup",
]
