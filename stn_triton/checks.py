"""Checks of arguments, whose errors name the argument, what was expected and what was got."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_image(name: str, value: Any) -> None:
    """Raises TypeError unless a floating-point tensor, ValueError unless (N, C, H, W) with pixels."""
    check_tensor(name, value)
    if value.dim() != 4 or 0 in value.shape[2:]:
        raise ValueError(f"{name}: expected shape (N, C, H, W) with H and W at least 1, got {tuple(value.shape)}")


def check_tensor(name: str, value: Any, dtype_error: type[Exception] = TypeError) -> None:
    """Raises TypeError unless a strided tensor, ``dtype_error`` unless of a floating-point type we compute with."""
    check_dense(name, value)
    check_dtype(name, value.dtype, dtype_error)


def check_dense(name: str, value: Any) -> None:
    """Raises TypeError unless a strided tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name}: expected a dense tensor (torch.strided), got {kind}")


def check_dtype(name: str, dtype: Any, error: type[Exception] = TypeError) -> None:
    """Raises ``error`` unless a floating-point type we compute with."""
    if dtype not in DTYPES:
        raise error(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {dtype}")


def check_device(device: Any) -> torch.device:
    """The device that is named; raises ValueError for what names none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected a torch.device or its name, got {device!r}") from None


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless value is one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_bool(name: str, value: Any) -> bool:
    """The value as a bool; raises TypeError for what is none, a string above all."""
    try:
        if operator.index(value) in (0, 1):
            return bool(value)
    except TypeError:
        pass
    if type(value).__name__ in ("bool", "bool_"):  # numpy's has no index
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {value!r}")


def check_fill(fill: Any, padding_mode: str) -> None:
    """Raises ValueError unless a fill is given with, and only with, its padding mode."""
    if padding_mode == "fill" and fill is None:
        raise ValueError("fill: expected a number, C numbers or a tensor with padding_mode 'fill', got None")
    if padding_mode != "fill" and fill is not None:
        raise ValueError(f"fill: expected padding_mode 'fill' with it, got {padding_mode!r}")


def check_count(name: str, value: Any) -> int:
    """The value as an int; raises TypeError unless a whole number, ValueError unless at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected a whole number, got {value!r}") from None
    if number < 1:
        raise ValueError(f"{name}: expected at least 1, got {number}")
    return number


def check_size(size: Any, name: str = "size", least: int = 0) -> tuple[int, int]:
    """(h, w) as ints; raises TypeError unless whole numbers, ValueError unless two of them, none below ``least``."""
    numbers = whole_numbers(size, name)
    if len(numbers) != 2 or min(numbers) < least:
        raise ValueError(f"{name}: expected two numbers (h, w) of at least {least}, got {size!r}")
    return numbers[0], numbers[1]


def whole_numbers(size: Any, name: str = "size") -> tuple[int, ...]:
    """The sequence as ints; raises TypeError unless whole numbers."""
    try:
        # An int stays what it is: under torch.compile a symbol, which operator.index would make a constant.
        numbers = tuple(n if isinstance(n, int) else operator.index(n) for n in size)
        if any(isinstance(n, bool) for n in numbers):
            raise TypeError
        return numbers
    except TypeError:
        raise TypeError(f"{name}: expected a sequence of whole numbers, got {size!r}") from None
