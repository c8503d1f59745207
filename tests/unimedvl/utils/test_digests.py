"""Digests change with what they are of, and agree with hashlib and sha256sum."""

import hashlib

import pytest
import torch

from unimedvl.utils.digests import hash_ends, hash_file, hash_files, hash_tensors


def test_a_file_is_hashed_by_its_bytes(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # pragma: allowlist secret
    assert hash_file(path) == published


@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_any_changed_byte_counts_but_in_the_middle_of_what_is_hashed_by_its_ends(place, tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    content = bytearray(3_000_000)
    path.write_bytes(content)
    other.write_bytes(b"b")
    before = hash_files([("a", path)]), hash_ends([path, other])
    content[place] = 1
    path.write_bytes(content)
    after = hash_files([("a", path)]), hash_ends([path, other])
    assert before[0] != after[0] and (before[1] != after[1]) == (place != 1_500_000)


def test_names_count(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"same")
    assert hash_files([("a", tmp_path / "a")]) != hash_files([("b", tmp_path / "a")])
    assert hash_ends([tmp_path / "a"]) != hash_ends([tmp_path / "b"])


def test_tensors_are_hashed_by_name_and_value():
    values = {"b": torch.tensor([1.0, -2.0]), "a": torch.zeros(3, dtype=torch.bfloat16)}
    wanted = hashlib.sha256(b"a" + bytes(12) + b"b" + bytes.fromhex("0000803f000000c0")).hexdigest()
    assert hash_tensors(values) == wanted == hash_tensors(dict(reversed(values.items())))
