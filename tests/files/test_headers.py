"""The header of our files: how it is written, recognised and checked."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import CheckpointError
from prunekit.files.headers import (
    KINDS,
    check_header,
    encode_json,
    encode_metadata,
    encode_toml,
    kind_of,
    new_header,
    read_json,
    refuse_other_kinds,
    tool,
)


def test_the_header_comes_first_and_the_content_is_sorted() -> None:
    text = encode_metadata("csr", {"b": 1, "a": 2})["prunekit"]
    assert list(json.loads(text)) == ["kind", "format", "tool", "a", "b"]
    assert json.loads(encode_metadata("csr", {})["prunekit"]) == {"kind": "csr", "format": 1, "tool": tool()}


def test_json_files_give_their_content_back_without_the_header(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(encode_json("plan", {"stages": [1], "path": Path("a")}))
    assert read_json(path, "plan", CheckpointError) == {"stages": [1], "path": "a"}
    with pytest.raises(CheckpointError, match=r"file is the plan of a run, not a metric log; resume its run with"):
        read_json(path, "metrics", CheckpointError)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null"])
def test_damaged_json_files_are_a_value_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=r"."):
        read_json(tmp_path / "file", "plan", CheckpointError)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "has no prunekit header, so it is not a csr export"),
        ([], "no kind"),
        ({}, "no kind"),
        ({"kind": ["csr"]}, "no kind"),
        ({"kind": "csr"}, "no format version"),
        ({"kind": "csr", "format": True}, "no format version"),
        ({"kind": "csr", "format": 7, "tool": "prunekit 9"}, "a csr export of format 7, written by 'prunekit 9'"),
        ({"kind": "shrunk", "format": 1}, r"is a shrunk network, not a csr export; load it with prunekit\.load_shrunk"),
        ({"kind": "new", "format": 1}, "is a file of kind 'new', not a csr export; .* or update prunekit"),
    ],
)
def test_a_header_of_another_kind_or_format_is_refused(header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        check_header(header, ("csr",), Path("m"), CheckpointError)


def test_a_good_header_is_returned() -> None:
    assert check_header(new_header("csr"), ("shrunk", "csr"), Path("m"), CheckpointError)["kind"] == "csr"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"PK\x03\x04 no archive",
        b'{"prunekit": {"kind": 3}}',
        b'prunekit = { kind = "' + b"a" * 200,
        b"\x40" + bytes(7) + b'{"__metadata__":{"prunekit":"{\\"kjnd\\": \\"csr\\"',
    ],
)
def test_a_file_that_is_damaged_or_none_of_ours_has_no_kind(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(data)
    assert kind_of(tmp_path / "file") is None
    refuse_other_kinds(tmp_path / "file", ("csr",), CheckpointError)


def test_paths_without_a_file_have_no_kind(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path, Path("/dev/zero"), Path("a\0b")):
        assert kind_of(path) is None


def test_a_folder_has_the_kind_that_the_file_in_it_tells(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("seed = 3\n")
    assert kind_of(tmp_path) is None
    (tmp_path / "config.toml").write_text(encode_toml("recipe") + "seed = 3\n")
    assert kind_of(tmp_path) == "run"
    (tmp_path / "config.toml").write_bytes(encode_json("plan", {}))
    assert kind_of(tmp_path) is None


def test_every_kind_has_a_name_with_an_article_and_a_next_step() -> None:
    for kind in KINDS.values():
        assert kind.called.split()[0] in {"a", "an", "the"}
        assert kind.reader[0].islower()


@pytest.mark.parametrize("header", [1, None, {}, {"kind": "plan"}, {"kind": "plan", "format": "1"}])
def test_a_damaged_header_in_json_is_damage_and_not_another_kind(tmp_path: Path, header: Any) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"prunekit": header, "stages": []}))
    with pytest.raises(ValueError, match="is not a header"):
        read_json(path, "plan", CheckpointError)
