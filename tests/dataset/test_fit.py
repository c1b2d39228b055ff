import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from timelapse.dataset.fit import crop_box, describe_fit, fit, load_image, to_unit


def disc(width, height, radius_x, radius_y):
    image = Image.new("RGB", (width, height))
    cx, cy = width / 2, height / 2
    ImageDraw.Draw(image).ellipse((cx - radius_x, cy - radius_y, cx + radius_x, cy + radius_y), fill="white")
    return torch.from_numpy(np.array(image))


def spread(picture):
    """Standard deviation of the bright mass along x and y, of (3,H,W)."""
    mass = picture[0].double()
    y, x = torch.meshgrid(*(torch.arange(n).double() for n in mass.shape), indexing="ij")
    deviation = lambda c: ((mass * (c - (mass * c).sum() / mass.sum()) ** 2).sum() / mass.sum()).sqrt().item()
    return deviation(x), deviation(y)


@pytest.mark.parametrize("how", ["crop", "pad"])
@pytest.mark.parametrize("size", [(64, 128), (128, 64), (64, 64), (90, 51)])
@pytest.mark.parametrize("source", [(600, 400), (211, 503)])
def test_a_circle_stays_a_circle(how, size, source):
    across, down = spread(fit(disc(*source, 45, 45), *size, how))
    assert across == pytest.approx(down, rel=0.02)


def test_anamorphic_pixels_are_made_square():
    stored = disc(540, 576, 90, 120)  # each pixel 4/3 as wide as high: a circle of radius 120 on the screen
    for how in ("crop", "pad"):
        across, down = spread(fit(stored, 96, 128, how, pixel_aspect=4 / 3))
        assert across == pytest.approx(down, rel=0.02)


def test_equals_pillow_antialiased_bilinear():
    picture = np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8)
    left, top, w, h = crop_box(160, 90, 24, 32)
    pillow = Image.fromarray(picture).crop((left, top, left + w, top + h)).resize((24, 32), Image.BILINEAR)
    ours = fit(torch.from_numpy(picture), 32, 24).permute(1, 2, 0).numpy()
    assert np.abs(ours.astype(int) - np.asarray(pillow)).max() <= 1


def test_shrinking_averages_instead_of_picking_pixels():
    board = torch.zeros(256, 256, 3, dtype=torch.uint8)
    board[::2, ::2], board[1::2, 1::2] = 200, 200
    assert (fit(board, 16, 16).int() - 100).abs().max() <= 2


def test_crop_keeps_the_centre_and_pad_keeps_all():
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    picture[:, :20], picture[:, 60:] = 255, 255  # both ends bright, the middle square dark
    assert fit(picture, 20, 20).max() == 0
    padded = fit(picture, 20, 20, "pad")
    assert padded[:, :5].max() == 0 and padded[:, 15:].max() == 0  # bars above and below
    assert padded[:, 5:15].float().mean() == pytest.approx(127.5, rel=0.02)


def test_unit_range_and_unknown_way():
    assert to_unit(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    with pytest.raises(ValueError, match="dataset.fit=crop"):
        fit(torch.zeros(4, 4, 3, dtype=torch.uint8), 2, 2, "stretch")


def test_what_is_said_matches_what_is_done(tmp_path):
    Image.new("RGB", (400, 200), "red").save(tmp_path / "a.png")
    picture, said = load_image(tmp_path / "a.png", 64, 64)
    assert picture.shape == (3, 64, 64) and torch.equal(picture[:, 0, 0], torch.tensor([1.0, -1, -1]))
    assert "400x200" in said and "centre 200x200 from (100,0), 50% of the picture" in said
    assert "black bars on 50%" in describe_fit(400, 200, 64, 64, "pad")
    assert "enlarged 4.0 times" in describe_fit(16, 16, 64, 64)
    with pytest.raises(FileNotFoundError, match="none.jpg"):
        load_image(tmp_path / "none.jpg", 64, 64)
