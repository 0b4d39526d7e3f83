"""Fused Triton kernels for Spatial Transformer Networks: theta and an image in, the warped feature map out."""

from . import geometry, reference
from .backend import use_backend
from .functional import (
    affine_grid,
    affine_sample,
    attention_sample,
    flow_sample,
    grid_sample,
    piecewise_affine_sample,
    projective_sample,
    tps_sample,
    transform_sample,
    warmup,
)
from .modules import (
    ConvolutionalLocalisation,
    FullyConnectedLocalisation,
    SpatialTransformer,
    start_at_identity,
)
from .transforms import (
    TRANSFORMS,
    Affine,
    Attention,
    BasisExpansion,
    Dense,
    Flow,
    FreeThinPlateSpline,
    Homography,
    PiecewiseAffine,
    Projective,
    ThinPlateSpline,
    Transform,
)

__version__ = "0.1.0"

__all__ = [
    "TRANSFORMS",
    "Affine",
    "Attention",
    "BasisExpansion",
    "ConvolutionalLocalisation",
    "Dense",
    "Flow",
    "FreeThinPlateSpline",
    "FullyConnectedLocalisation",
    "Homography",
    "PiecewiseAffine",
    "Projective",
    "SpatialTransformer",
    "ThinPlateSpline",
    "Transform",
    "affine_grid",
    "affine_sample",
    "attention_sample",
    "flow_sample",
    "geometry",
    "grid_sample",
    "piecewise_affine_sample",
    "projective_sample",
    "reference",
    "start_at_identity",
    "tps_sample",
    "transform_sample",
    "use_backend",
    "warmup",
]
