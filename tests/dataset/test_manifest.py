import json

import pytest

from timelapse.dataset.manifest import FIELDS, inside, read_manifest, write_manifest

ROW = {
    "id": "rose-1",
    "source": "rose",
    "file": "videos/rose.mp4",
    "seconds": [0.5, 9.0],
    "fps": 0.0033,
    "caption": "a rose – “blühend”",
    "accepted_by": "keywords",
    "split": "val",
}
PHOTOS = {"id": "garden", "frames": ["garden/a.jpg", "garden/b.jpg"], "seconds": [0.0, 86400.5], "votes": 2}


def test_rows_come_back_as_written(tmp_path):
    write_manifest(tmp_path / "new" / "manifest.jsonl", [ROW, PHOTOS])
    rows = read_manifest(tmp_path / "new" / "manifest.jsonl")
    assert rows == [{**dict.fromkeys(FIELDS), **ROW}, {**dict.fromkeys(FIELDS), **PHOTOS}]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["manifest.jsonl"]  # no half-written leftover


def test_a_caption_with_a_line_end_of_another_kind_stays_on_its_line(tmp_path):
    write_manifest(tmp_path / "m.jsonl", [ROW | {"caption": "a rose\u2028opens\u0085"}])
    assert read_manifest(tmp_path / "m.jsonl")[0]["caption"] == "a rose\u2028opens\u0085"


@pytest.mark.parametrize(
    "path",
    ["../a.mp4", "/etc/passwd", "b/../../a.mp4", "C:\\a.mp4", "\\\\host\\a.mp4", "b\\..\\..\\a.mp4", "link/a.mp4"],
)
def test_paths_stay_inside_their_root(path, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.mp4").touch()
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="leaves its root"):
        inside(root, path)
    for row in ({"id": "x", "file": path}, {"id": "x", "frames": ["a.jpg", path]}):
        with pytest.raises(ValueError, match="leaves its root"):
            write_manifest(root / "manifest.jsonl", [row])
        (root / "manifest.jsonl").write_text("\n" + json.dumps(row) + "\n")
        with pytest.raises(ValueError, match="line 2.*leaves its root"):
            read_manifest(root / "manifest.jsonl")


def test_harmless_paths_are_let_in(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "real.mp4").touch()
    (tmp_path / "a.mp4").symlink_to(tmp_path / "b" / "real.mp4")
    for path in ("a.mp4", "b/real.mp4", "b/..a.mp4", "not/there.mp4"):
        assert inside(tmp_path, path) == tmp_path / path


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('{"file": "a.mp4"}', "id of its own"),
        ('{"id": "x"}', "either file"),
        ('{"id": "x", "file": "a.mp4", "frames": ["a.jpg"]}', "either file"),
        ('{"id": "x", "file": "a.mp4", "seconds": [1]}', r"\[start, end\]"),
        ('{"id": "x", "frames": ["a.jpg", "b.jpg"], "seconds": [1]}', "one capture time"),
        ('{"id": "x", "frames": ["a.jpg"], "seconds": [NaN]}', "one capture time"),
        ('{"id": "x", "frames": "a.jpg"}', "list of paths"),
        ('{"id": "x", "file": "a.mp4", "fps": 0}', "fps"),
        ('{"id": "x", "file": "a.mp4", "caption": 3}', "caption must be a text"),
    ],
)
def test_a_malformed_line_is_named(line, said, tmp_path):
    (tmp_path / "m.jsonl").write_text('{"id": "ok", "file": "a.mp4"}\n' + line)
    with pytest.raises(ValueError, match=f"m.jsonl line 2: .*{said}"):
        read_manifest(tmp_path / "m.jsonl")
