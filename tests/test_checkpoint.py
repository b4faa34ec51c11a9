"""Checkpoints: whole or not there, checked before they are used."""

import pickle

import pytest
import torch

from lib.train import checkpoint


def save(folder, number):
    checkpoint.save(folder, number, {"number": number, "weights": torch.arange(1000.0) + number})


def test_the_newest_checkpoint_is_used_and_only_two_are_kept(tmp_path):
    for number in (1, 2, 10):
        save(tmp_path, number)
    assert checkpoint.load(tmp_path)["number"] == 10
    assert len(list(tmp_path.iterdir())) == 2
    checkpoint.clear(tmp_path)
    assert checkpoint.load(tmp_path) is None


@pytest.mark.parametrize("damage", ["cut short", "one bit", "emptied"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(tmp_path, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    newest = max(tmp_path.iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes({"cut short": content[:-100], "one bit": content, "emptied": b""}[damage])
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.load(tmp_path)["number"] == 1


def test_a_checkpoint_that_hides_a_pickled_program_is_refused(tmp_path):
    class Program:
        def __reduce__(self):
            return (print, ("executed",))

    checkpoint.save(tmp_path, 1, {"number": Program()})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load(tmp_path)
