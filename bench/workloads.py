"""The warps that are measured: of real models, of the paper, and one for each thing that is not in these.

One table for ``python -m bench``, ``pytest bench``, ``python -m bench.gpu``, the compile report and the tests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """One warp, and which gradients its model needs."""

    name: str
    source: str  #: whose it is
    image: tuple[int, int, int, int]  #: (N, C, H, W)
    size: tuple[int, int]  #: (h, w) of the output
    transform: str = "affine"
    needs: str = "both"  #: gradients: "none", "image", "theta" or "both"
    padding_mode: str = "zeros"
    align_corners: bool = False
    dtype: str = "float32"  #: of the image; theta is float32
    layout: str = "contiguous"  #: or "channels_last"
    mode: str = "bilinear"
    transforms: int | None = None  #: M of each image
    mask: bool = False
    lattice: tuple[int, int] = (4, 4)  #: columns and rows of control points, of splines
    values: str = ""  #: of theta, one of `bench.inputs.VALUES`; "": the transform's own
    headline: bool = False  #: measured first

    @property
    def needs_image(self) -> bool:
        """Whether the image's gradient is needed."""
        return self.needs in ("image", "both")

    @property
    def needs_theta(self) -> bool:
        """Whether theta's gradient is needed."""
        return self.needs in ("theta", "both")

    @property
    def description(self) -> str:
        """What it does, in a line without its name."""
        parts = ["x".join(map(str, self.image)), "->"]
        parts += ["x".join(map(str, self.size if self.transforms is None else (self.transforms, *self.size)))]
        parts += [self.transform, self.padding_mode]
        parts += [f"{self.lattice[0] * self.lattice[1]} points"] * (self.transform == "tps")
        parts += [self.mode] * (self.mode != "bilinear") + ["mask"] * self.mask
        parts += ["align_corners"] * self.align_corners
        parts += [self.dtype] * (self.dtype != "float32") + [self.layout] * (self.layout != "contiguous")
        return " ".join([*parts, f"grad={self.needs}"])

    def with_batch(self, batch: int) -> Workload:
        """The same of N images."""
        return replace(self, image=(batch, *self.image[1:]))

    def shrunk(self) -> Workload:
        """The same in every choice, small enough for a reference and an interpreter."""
        n, c, h, w = self.image
        most = 8 if self.layout == "contiguous" else 32
        image = min(n, 2), min(c, most), min(h, 23), min(w, 29)
        if self.size == (h, w):  # an output that lies on its image
            return replace(self, image=image, size=image[2:])
        return replace(self, image=image, size=(min(self.size[0], 19), min(self.size[1], 24)))


