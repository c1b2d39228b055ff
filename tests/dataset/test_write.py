from __future__ import annotations

from pathlib import Path

import av
import pytest
import torch

from timelapse.dataset.write import read_video, to_uint8, write_video


def clip(frames: int, height: int, width: int) -> torch.Tensor:
    """Smooth, coloured, moving, uneven in every direction; (T,3,H,W) in [-1,1]."""
    t, y, x = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (frames, height, width)), indexing="ij")
    return torch.stack([(3 * x + t).sin(), (2 * y - t).cos() * 0.7, 2 * t * x - 0.8], 1)


def test_lossless_is_the_clip_in_8_bit_at_any_size(tmp_path: Path):
    video = torch.rand(5, 3, 17, 23, generator=torch.Generator().manual_seed(0)) * 2 - 1
    write_video(tmp_path / "a.mkv", video, lossless=True)
    assert torch.equal(read_video(tmp_path / "a.mkv"), to_uint8(video))


@pytest.mark.parametrize("size", [(300, 260), (65, 47)])
def test_the_mp4_looks_like_the_clip(tmp_path: Path, size: tuple[int, int]):
    """Colours survive the matrix both ways; frames stay in order; small clips grow by a whole factor."""
    video = clip(9, *size)
    write_video(tmp_path / "a.mp4", video)
    shown = read_video(tmp_path / "a.mp4").float()
    factor = 1 if min(size) >= 256 else 6
    assert shown.shape == (9, 3, *(side * factor + side * factor % 2 for side in size))
    down = torch.nn.functional.interpolate(shown, size, mode="area")
    difference = (down - to_uint8(video)).abs()
    assert difference.mean() < 2 and (down - to_uint8(video)).mean().abs() < 0.5  # of 255


def test_the_mp4_plays_in_browsers(tmp_path: Path):
    write_video(tmp_path / "a.mp4", clip(9, 64, 64))
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 8 and stream.frames == 9
        assert stream.codec_context.colorspace == 1  # said, so that players do not guess
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # starts before it is loaded


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path):
    write_video(tmp_path / "a.mp4", clip(3, 32, 32))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ValueError, match="NaN"):
        write_video(tmp_path / "a.mp4", torch.full((3, 3, 32, 32), torch.nan))
    with pytest.raises(ValueError, match=".mkv with lossless"):
        write_video(tmp_path / "a.mp4", clip(3, 32, 32), lossless=True)
    with pytest.raises(ValueError, match=r"\(T,3,H,W\)"):
        write_video(tmp_path / "b.mp4", clip(3, 32, 32)[0])
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
