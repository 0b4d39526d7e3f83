"""`SpatialTransformer` and localisation networks, as `torch.nn` modules."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .checks import (
    check_bool,
    check_choice,
    check_count,
    check_fill,
    check_image,
    check_size,
    check_tensor,
    whole_numbers,
)
from .functional import transform_sample
from .spec import MODES, PADDING_MODES
from .transforms import Transform, find_transform


class SpatialTransformer(nn.Module):
    """Predicts theta from the feature map and warps the map by it (section 3 of the paper).

    Args:
        localisation: any callable from the map (N, C, H, W) to the parameters, (N, P) or in theta's own shape,
            such as `FullyConnectedLocalisation`, `ConvolutionalLocalisation` or a network of your own, whose
            last layer `start_at_identity` sets up.
        transform: a name in `TRANSFORMS` or a `Transform`.
        size: (h, w) of the output; the map's own by default.
        heads: M, transformers in parallel that share the localisation network, which then gives (N, M * P), (N, M, P)
            or theta (N, M, ...), whose first parameter axis may hold them all: flows (N, M * 2, h, w) of a convolution;
            the map is not copied. None: one, without an axis of its own.
        mode, padding_mode, align_corners, deterministic: as in `affine_sample`.
        fill: as there; a tensor becomes a buffer, a parameter is trained.
        return_mask: return the mask after the warped map, as there.
        return_theta: return theta, in its own shape, after these: the pose of what was found.

    Shape: (N, C, H, W) -> (N, C, h, w), with heads (N, M, C, h, w); a tuple if more is returned.
    """

    def __init__(
        self,
        localisation: Callable[[Tensor], Tensor],
        transform: str | Transform = "affine",
        size: Sequence[int] | None = None,
        *,
        heads: int | None = None,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
        fill: float | Sequence[float] | Tensor | None = None,
        return_mask: bool = False,
        return_theta: bool = False,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        check_choice("mode", mode, MODES)
        check_choice("padding_mode", padding_mode, PADDING_MODES)
        check_fill(fill, padding_mode)
        if not callable(localisation) or isinstance(localisation, type):
            raise TypeError(f"localisation: expected a module or function of the map, got {localisation!r}")
        self.localisation = localisation
        self.transform = find_transform(transform)
        self.size = None if size is None else check_size(size)
        self.heads = None if heads is None else check_count("heads", heads)
        predicted = getattr(localisation, "predicts", None)  # a network of ours knows: counts alone may agree
        if predicted not in (None, (self.transform.name, self.heads or 1)):
            expected = f"one that predicts {self.heads or 1} x {self.transform.name!r}"
            raise ValueError(f"localisation: expected {expected}, got {predicted[1]} x {predicted[0]!r}")
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = check_bool("align_corners", align_corners)
        if isinstance(fill, Tensor) and not isinstance(fill, nn.Parameter):
            self.register_buffer("fill", fill)
        else:
            self.fill = fill
        self.return_mask = check_bool("return_mask", return_mask)
        self.return_theta = check_bool("return_theta", return_theta)
        self.deterministic = check_bool("deterministic", deterministic)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        check_image("image", image)
        size = (image.shape[2], image.shape[3]) if self.size is None else self.size
        shape, layout = self.transform.parameter_shape(size), self.transform.layout
        forms: list[tuple[int, ...]] = [(prod(shape),)]
        if self.heads is not None:
            m, (first, *others) = self.heads, shape
            forms = [(m * prod(shape),), (m, prod(shape)), (m * first, *others)]
            shape, layout = (m, *shape), f"{layout.replace('(N, ', '(N, M, ')} with M = {m}"
        theta = self.localisation(image)
        check_tensor("localisation's output", theta)
        if theta.shape[1:] not in (shape, *forms, (prod(shape), 1, 1)):  # the last from a convolution
            written = [f"(N, {', '.join(map(str, form))})" for form in dict.fromkeys(forms) if form != shape]
            expected = f"{', '.join(written)} or {layout}" if written else layout
            raise ValueError(
                f"localisation: expected {expected} of the transform {self.transform.name!r} out of it, "
                f"got {tuple(theta.shape)}"
            )
        theta = theta.reshape(theta.shape[0], *shape)
        out = transform_sample(
            self.transform,
            image,
            theta,
            size,
            mode=self.mode,
            padding_mode=self.padding_mode,
            align_corners=self.align_corners,
            fill=self.fill,
            return_mask=self.return_mask,
            deterministic=self.deterministic,
        )
        if not self.return_theta:
            return out
        return (*out, theta) if isinstance(out, tuple) else (out, theta)

    def extra_repr(self) -> str:
        return (
            f"transform={self.transform.name!r}, size={self.size}, heads={self.heads}, mode={self.mode!r}, "
            f"padding_mode={self.padding_mode!r}, align_corners={self.align_corners}, return_mask={self.return_mask}, "
            f"return_theta={self.return_theta}, deterministic={self.deterministic}"
        )


def _checked_shape(in_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) of a map."""
    numbers = whole_numbers(in_shape, "in_shape")
    if len(numbers) != 3:
        raise ValueError(f"in_shape: expected (C, H, W), got {in_shape!r}")
    return numbers[0], numbers[1], numbers[2]


def _parameter_count(transform: Transform) -> int:
    """How many numbers theta is, for transforms of which that is a fixed number."""
    shape = transform.parameter_shape((2, 3))
    if shape != transform.parameter_shape((3, 5)):
        raise ValueError(f"transform: expected one with a fixed number of parameters, got {transform}")
    return prod(shape)


