"""The user's choice between kernels and torch operations, and the fallback where Triton cannot compile."""

import threading
import warnings

import pytest
import torch

from stn_triton import SpatialTransformer, affine_sample, backend, use_backend


@pytest.fixture
def warp(kernel_path):
    image = torch.rand(1, 2, 4, 5, device=kernel_path.device, requires_grad=True)
    theta = 0.9 * torch.eye(2, 3, device=kernel_path.device)[None]
    return lambda: affine_sample(image, theta)


@pytest.fixture
def probe(monkeypatch):
    """Replaces the probe kernel by one that raises ``error``, and clears what was found before."""

    class Probe:
        def __init__(self, error):
            self.error, self.launches = error, 0

        def __getitem__(self, grid):
            def run(*args, **options):
                self.launches += 1
                if self.error:
                    raise self.error

            return run

    def set_probe(error):
        fake = Probe(error)
        monkeypatch.setattr(backend, "probe", fake)
        monkeypatch.setattr(backend, "interprets", lambda kernel: True)
        return fake

    for cached in (backend.reason_against, backend._warn_once):
        cached.cache_clear()
    yield set_probe
    for cached in (backend.reason_against, backend._warn_once):
        cached.cache_clear()


def test_the_backend_is_a_choice(warp, launches):
    by_kernels = warp()
    assert launches
    launches.clear()
    with use_backend("torch"):
        by_operations = warp()
        with use_backend("auto"):
            warp()
            assert launches
            launches.clear()
        warp().sum().backward()
    assert not launches
    torch.testing.assert_close(by_operations, by_kernels)
    with use_backend("triton"):
        warp()
    assert launches


def test_a_backward_pass_goes_the_way_of_its_forward_pass(warp, launches):
    out = warp()
    launches.clear()
    with use_backend("torch"):
        out.sum().backward()
    assert launches


def test_the_choice_is_of_one_thread(warp, launches):
    with use_backend("torch"):
        thread = threading.Thread(target=warp)
        thread.start()
        thread.join()
    assert launches


def test_the_choice_ends_with_an_error(warp, launches):
    with pytest.raises(ZeroDivisionError), use_backend("torch"):
        raise ZeroDivisionError
    warp()
    assert launches


def test_kernels_that_are_required_and_do_not_run(torch_path, monkeypatch):
    monkeypatch.setattr(backend, "reason_against", lambda device: "the moon")
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"'triton', got cpu: the moon"):
        backend.kernels_run_on(torch.device("cpu"))


@pytest.mark.parametrize("name", ["cuda", None, ""])
def test_another_backend(name):
    with pytest.raises(ValueError, match="backend: expected one of 'auto', 'torch', 'triton'"), use_backend(name):
        pass


@pytest.mark.parametrize("error", [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nmore"),
    PermissionError(13, "Permission denied", "/root/.triton"),
    ImportError("libtriton.so: undefined symbol"),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_triton_that_cannot_compile(warp, launches, probe, error):
    """One attempt, one warning with its reason at the caller's own line, and torch operations from then on."""
    attempts = probe(error)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = warp()
        torch.testing.assert_close(warp(), expected)
        SpatialTransformer(lambda image: torch.eye(2, 3)[None])(torch.rand(1, 1, 2, 2))
    assert not launches
    assert attempts.launches == 1
    (warning,) = caught
    assert warning.filename == __file__
    message = str(warning.message)
    reason = f"Triton cannot compile or launch ({type(error).__name__}: "
    assert message.startswith(f"stn_triton uses torch operations on {expected.device.type}: {reason}")
    assert str(error).partition("\n")[0] in message
    assert "\n" not in message


@pytest.mark.parametrize("capturing", [False, True])
def test_a_failure_that_passes(warp, launches, probe, monkeypatch, capturing):
    """Memory that is missing for a moment, or a CUDA graph being captured, does not decide for the whole process."""
    probe(RuntimeError("stream is capturing") if capturing else torch.OutOfMemoryError())
    if capturing:
        monkeypatch.setattr(backend, "_is_capturing", lambda device: True)
    with pytest.raises(RuntimeError):
        warp()
    probe(None)
    warp()
    assert launches


def test_triton_that_compiles_is_asked_once(warp, launches, probe):
    attempts = probe(None)
    for _ in range(3):
        warp()
    assert attempts.launches == 1
    assert len(launches) == 3


def test_a_gpu_that_triton_does_not_know(probe, monkeypatch):
    attempts = probe(None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "compute capability 7.0 and above, and this GPU has 6.1" in backend.reason_against(torch.device("cuda", 0))
    assert not attempts.launches


def test_the_environment_chooses():
    from test_import import run

    code = """
        import stn_triton
        from stn_triton import backend
        print(backend._backend.get())
        try:
            import torch
            print(stn_triton.launch.takes(torch.device("cpu")))
        except RuntimeError as error:
            print(error)
    """
    assert run(code, STN_TRITON_BACKEND="torch").split() == ["torch", "False"]
    assert run(code, STN_TRITON_BACKEND="").split()[0] == "auto"
    assert "backend: expected a device where the kernels run" in run(code, STN_TRITON_BACKEND="triton")
    with pytest.raises(
        AssertionError, match="STN_TRITON_BACKEND: expected one of 'auto', 'torch', 'triton', got 'cuda'"
    ):
        run(code, STN_TRITON_BACKEND="cuda")
