"""Datasets as people keep them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from radial import RequestError
from radial_finetune.data.sources import find_sources


def put(folder: Path, name: str, caption: bytes | None = b"a red circle") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"clip")
    if caption is not None:
        file.with_suffix(".txt").write_bytes(caption)
    return file


@pytest.mark.parametrize(
    "content", ["\ufeffein roter Kreis, größer\r\n".encode(), "ein roter Kreis, größer".encode("utf-16"),
                "ein roter Kreis, größer\n".encode("utf-32"), "ein roter Kreis, größer".encode()],
)  # fmt: skip
def test_captions_with_marks(tmp_path: Path, content: bytes) -> None:
    put(tmp_path, "a.mp4", content)
    assert [source.caption for source in find_sources(tmp_path)] == ["ein roter Kreis, größer"]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift-jis", "utf-16-le"])
def test_other_encodings_are_told_and_not_guessed(tmp_path: Path, encoding: str) -> None:
    text = "größer" if encoding != "shift-jis" else "赤い円"
    put(tmp_path, "a.mp4", text.encode(encoding))
    if encoding == "utf-16-le":  # letters and zeros are UTF-8, too, but for what is beyond ASCII
        put(tmp_path, "a.mp4", "日本語".encode(encoding))
    with pytest.raises(
        RequestError, match=r"the caption .*a\.txt is not UTF-8, at byte \d+; as Windows-1252"
    ) as caught:
        find_sources(tmp_path)
    if encoding == "cp1252":
        assert "it would say 'größer' there: save it as UTF-8" in str(caught.value)


def test_an_empty_caption_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4", b"\xef\xbb\xbf \n")
    with pytest.raises(RequestError, match=r"the caption .*a\.txt is empty; say what the clip shows"):
        find_sources(tmp_path)


def test_tables_with_marks(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        put(tmp_path, name, None)
    rows = [{"file": "a.mp4", "caption": "größer\u2028noch"}, {"file": "b.mp4", "caption": "b"}]
    lines = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    for table, text in (
        ("metadata.jsonl", lines),
        ("metadata.csv", 'file,caption\r\na.mp4,"größer\u2028noch"\r\nb.mp4,b\r\n'),
    ):
        for encoding in ("utf-8-sig", "utf-8", "utf-16"):
            (tmp_path / table).write_bytes(text.encode(encoding))
            assert [source.caption for source in find_sources(tmp_path / table)] == ["größer\u2028noch", "b"]
        (tmp_path / table).write_bytes(text.encode("cp1252", "replace"))
        with pytest.raises(RequestError, match="is not UTF-8"):
            find_sources(tmp_path / table)
        (tmp_path / table).unlink()


def test_what_systems_and_editors_leave_is_no_clip(tmp_path: Path) -> None:
    put(tmp_path, "a.mp4")
    for name in (
        "._a.mp4",
        ".hidden/b.mp4",
        "__MACOSX/c.mp4",
        "~$d.mp4",
        "#e.mp4#",
        "f.mp4~",
        "@eaDir/g.mp4",
        ".trash/h.mp4",
    ):
        put(tmp_path, name, None)
    assert [source.name for source in find_sources(tmp_path)] == ["a.mp4"]


def test_links_are_ones_own(tmp_path: Path) -> None:
    """Linked files, folders and tables; each folder once, however links turn in circles."""
    store = tmp_path / "store"
    put(store, "deep/a.mp4")
    linked = tmp_path / "linked"
    linked.mkdir()
    os.symlink(store / "deep", linked / "folder")
    os.symlink(linked, store / "deep" / "round")
    os.symlink(store / "deep" / "a.mp4", linked / "b.mp4")
    (linked / "b.txt").write_text("b")
    assert {source.name for source in find_sources(linked)} == {"b.mp4", "folder/a.mp4"}
    table = tmp_path / "table"
    table.mkdir()
    os.symlink(store / "deep" / "a.mp4", table / "c.mp4")
    rows = [{"file": name, "caption": "c"} for name in ("c.mp4", "../store/deep/a.mp4", str(store / "deep" / "a.mp4"))]
    (table / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(find_sources(table)) == 3


def test_folders_that_somebody_else_filled_hold_what_they_name(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret", "a.mp4")
    folder = tmp_path / "brought"
    put(folder, "b.mp4")
    assert len(find_sources(folder, inside=True)) == 1
    os.symlink(secret, folder / "c.mp4")
    (folder / "c.txt").write_text("c")
    with pytest.raises(RequestError, match=r"c\.mp4 lies outside the folder"):
        find_sources(folder, inside=True)
    for name in ("c.mp4", "../secret/a.mp4", str(secret)):
        (folder / "metadata.jsonl").write_text(json.dumps({"file": name, "caption": "c"}))
        with pytest.raises(RequestError, match="lies outside the folder"):
            find_sources(folder, inside=True)
