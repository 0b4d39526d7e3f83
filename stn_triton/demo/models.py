"""The two models: a small CNN, and the same CNN with a spatial transformer in front."""

from __future__ import annotations

from torch import Tensor, nn

from ..modules import ConvolutionalLocalisation, SpatialTransformer
from .data import CLASSES
from .distort import CANVAS


def small_cnn() -> nn.Sequential:
    """Two convolutions with max-pooling and a linear layer, at half the resolution: (N, 1, 42, 42) -> (N, 10)."""
    return nn.Sequential(
        nn.AvgPool2d(2),
        nn.Conv2d(1, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 3 * 3, CLASSES),
    )


class TransformerCNN(nn.Module):
    """A spatial transformer, then `small_cnn`: (N, 1, 42, 42) -> (N, 10)."""

    def __init__(self, transform: str = "affine") -> None:
        super().__init__()
        # First, so that after the same seed its weights are those of the CNN alone.
        self.cnn = small_cnn()
        # The pose is visible at half the resolution, for a quarter of the work.
        half = (1, CANVAS[0] // 2, CANVAS[1] // 2)
        self.localisation = nn.Sequential(
            nn.AvgPool2d(2), ConvolutionalLocalisation(half, (8, 16), 64, transform=transform)
        )
        self.transformer: nn.Module = SpatialTransformer(self.localisation, transform, return_theta=True)

    def forward(self, image: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        rectified, _ = self.transformer(image)
        return self.cnn(rectified)
