"""Atomic writing and what counts as the same program."""

import pytest

from lib import io


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "result.json"
    io.write_json(target, {"a": 1})
    with pytest.raises(ValueError):
        io.write_json(target, {"a": float("nan")})
    assert io.read_json(target) == {"a": 1}
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "census"
    for content in ("old", "new"):
        with io.atomic(target) as partial:
            partial.mkdir()
            (partial / content).touch()
    with pytest.raises(OSError), io.atomic(target) as partial:
        partial.mkdir()
        raise OSError("no space left")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
