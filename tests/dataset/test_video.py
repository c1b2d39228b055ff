import gc
import multiprocessing
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from timelapse.dataset import video
from timelapse.dataset.video import probe, read_frames

needs_decord = pytest.mark.skipif(video.decord is None, reason="no decord wheel for this platform")


def one_by_one(path):
    """Every frame as PyAV decodes it from the start: the reference."""
    with av.open(str(path)) as container:
        return [video._rgb(frame) for frame in container.decode(video=0)]


def read(path, seen, indices):
    return list(read_frames(path, seen, indices))


@pytest.mark.parametrize("width", [64, 62])  # PyAV pads rows to a multiple of 16 pixels
def test_any_width_is_read(tmp_path, make_video, width):
    path = make_video(tmp_path / "a.mkv", frames=5, width=width)
    shown = read(path, probe(path), [0, 3])
    assert [f.shape for f in shown] == [(48, width, 3)] * 2 and all(f.flags.c_contiguous for f in shown)
    assert [round((float(f.mean()) - 10) / 6) for f in shown] == [0, 3]


@needs_decord
@pytest.mark.decord
def test_decord_equals_pyav_bit_by_bit_on_h264(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=40, textured=True)
    seen, truth, indices = probe(path), one_by_one(path), [0, 3, 11, 12, 13, 30, 39]
    assert seen.reader == "decord" and len(truth) == 40
    by_decord, by_pyav = read(path, seen, indices), read(path, replace(seen, reader="pyav"), indices)
    for i, a, b in zip(indices, by_decord, by_pyav):
        assert np.array_equal(a, b) and np.array_equal(a, truth[i])


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("open_gop.mp4", "libx264", {"bf": 3, "x264-params": "open-gop=1:scenecut=0"}),
        ("b_frames.avi", "mpeg4", {"bf": 2}),
        ("stream.ts", "libx264", {}),
        ("stream.mpg", "mpeg2video", {}),
        ("a.webm", "libvpx-vp9", {"cpu-used": 8, "deadline": "realtime"}),
        ("av1.mkv", "libsvtav1", {"preset": 12, "svtav1-params": "lp=1"}),
    ],
)
def test_the_right_frames_where_decord_is_wrong_or_blind(name, codec, options, tmp_path, make_video):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    rate = 25 if name.endswith("mpg") else 10  # MPEG-2 knows few rates
    path = make_video(tmp_path / name, frames=36, textured=True, codec=codec, rate=rate, **options)
    seen, truth = probe(path), one_by_one(path)
    assert len(seen.times()) == len(truth) == 36
    assert np.allclose(seen.times(), np.arange(36) / rate, atol=0.002) and seen.fps == pytest.approx(rate, rel=0.01)
    for indices in ([0, 5, 13, 14, 25, 35], [30], [12, 13]):
        for i, frame in zip(indices, read(path, seen, indices)):
            assert np.array_equal(frame, truth[i])


def test_an_edit_list_hides_frames(tmp_path, make_video):
    whole = make_video(tmp_path / "whole.mp4", frames=30, textured=True, gop=10)
    truth = one_by_one(whole)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "trimmed.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        shift = int(0.5 / source.streams.video[0].time_base)  # half a second: five frames
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    seen = probe(tmp_path / "trimmed.mp4")
    assert len(seen.times()) == 25
    for i, frame in zip([0, 4, 6, 24], read(tmp_path / "trimmed.mp4", seen, [0, 4, 6, 24])):
        assert np.array_equal(frame, truth[i + 5])


def test_times_of_a_video_with_uneven_frames(make_uneven, tmp_path):
    seen = probe(make_uneven(tmp_path / "uneven.mkv", frames=6, after=0.3, slower=3))
    assert np.allclose(seen.times(), [0, 0.1, 0.2, 0.9, 1.2, 1.5], atol=0.002)


def test_a_turned_phone_video_is_read_upright(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=5, width=64, height=32, textured=True)
    flat = one_by_one(path)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO 14496-12: version 0 keeps its matrix here
    quarter = [0, 1 << 16, 0, -(1 << 16) & 0xFFFFFFFF, 0, 0, 0, 0, 1 << 30]  # a quarter turn clockwise
    data[matrix : matrix + 36] = b"".join(n.to_bytes(4, "big") for n in quarter)
    path.write_bytes(data)
    seen = probe(path)
    assert (seen.width, seen.height) == (32, 64)
    for i, frame in zip([0, 4], read(path, seen, [0, 4])):
        assert np.array_equal(frame, np.rot90(flat[i], -1))


