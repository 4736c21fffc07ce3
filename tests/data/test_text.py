"""Words to ids, as the official tokenizer does it."""

from pathlib import Path

import numpy as np
import pytest

from vatt.data.tokenizer import PAD, Tokenizer, VocabularyError


def test_encode_strips_punctuation_lowers_cuts_and_pads() -> None:
    tokenizer = Tokenizer(["a", "dog", "dont", "runs"])
    assert tokenizer.encode("A DOG, runs!", 6).tolist() == [2, 3, 5, PAD, PAD, PAD]
    assert tokenizer.encode("don't\tfly", 4).tolist() == [4, tokenizer.unknown, PAD, PAD]
    assert tokenizer.encode("dog " * 20, 16).tolist() == [3] * 16
    assert tokenizer.encode("?!", 3).tolist() == [PAD] * 3
    assert tokenizer.encode("a", 16).dtype == np.int64
    assert tokenizer.decode([2, 3, 1, 0, 0]) == "a dog <unk>"


def test_build_is_by_frequency_then_alphabet() -> None:
    captions = ["the dog", "The cat!", "a dog"]
    assert Tokenizer.build(captions, 100).words == ("<pad>", "<unk>", "dog", "the", "a", "cat")
    assert Tokenizer.build(captions, 4).words == ("<pad>", "<unk>", "dog", "the")
    assert Tokenizer.build(reversed(captions), 100).words == Tokenizer.build(captions, 100).words


def test_save_and_read_back(tmp_path: Path) -> None:
    tokenizer = Tokenizer.build(["ein Café am Meer"], 10)
    tokenizer.save(tmp_path / "words.txt")
    assert Tokenizer.from_file(tmp_path / "words.txt").words == tokenizer.words
    (tmp_path / "plain.txt").write_text("dog\ncat\n")
    assert Tokenizer.from_file(tmp_path / "plain.txt").words == ("<pad>", "<unk>", "dog", "cat")


@pytest.mark.parametrize("content", ["<pad>\n<bos>\ndog\n<unk>\ncat\n", "2 dog\n0 <pad>\n4 cat\n3 <unk>\n1 <bos>\n"])
def test_a_word_list_with_marks_of_its_own_keeps_its_ids(tmp_path: Path, content: str) -> None:
    (tmp_path / "words.txt").write_text(content)
    tokenizer = Tokenizer.from_file(tmp_path / "words.txt")
    assert tokenizer.encode("dog cat bird", 4).tolist() == [2, 4, 3, PAD]
    tokenizer.save(tmp_path / "again.txt")
    assert Tokenizer.from_file(tmp_path / "again.txt").words == tokenizer.words


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\n", "words.txt:2"),
        (b"a\na\n", "twice"),
        (b"", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"dog\n<pad>\n<unk>\n", "starts with <pad>"),
        (b"<pad>\ndog\n", "holds both"),
        (b"0 <pad>\n1 <unk>\n1 dog\n", "ids are not 0 to 2"),
    ],
)
def test_bad_word_lists(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(VocabularyError, match=message) as error:
        Tokenizer.from_file(tmp_path / "words.txt")
    assert "words.txt" in str(error.value)


def test_captions_of_a_clip() -> None:
    tokenizer = Tokenizer([*"abcdefgh"])
    first = [row[0] for row in tokenizer.encode_captions(["a", "b"], 5, 4)[0].tolist()]
    assert first == [2, 3, 2, 3, 2]  # repeated, no empty rows
    ids, has_text = tokenizer.encode_captions([], 5, 4)
    assert ids.shape == (5, 4)
    assert not ids.any()
    assert not has_text
    assert not tokenizer.encode_captions(["..."], 5, 4)[1]


def test_more_captions_than_rows() -> None:
    tokenizer = Tokenizer([*"abcdefgh"])
    captions = [*"abcdefgh"]
    assert tokenizer.encode_captions(captions, 3, 1)[0].ravel().tolist() == [2, 3, 4]
    draws = [
        tuple(tokenizer.encode_captions(captions, 3, 1, np.random.default_rng(seed))[0].ravel().tolist())
        for seed in range(40)
    ]
    assert all(len(set(draw)) == 3 for draw in draws)
    assert set().union(*draws) == set(range(2, 10))
    assert draws[7] == tuple(tokenizer.encode_captions(captions, 3, 1, np.random.default_rng(7))[0].ravel().tolist())
