"""The key file: what is a key, what is one sentence, and that a change of it is seen."""

import os
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbless_api.fields import Invalid
from lbless_nodeagent.dataplane.keyfile import KeyFile, load_keys, parse_keys

ONE, TWO = bytes(range(32)), b"\xfb\xff" * 8


@given(st.lists(st.binary(min_size=16, max_size=64), min_size=1, max_size=4, unique=True), st.data())
def test_keys_are_read_in_order_in_either_form(keys, data):
    lines = ["# the keys of the segment", ""]
    for key in keys:
        hexadecimal = data.draw(st.booleans())
        written = key.hex() if hexadecimal else b64encode(key).decode()
        if not hexadecimal and all(c in "0123456789abcdefABCDEF" for c in written):
            written = key.hex()
        lines.append(f"  {written}\t# a comment")
    assert parse_keys("\r\n".join(lines).encode(), "f") == tuple(keys)


def test_a_key_that_is_there_twice_is_one():
    assert parse_keys(f"{ONE.hex()}\n{ONE.hex().upper()}\n".encode(), "f") == (ONE,)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# no key\n\n",
        b"0123456789abcdef0123456789abcd",  # 15 bytes
        b64encode(bytes(65)),
        b"geheimgeheimgeheim!",
        b"\xff\xfe\0",
        ONE.hex().encode() + b" " + TWO.hex().encode(),
        ONE.hex().encode() + b"\nnonsense",
        b"\n".join(bytes([n] * 16).hex().encode() for n in range(5)),
        b"#" * 20_000,
    ],
)
def test_what_is_no_key_file_is_one_sentence_without_the_key(content):
    with pytest.raises(Invalid, match=r"^[A-Z].* f .*\.$|^[A-Z].* f holds .*\.$") as refused:
        parse_keys(content, "f")
    said = str(refused.value)
    for word in content.decode("latin-1").split():
        assert len(word) < 8 or word not in said


def test_a_missing_file_says_what_is_missing_with_it(tmp_path):
    with pytest.raises(Invalid, match=r"does not exist: .*no fast takeover\.$"):
        load_keys(tmp_path / "keys")
    with pytest.raises(Invalid, match="not a regular file"):
        load_keys(tmp_path)


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(tmp_path):
    path = tmp_path / "keys"
    file = KeyFile(path)
    assert not file.refresh()
    assert file.keys == ()
    assert "does not exist" in file.problem
    path.write_text(ONE.hex())
    assert file.refresh()
    assert (file.keys, file.problem) == ((ONE,), "")
    assert not file.refresh()
    path.write_text(f"{TWO.hex()}\n{ONE.hex()}")
    assert file.refresh()
    assert file.keys == (TWO, ONE)


def test_a_file_that_becomes_bad_or_is_removed_leaves_the_last_keys(tmp_path):
    path = tmp_path / "keys"
    path.write_text(ONE.hex())
    file = KeyFile(path)
    assert file.refresh()
    path.write_text("no key at all")
    assert not file.refresh()
    assert file.keys == (ONE,)
    assert "neither" in file.problem
    path.unlink()
    assert not file.refresh()
    assert file.keys == (ONE,)
    assert "does not exist" in file.problem
    path.write_text(ONE.hex())
    assert not file.refresh()
    assert (file.keys, file.problem) == ((ONE,), "")


def test_the_exchange_of_a_secret_volume_is_seen(tmp_path):
    """The kubelet writes a new directory and turns the link `..data` to it; times may be the same."""
    for name, key in (("..1", ONE), ("..2", TWO)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "keys").write_text(key.ljust(32, b"\0").hex())
        os.utime(tmp_path / name / "keys", ns=(1, 1))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "keys").symlink_to("..data/keys")
    file = KeyFile(tmp_path / "keys")
    assert file.refresh()
    assert file.keys == (ONE,)
    (tmp_path / "..data_tmp").symlink_to("..2")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    assert file.refresh()
    assert file.keys == (TWO.ljust(32, b"\0"),)