@pytest.mark.parametrize("a, b, c, d", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_a_mirrored_video_is_mirrored(a, b, c, d, tmp_path, make_video):
    """ISO 14496-12: the pixel (x,y) is shown at (a x + c y, b x + d y)."""
    path = make_video(tmp_path / "a.mp4", frames=5, width=64, height=32, textured=True)
    flat = one_by_one(path)[4]
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turn = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join((n & 0xFFFFFFFF).to_bytes(4, "big") for n in turn)
    path.write_bytes(data)
    shown = flat if a or d else flat.transpose(1, 0, 2)
    shown = shown[:, ::-1] if a < 0 or c < 0 else shown
    shown = shown[::-1] if d < 0 or b < 0 else shown
    assert np.array_equal(read(path, probe(path), [4])[0], shown)


@pytest.mark.parametrize("check", ["full", "probe"])
def test_an_avi_whose_times_are_those_of_other_frames_is_refused(check, tmp_path, make_video):
    """AVI has no presentation times, so that reordered h264 comes out under its neighbours' numbers."""
    with pytest.raises(ValueError, match="no frame times: encode the file again"):
        probe(make_video(tmp_path / "a.avi", frames=36, textured=True, bf=2), check)
    seen = probe(make_video(tmp_path / "b.avi", frames=36, textured=True, bf=0), check)
    assert len(seen.times()) == 36


@pytest.mark.parametrize("check", ["full", "probe"])
def test_places_that_an_avi_leaves_empty_are_no_damage(check, tmp_path, make_video):
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * n, np.uint8), format="rgb24")
            frame.pts, frame.time_base = 2 * n, Fraction(1, 10)  # every other place is empty
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    seen = probe(tmp_path / "a.avi", check)
    assert np.allclose(np.diff(seen.times()), 0.2) and len(seen.times()) == 12


def test_a_forked_worker_leaves_codecs_alone_that_its_parent_dropped(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=20)
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            ring = [av.open(str(path))]
            ring[0].streams.video[0].thread_type = "AUTO"
            ring += [ring[0].decode(video=0), ring]  # garbage that only a collection finds
            next(ring[1])
            del ring
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join(20)
        code = child.exitcode
        child.kill()
    finally:
        gc.enable()
    assert code == 0


def test_anamorphic_video_knows_the_shape_of_its_pixels(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    assert probe(tmp_path / "a.mkv").pixel_aspect == pytest.approx(4 / 3)


def test_bad_files_say_why(tmp_path, make_video):
    good = make_video(tmp_path / "good.mp4", frames=30, textured=True, movflags="faststart").read_bytes()
    late_index = make_video(tmp_path / "late.mp4", frames=30, textured=True).read_bytes()
    hole = bytearray(good)
    hole[len(good) // 2 : len(good) // 2 + len(good) // 4] = bytes(len(good) // 4)
    for name, content, check, reason in [
        ("empty.mp4", b"", "none", "empty file"),
        ("text.mp4", b"this is no video", "none", "not a readable video"),
        ("no_index.mp4", late_index[: len(late_index) * 2 // 3], "none", "not a readable video"),
        ("cut.mp4", good[: len(good) * 2 // 3], "full", "damaged|not a readable"),
        ("cut.mp4", good[: len(good) * 2 // 3], "probe", "damaged|not a readable"),
        ("hole.mp4", bytes(hole), "full", "damaged"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason) as error:
            probe(tmp_path / name, check)
        assert "\n" not in str(error.value)


def test_light_damage_that_decord_swallows_is_found(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=30, textured=True, width=320, height=240, movflags="faststart")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 2000
    for at in np.random.default_rng(0).integers(start, len(data), 40):
        data[at] ^= 1 << int(at % 8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        probe(path)
    assert probe(path, "probe").reader == "pyav"  # looks whole from outside; nobody vouches for decord


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match="no video stream"):
        probe(tmp_path / "a.mp4")


def test_a_file_that_went_away_is_named(tmp_path, make_video):
    path = make_video(tmp_path / "a.mp4", frames=5)
    seen = probe(path)
    path.write_bytes(path.read_bytes()[:600])
    for reader in ("pyav", seen.reader):
        with pytest.raises(OSError, match="a.mp4"):
            read(path, replace(seen, reader=reader), [0, 4])
    path.unlink()
    for reader in ("pyav", seen.reader):
        with pytest.raises(OSError, match="a.mp4"):
            read(path, replace(seen, reader=reader), [0])


@pytest.mark.parametrize("check", ["full", "probe"])
def test_a_file_that_counts_no_frames_and_ends_before_its_length_is_cut_short(tmp_path, make_video, check):
    """Matroska: what is left of it decodes without an error."""
    path = make_video(tmp_path / "a.mkv", frames=40, textured=True)
    assert len(probe(path, check).times()) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"damaged: it ends after [12]\.\d of 4\.0 s"):
        probe(path, check)
    assert len(probe(path, "none").times()) < 30
