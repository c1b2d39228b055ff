import errno
import os

import pytest
from PIL import Image

from timelapse.dataset.index import check_files, default_index
from timelapse.dataset.photos import Photo
from timelapse.dataset.video import Video


def keep_looks(path, content):
    """Write other bytes behind the same size and modification time."""
    before = path.stat()
    path.write_bytes(content.ljust(before.st_size, b"x")[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_is_read_once(tmp_path, make_video, make_photo):
    video, photo = make_video(tmp_path / "a.mp4", frames=7), make_photo(tmp_path / "1588251633.jpg")
    (tmp_path / "bad.mp4").write_text("no video")
    paths, index = [video, photo, tmp_path / "bad.mp4"], tmp_path / "seen" / "index.jsonl"
    first = check_files(paths, index=index)
    assert isinstance(first[video], Video) and len(first[video].times()) == 7
    assert first[photo] == Photo(40, 30, None) and first[paths[2]].startswith("not a readable video")
    for path in paths:
        keep_looks(path, b"gone")
    assert check_files(paths, index=index) == first  # nobody looked inside again
    assert check_files([video], check="probe", index=index)[video] != first[video]  # another check is another question
    os.utime(video, ns=(0, 0))
    assert isinstance(check_files([video], index=index)[video], str)


def test_a_torn_index_costs_only_its_last_file(tmp_path, make_photo):
    paths, index = [make_photo(tmp_path / f"{n}.jpg", n) for n in range(3)], tmp_path / "index.jsonl"
    first = check_files(paths, index=index)
    lines = index.read_text().splitlines()
    index.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    keep_looks(paths[0], b"gone")
    assert check_files(paths, index=index) == first
    assert check_files(paths, index=index) == first


def test_an_index_that_cannot_be_written_stops_nothing(tmp_path, make_photo, caplog):
    (tmp_path / "file").touch()
    path = make_photo(tmp_path / "a.jpg")
    assert check_files([path], index=tmp_path / "file" / "index.jsonl")[path] == Photo(40, 30, None)
    assert "dataset.index" in caplog.text


def test_a_missing_file_is_not_remembered_as_bad(tmp_path, make_photo):
    path, index = tmp_path / "a.jpg", tmp_path / "index.jsonl"
    assert check_files([path], index=index)[path] == "no such file"
    Image.new("RGB", (9, 8)).save(path)
    assert check_files([path], index=index)[path] == Photo(9, 8, None)


@pytest.mark.parametrize("name", ["a.jpg", "a.mp4"])
def test_a_file_that_may_not_be_opened_today_is_looked_at_again(name, tmp_path, make_photo, make_video, monkeypatch):
    path, index = tmp_path / name, tmp_path / "index.jsonl"
    (make_photo if name == "a.jpg" else make_video)(path)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # root may open everything: chmod would not do
        patched.setattr("timelapse.dataset.photos.Image.open", refuse)
        patched.setattr("timelapse.dataset.video.av.open", refuse)
        assert "Permission denied" in check_files([path], index=index)[path]
    assert isinstance(check_files([path], index=index)[path], Photo | Video)


def test_each_root_has_its_own_index_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_index(tmp_path / "a").is_relative_to(tmp_path)
    assert default_index(tmp_path / "a") != default_index(tmp_path / "b")


def test_unknown_check():
    with pytest.raises(ValueError, match="dataset.check=full"):
        check_files([], check="fast")
