import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from timelapse.encoder.grid import after_first, encoder_pixels, to_grid


def ramp(t, h, w):
    """A feature whose three channels are the cell-centre coordinates in [0,1]."""
    axes = [(torch.arange(n) + 0.5) / n for n in (t, h, w)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None].double()


def test_equal_grids_only_flatten_in_order_t_h_w():
    x = torch.randn(2, 3, 4, 5, 7)
    assert torch.equal(to_grid(x, (3, 4, 5)), x.flatten(1, 3))


def test_coarser_grid_is_the_mean_of_its_cells():
    x = torch.randn(2, 8, 6, 4, 3, dtype=torch.float64)
    want = x.view(2, 4, 2, 3, 2, 2, 2, 3).mean((2, 4, 6)).flatten(1, 3)
    torch.testing.assert_close(to_grid(x, (4, 3, 2)), want)


def test_a_token_keeps_its_place_when_axes_grow_and_shrink():
    # Linear functions of position come through exactly, except within half a coarse cell of a border that grew.
    out = to_grid(ramp(24, 16, 16), (12, 32, 48)).unflatten(1, (12, 32, 48))
    want = ramp(12, 32, 48)
    torch.testing.assert_close(out[:, :, 1:-1, 1:-1], want[:, :, 1:-1, 1:-1])


def test_first_frame_is_dropped_and_uneven_clips_are_refused():
    video = torch.randn(1, 17, 3, 4, 4)
    assert torch.equal(after_first(video, (5, 2, 2), 2), video[:, 1:])
    with pytest.raises(ValueError, match="do not match 5 latent frames"):
        after_first(video[:, :16], (5, 2, 2))
    with pytest.raises(ValueError, match="tubelet of 2"):
        after_first(video[:, :4], (4, 2, 2), 2)  # 3 frames for 3 latents fit, but not into pairs


class OnApple(TorchDispatchMode):
    """Refuses what PyTorch has not on Apple's GPUs."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "adaptive_avg_pool3d" in str(func):
            raise AssertionError(str(func))
        return func(*args, **(kwargs or {}))


def test_a_coarser_grid_is_the_adaptive_mean_without_the_operation_that_apple_lacks():
    x = torch.randn(2, 7, 6, 5, 3, dtype=torch.float64)
    want = F.adaptive_avg_pool3d(x.movedim(-1, 1), (3, 4, 5)).flatten(2).mT
    with OnApple():
        torch.testing.assert_close(to_grid(x, (3, 4, 5)), want)


def test_pixels_are_normalised_by_imagenet_and_squeezed_not_cropped():
    grey = torch.full((1, 2, 3, 30, 50), -1.0)
    grey[:, :, :, :, 25:] = 1.0
    pixels = encoder_pixels(grey, (16, 16))
    assert pixels.shape == (1, 2, 3, 16, 16)
    torch.testing.assert_close(pixels[0, 0, :, 0, 0], -torch.tensor([0.485 / 0.229, 0.456 / 0.224, 0.406 / 0.225]))
    torch.testing.assert_close(pixels[0, 0, 0, 0, -1], torch.tensor((1 - 0.485) / 0.229))
