import time

import numpy as np
import pytest
from PIL import Image

from timelapse.dataset.photos import EXIF_IFD, capture_times, name_seconds, natural, probe, read_photo

NOON = 1588334400.0  # 2020-05-01 12:00:00 as UTC


@pytest.mark.parametrize(
    "name, seconds",
    [
        ("1588251633.jpg", 1588251633.0),
        ("cam2_1588251633.jpg", 1588251633.0),
        ("1588251633250.jpg", 1588251633.25),
        ("2020-05-01T12-00-00.jpg", NOON),
        ("2020-05-01T12:00:00Z.jpg", NOON),
        ("2020-05-01 12.00.00.jpg", NOON),
        ("2020_05_01_12_00.png", NOON),
        ("IMG_20200501_120000.jpg", NOON),
        ("IMG_20200501_120000_1.jpg", NOON),
        ("PXL_20200501_120000123.jpg", NOON + 0.123),
        ("20200501120000.jpg", NOON),
        ("2020-05-01.jpg", NOON - 43200),
        ("garden-20200501.jpg", NOON - 43200),
        ("2020-02-31.jpg", None),
        ("frame_0001.jpg", None),
        ("DSC01234.jpg", None),
        ("1000003456.jpg", None),  # Android's running number, not September 2001
        ("12345678901234567.jpg", None),
    ],
)
def test_time_in_a_file_name(name, seconds):
    assert name_seconds(name) == (pytest.approx(seconds, abs=1e-4) if seconds is not None else None)


def exif_of(text, orientation=1, subseconds=None):
    exif = Image.Exif()
    exif[0x0112] = orientation
    inner = exif.get_ifd(EXIF_IFD)
    inner[0x9003] = text
    if subseconds:
        inner[0x9291] = subseconds
    return exif


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_no_time_zone_enters(zone, monkeypatch, tmp_path):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        # 02:30 on 8 March 2020 does not exist in New York.
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif_of("2020:03:08 02:30:00", subseconds="50"))
        assert probe(tmp_path / "a.jpg").taken == 1583634600.5
        assert name_seconds("20200308_033000") - name_seconds("20200308_023000") == 3600
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["0000:00:00 00:00:00", "yesterday", ""])
def test_a_clock_that_was_never_set_is_no_time(text, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif_of(text))
    assert probe(tmp_path / "a.jpg").taken is None


def test_one_rule_serves_a_folder():
    names = ["1588251633.jpg", "1588251733.jpg", "1588251833.jpg"]
    assert capture_times(names, [None] * 3)[1] == "file name"
    assert capture_times(names, [1.0, 5.0, 9.0]) == ([1.0, 5.0, 9.0], "EXIF")
    assert capture_times(names, [7.0, 7.0, 7.0])[1] == "file name"  # an editor's date on every picture
    assert capture_times(names, [1.0, None, None], 60)[1] == "file name"
    assert capture_times(["img10.jpg", "img2.jpg"], [None] * 2) == ([None, None], "nothing")
    assert sorted(["img10", "img2", "img1"], key=natural) == ["img1", "img2", "img10"]


def test_running_numbers_behind_a_date_are_no_time_of_day():
    names = [f"plant_20200501_{n:04d}.jpg" for n in range(1, 121)]
    assert capture_times(names, [None] * 120, 600) == ([600.0 * n for n in range(120)], "photo_interval")
    assert capture_times(names, [None] * 120)[1] == "nothing"
    clock = ["a_20200501_0600.jpg", "a_20200501_1800.jpg"]
    for beside in ("cover_2020-04-30.jpg", "IMG-20200430-WA0003.jpg"):  # has no number where others have the hour
        assert capture_times([*clock, beside], [None] * 3)[0][:2] == capture_times(clock, [None] * 2)[0]
    times, rule = capture_times(clock, [None] * 2, 600)
    assert times[1] - times[0] == 12 * 3600 and rule == "file name"


def test_an_interval_counts_photographs_in_the_order_they_are_given_in():
    names = ["day1/0.png", "day1/1.png", "day2/0.png"]
    assert capture_times(names, [None] * 3, 5)[0] == [0.0, 5.0, 10.0]


def test_photographs_are_read_upright(tmp_path):
    picture = np.zeros((400, 800, 3), np.uint8)
    picture[:, :400] = 255  # bright left half as stored; turned clockwise (6) it is the upper half
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif_of("2020:05:01 12:00:00", orientation=6))
    assert (probe(tmp_path / "a.jpg").width, probe(tmp_path / "a.jpg").height) == (400, 800)
    for size in (16, 500):  # decoded small and decoded whole
        upright = read_photo(tmp_path / "a.jpg", size, size)
        height, width = upright.shape[:2]
        assert height == 2 * width and upright[: height // 3].min() > 240 and upright[-height // 3 :].max() < 15


def test_grey_of_16_bits_is_turned_upright(tmp_path):
    exif = exif_of("2020:05:01 12:00:00", orientation=6)
    Image.fromarray(np.full((20, 40), 9, np.uint16)).save(tmp_path / "a.png", exif=exif)
    assert (probe(tmp_path / "a.png").width, probe(tmp_path / "a.png").height) == (20, 40)
    assert read_photo(tmp_path / "a.png", 20, 20).shape == (40, 20, 3)


def test_grey_of_16_bits_keeps_its_shades(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png", 2, 2)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_bad_photographs_say_why(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    for name, content, reason in [
        ("empty.jpg", b"", "empty file"),
        ("text.jpg", b"not a picture", "not a readable photograph"),
        ("cut.jpg", data[: len(data) // 2], "not a readable photograph: .*truncated"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=reason) as error:
            probe(tmp_path / name)
        assert "\n" not in str(error.value)
        with pytest.raises(OSError, match=name):
            read_photo(tmp_path / name, 8, 8)