def start_at_identity(
    localisation: nn.Module,
    transform: str | Transform = "affine",
    size: tuple[int, int] = (1, 1),
    align_corners: bool = False,
    heads: int = 1,
) -> nn.Module:
    """Sets a network's last linear or convolutional layer to zero weight and the identity's parameters as bias.

    So training starts from the untransformed map (section 4 of the paper). Works in place on any module whose
    last such layer gives the parameters, and returns it.

    Args:
        localisation: a module with a linear or convolutional layer at its end.
        transform: a name in `TRANSFORMS` or a `Transform`.
        size: (h, w) of the warp's output, for transforms with parameters for every pixel of it (dense, flow): as many
            as the layer then has to give. Others have one identity for all sizes.
        align_corners: of the warp, for transforms whose identity is the target points themselves (dense), which lie
            elsewhere with it.
        heads: how many transforms of each map the network predicts, M; all of them start as the identity.

    Raises:
        ValueError: no such layer, or one without a bias or with another number of outputs; or a lazy layer that has
            not been initialised.
    """
    identity = find_transform(transform).identity(size, align_corners=align_corners, device="cpu").flatten()
    identity = identity.repeat(check_count("heads", heads))
    regressions = [m for m in localisation.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    last = regressions[-1] if regressions else None
    if last is not None and "weight" not in last._parameters:
        raise ValueError(f"localisation: expected a last layer whose weight is a plain parameter, got {last}")
    if last is not None and last.bias is not None and is_lazy(last.weight):
        raise ValueError(
            f"localisation: expected an initialised last layer, got {last}: call localisation(image) once first"
        )
    if last is None or last.bias is None or last.bias.numel() != identity.numel():
        raise ValueError(
            f"localisation: expected a last linear or convolutional layer with {identity.numel()} outputs and a bias "
            f"(the last one registered), for transform={transform!r} and heads={heads}, got {last}"
        )
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(identity)
    return localisation


class _Localisation(nn.Sequential):
    """Layers for maps of one shape; the last predicts theta and starts at the identity.

    Args:
        pooling: the factor by which the layers shrink H and W, rounding down. Sizes that round to the same result are
            accepted.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        in_shape: Sequence[int],
        transform: str | Transform,
        heads: int,
        pooling: int = 1,
    ) -> None:
        super().__init__(*layers)
        self.in_shape, self.pooling = _checked_shape(in_shape), pooling
        self.predicts = find_transform(transform).name, heads
        start_at_identity(self, transform, heads=heads)

    def forward(self, image: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            self._check_shape(image)
        for layer in self:
            image = layer(image)
        return image

    def _check_shape(self, image: Tensor) -> None:
        if not isinstance(image, Tensor):  # a proxy of torch.fx
            return
        channels, *size = self.in_shape
        fits = image.dim() == 4 and image.shape[1] == channels
        if not fits or any(n // self.pooling != m // self.pooling for n, m in zip(image.shape[2:], size, strict=True)):
            expected = f"(N, {', '.join(map(str, self.in_shape))}), as in_shape of {type(self).__name__} says"
            raise ValueError(f"image: expected shape {expected}, got {tuple(image.shape)}")

    def __getitem__(self, index: int | slice) -> nn.Module:
        """Returns a layer, or a slice of them as a plain `torch.nn.Sequential`."""
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class FullyConnectedLocalisation(_Localisation):
    """ReLU layers on the flattened map, then the regression layer, starting at the identity.

    Args:
        in_shape: (C, H, W) of the input maps; any other shape raises ValueError.
        hidden: widths of the layers; the paper's "FCN" has (32, 32, 32).
        transform: a name in `TRANSFORMS` or a `Transform`.
        heads: how many transforms of each map to predict, M.

    Shape: (N, C, H, W) -> (N, M * P).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        hidden: Sequence[int] = (32, 32, 32),
        transform: str | Transform = "affine",
        heads: int = 1,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        width = prod(_checked_shape(in_shape))
        for units in whole_numbers(hidden, "hidden"):
            layers += [nn.Linear(width, units), nn.ReLU()]
            width = units
        outputs = check_count("heads", heads) * _parameter_count(find_transform(transform))
        super().__init__([*layers, nn.Linear(width, outputs)], in_shape, transform, heads)


class ConvolutionalLocalisation(_Localisation):
    """Blocks of 5 x 5 convolution, 2 x 2 max pooling and ReLU, a hidden layer, then the regression layer.

    The paper's "CNN" form: two blocks of 20 channels and a layer of 20. Starts at the identity.

    Args:
        in_shape: (C, H, W) of the input maps; any other shape raises ValueError.
        channels: of each block.
        hidden: width of the layer between the last block and the regression.
        transform: a name in `TRANSFORMS` or a `Transform`.
        heads: how many transforms of each map to predict, M.

    Shape: (N, C, H, W) -> (N, M * P).
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        channels: Sequence[int] = (20, 20),
        hidden: int = 20,
        transform: str | Transform = "affine",
        heads: int = 1,
    ) -> None:
        depth, height, width = _checked_shape(in_shape)
        layers: list[nn.Module] = []
        channels, hidden = whole_numbers(channels, "channels"), check_count("hidden", hidden)
        for filters in channels:
            layers += [nn.Conv2d(depth, filters, 5, padding=2), nn.MaxPool2d(2), nn.ReLU()]
            depth, height, width = filters, height // 2, width // 2
        if min(height, width) < 1:
            raise ValueError(
                f"in_shape: expected H and W of at least {2 ** len(channels)} for {len(channels)} poolings, "
                f"got {tuple(in_shape)}"
            )
        outputs = check_count("heads", heads) * _parameter_count(find_transform(transform))
        layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
        super().__init__(layers, in_shape, transform, heads, pooling=2 ** len(channels))
