import pytest

from timelapse.dataset.footage import caption_for, clean_name, find_footage, read_captions, scan, unique_name


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_a_folder_of_videos_and_folders_of_photographs(tmp_path):
    touch(tmp_path, "a.mp4", "deep/er/b.MOV", "garden/1.jpg", "garden/2.JPG", "garden/night/3.png", "a.txt", ".hid.mp4")
    touch(tmp_path, ".thumbs/x.jpg", "slides.pptx", "deep/read.me")
    rows, skipped = scan(tmp_path)
    assert [(r["source"], r.get("frames")) for r in rows] == [
        ("a.mp4", None),
        ("deep/er/b.MOV", None),
        ("garden", ["garden/1.jpg", "garden/2.JPG"]),
        ("garden/night", ["garden/night/3.png"]),
    ]
    assert sorted(skipped) == [(p, "not a video or photograph") for p in ("deep/read.me", "slides.pptx")]


def test_links_in_the_users_own_folder_are_followed_once(tmp_path):
    touch(tmp_path, "disk/a.mp4", "root/b.mp4")
    (tmp_path / "root" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "root" / "up").symlink_to(tmp_path / "root")
    assert [r["source"] for r in scan(tmp_path / "root")[0]] == ["b.mp4", "disk/a.mp4"]


@pytest.mark.parametrize(
    "header, row",
    [
        ("videoid,name", 'rose_01,"opening, slowly"'),
        ("videoid,name,is_transmit", 'rose_01,"opening, slowly",1'),
        ("videoid,name,sub_category,main_category", 'rose_01,"opening, slowly",rose,biological'),
        ("\ufeffCaption,FILE", '"opening, slowly",rose_01'),
        ("index,path,text", '0,rose_01,"opening, slowly"'),
    ],
)
def test_the_header_of_a_caption_file_is_read(header, row, tmp_path):
    (tmp_path / "c.csv").write_text(f"{header}\n{row}\n\n", encoding="utf-8")
    assert read_captions(tmp_path / "c.csv") == [("rose_01", "opening, slowly")]


@pytest.mark.parametrize("header", ["videoid,title", "a,b", ""])
def test_a_caption_file_without_its_columns_says_what_it_has(header, tmp_path):
    (tmp_path / "c.csv").write_text(header)
    with pytest.raises(ValueError, match="videoid.*name"):
        read_captions(tmp_path / "c.csv")


def test_caption_rows_find_their_files(tmp_path):
    touch(tmp_path, "v/rose_01.mp4", "v/rose_02.webm", "x/twin.mp4", "y/twin.mp4", "garden/1.jpg", "unlisted.mp4")
    (tmp_path / "c.csv").write_text(
        "videoid,name\nrose_01,one\nv/rose_02.webm,two\nx/twin,three\ngarden,four\n"
        "twin,either\nmissing,none\nrose_01,again\n../c.csv,out\n"
    )
    base, rows, skipped = find_footage(tmp_path / "c.csv")
    assert base == tmp_path
    assert {r["source"]: r["caption"] for r in rows} == {
        "v/rose_01.mp4": "one",
        "v/rose_02.webm": "two",
        "x/twin.mp4": "three",
        "garden": "four",
    }
    reasons = {path: reason.split(":")[0] for path, reason in skipped}
    assert reasons == {
        "twin": "several files of that name",
        "missing": "caption row without file",
        "rose_01": "second caption row of the same file",
        "../c.csv": "path outside the root",
    }
    (tmp_path / "away").mkdir()
    (tmp_path / "c.csv").rename(tmp_path / "away" / "c.csv")
    assert find_footage(tmp_path, tmp_path / "away" / "c.csv")[1] == rows


def test_where_captions_come_from(tmp_path):
    touch(tmp_path, "red_rose.mp4", "my_garden/1.jpg", "IMG_20200501.mp4")
    video, garden = {"file": "red_rose.mp4"}, {"frames": ["my_garden/1.jpg"]}
    assert caption_for(tmp_path, video, None) == "red rose"
    assert caption_for(tmp_path, garden, None) == "my garden"
    assert caption_for(tmp_path, {"file": "IMG_20200501.mp4"}, None) == "a time-lapse"
    assert caption_for(tmp_path, video, "given") == "given"  # what was typed beats what was guessed
    (tmp_path / "red_rose.txt").write_text("a rose\n opens ")
    (tmp_path / "my_garden.txt").write_text("beside")
    assert caption_for(tmp_path, video, "given") == "a rose opens"
    assert caption_for(tmp_path, garden, "given") == "beside"
    (tmp_path / "my_garden" / "caption.txt").write_text("within")
    assert caption_for(tmp_path, garden, None) == "within"
    assert caption_for(tmp_path, {**video, "caption": "own"}, "given") == "own"


@pytest.mark.parametrize(
    "name, words",
    [
        ("plant_garden", "plant garden"),
        ("panda_001", "panda"),
        ("IMG_20200501_120000", ""),
        ("1588251633", ""),
        ("Größe-Blüte.02", "größe blüte"),
        ("3f2ab81c9d0e", ""),
        ("feedface tulip", "feedface tulip"),
    ],
)
def test_words_of_a_name(name, words):
    assert clean_name(name) == words


def test_names_are_safe_and_tell_equal_stems_apart():
    a, b = unique_name("vi deo/ä..", "x/video"), unique_name("vi deo/ä..", "y/video")
    assert a != b and a.startswith("vi-deo-") and a == unique_name("vi deo/ä..", "x/video")
    assert unique_name("花", "花").startswith("clip-")


@pytest.mark.parametrize("name", ["nothing", "notes.txt"])
def test_a_root_that_is_no_footage(name, tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=f"dataset.root=.*{name} .*expected a folder"):
        find_footage(tmp_path / name)