WORKLOADS = [
    Workload("stn-tutorial", "PyTorch's tutorial", (64, 1, 28, 28), (28, 28), needs="theta", headline=True),
    Workload(
        "text-recognition", "deep-text-recognition-benchmark, TPS of 20 points", (192, 1, 32, 100), (32, 100), "tps",
        "theta", "border", True, lattice=(10, 2), headline=True,
    ),
    Workload(
        "raft-lookup", "RAFT, 9 x 9 windows of a correlation volume", (7040, 1, 55, 128), (9, 9), "dense", "image",
        align_corners=True, values="windows",
    ),
    *(
        Workload(f"pwc-net-c{c}", "PWC-Net, a level of its pyramid", (1, c, h, w), (h, w), "dense", values="nearby")
        for c, h, w in [(32, 112, 256), (64, 56, 128), (96, 28, 64), (128, 14, 32)]
    ),
    Workload(
        "basicvsr", "BasicVSR, features along a flow", (4, 64, 64, 64), (64, 64), "flow", align_corners=True,
        headline=True,
    ),
    Workload(
        "eg3d", "EG3D, points of rays on three planes", (12, 32, 256, 256), (1, 196608), "dense", "image",
        values="scattered",
    ),
    Workload(
        "tensorf", "TensoRF, points of rays", (1, 48, 300, 300), (262144, 1), "dense", "image", align_corners=True,
        values="scattered",
    ),
    Workload(
        "deformable-detr", "Deformable DETR, its fallback in PyTorch", (16, 32, 100, 134), (17821, 4), "dense",
        values="scattered",
    ),
    Workload("bevformer", "BEVFormer, alignment in time", (1, 256, 200, 200), (200, 200), needs="image", headline=True),
    Workload("drqv2", "DrQ-v2, augmentation", (256, 9, 92, 92), (84, 84), needs="none", values="shifts"),
    Workload(
        "monodepth2", "Monodepth2, a view from the other", (12, 3, 192, 640), (192, 640), "dense", "theta", "border",
        values="nearby",
    ),
    *(
        Workload(
            f"kornia-{transform}-n{n}", "kornia's flagship", (n, 3, 256, 256), (256, 256), transform,
            align_corners=True, headline=True,
        )
        for transform in ("affine", "homography")
        for n in (1, 8, 32)
    ),
    *(
        Workload(
            f"kornia-{transform}-none", "the same, augmentation", (32, 3, 256, 256), (256, 256), transform, "none",
            align_corners=True,
        )
        for transform in ("affine", "homography")
    ),
    Workload(
        "stylegan3", "StyleGAN3, augmentation", (8, 3, 1048, 1048), (524, 524), needs="image", values="similar",
        headline=True,
    ),
    *(
        Workload(f"mnist-{transform}", "the paper, 4.1", (256, 1, 42, 42), (42, 42), transform, headline=True)
        for transform in ("affine", "projective", "tps")
    ),
    *(
        Workload(f"cluttered-{transform}", "the paper, cluttered MNIST", (256, 1, 60, 60), (60, 60), transform)
        for transform in ("affine", "projective", "tps")
    ),
    *(
        Workload(f"svhn-{transform}", "the paper, 4.2", (128, 3, 64, 64), (64, 64), transform)
        for transform in ("affine", "projective", "tps")
    ),
    Workload(
        "birds-4-crops", "the paper, 4.3", (16, 3, 448, 448), (224, 224), "attention", transforms=4, headline=True
    ),
    Workload("birds-tps", "the paper's images, bent", (16, 3, 448, 448), (448, 448), "tps"),
    *(
        Workload(
            f"features-{h}", "feature maps", (32, c, h, h), (h, h), dtype="bfloat16", layout="channels_last",
            headline=True,
        )
        for c, h in [(256, 56), (64, 112)]
    ),
    *(
        Workload(
            f"large-c{c}", "a large image, rotated by 30 degrees", (8, c, 2048, 2048), (2048, 2048), values="rotated",
            headline=True,
        )
        for c in (1, 3)
    ),
    Workload("imagenet", "images of 224 x 224", (32, 3, 224, 224), (224, 224)),
    Workload("imagenet-theta", "the same, the image being data", (32, 3, 224, 224), (224, 224), needs="theta"),
    Workload("mnist-affine-theta", "the paper, the image being data", (256, 1, 42, 42), (42, 42), needs="theta"),
    Workload("odd-rows", "one image that threads cannot share", (1, 1, 255, 255), (255, 255)),
    Workload("kornia-tps", "kornia's TPS", (4, 3, 256, 256), (256, 256), "tps", lattice=(5, 5)),
    Workload("kornia-tps-none", "the same, no gradient", (4, 3, 256, 256), (256, 256), "tps", "none", lattice=(5, 5)),
    Workload("kornia-tps-n1", "one image, bent", (1, 3, 256, 256), (256, 256), "tps"),
    Workload("mesh", "a mesh of triangles", (64, 3, 64, 64), (64, 64), "piecewise_affine"),
    Workload("basis", "polynomials, a basis of the user's own", (64, 3, 64, 64), (64, 64), "polynomial"),
    Workload("bicubic", "the samplers", (8, 3, 256, 256), (256, 256), mode="bicubic", align_corners=True),
    Workload("nearest", "the samplers", (8, 3, 256, 256), (256, 256), needs="image", mode="nearest"),
    Workload("reflection", "the paddings", (8, 3, 256, 256), (256, 256), padding_mode="reflection", align_corners=True),
    Workload("fill", "the paddings, a colour", (8, 3, 256, 256), (256, 256), padding_mode="fill", align_corners=True),
    Workload("mask", "with the output's coverage", (8, 3, 256, 256), (256, 256), mask=True, align_corners=True),
    Workload("half", "half types", (8, 3, 256, 256), (256, 256), dtype="float16", align_corners=True),
]  # fmt: skip
