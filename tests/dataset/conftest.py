"""Footage made on the spot: every frame and photograph carries its number as a grey level."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

LEVEL = 6  # grey levels between neighbouring frames; number n is grey 10 + 6 n, so up to 40 frames


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """The index of checked files never lands in the user's home."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_video():
    def make(path, frames=20, width=64, height=48, codec="libx264", gop=12, textured=False, rate=10, **options) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 255, (height // 4, (width + 4 * frames) // 4, 3), dtype=np.uint8)
        scene = np.asarray(Image.fromarray(noise).resize((width + 4 * frames, height), Image.BICUBIC))
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
            stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", gop
            for n in range(frames):
                flat = np.full((height, width, 3), 10 + LEVEL * n, np.uint8)
                picture = np.ascontiguousarray(scene[:, 4 * n : 4 * n + width]) if textured else flat
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture
def make_uneven(make_video):
    """A video of 10 frames a second, whose times from `after` seconds on are `slower` times as large."""

    def make(path, frames, after, slower) -> Path:
        even = make_video(path.with_suffix(".mp4"), frames=frames, rate=10)
        with av.open(str(even)) as source, av.open(str(path), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    factor = slower if packet.pts * source.streams.video[0].time_base >= after else 1
                    packet.pts, packet.dts, packet.stream = packet.pts * factor, None, stream
                    target.mux(packet)
        even.unlink()
        return path

    return make


@pytest.fixture
def make_photo():
    def make(path, number=0, size=(40, 30), exif=None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 + LEVEL * number,) * 3).save(path, **({"exif": exif} if exif else {}))
        return path

    return make


@pytest.fixture
def number_of():
    """Number of a flat frame (3,H,W) in [-1,1]."""
    return lambda frame: round(((float(frame.mean()) + 1) * 127.5 - 10) / LEVEL)
