"""Words to ids, as the official tokenizer does it."""

from pathlib import Path

import numpy as np
import pytest

from vatt.data.tokenizer import PAD, Tokenizer, VocabularyError, is_unspaced, split_words


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


def test_scripts_without_spaces_can_be_divided(tmp_path: Path) -> None:
    captions = ["红色的船，在湖上。", "A red 船 of 2020", "ผู้ชายเดิน", "赤いボート"]
    assert [split_words(text) for text in captions[:1]] == [["红色的船，在湖上。"]]
    divided = [split_words(text, unspaced=True) for text in captions]
    assert divided[0] == ["红", "色", "的", "船", "在", "湖", "上"]
    assert divided[1] == ["a", "red", "船", "of", "2020"]
    assert "".join(divided[2]) == captions[2]
    assert all(len(word) <= 3 for word in divided[2])  # a letter and its marks
    assert divided[2][0] == "ผู้"
    assert divided[3] == ["赤", "い", "ボ", "ー", "ト"]
    assert [is_unspaced(text) for text in (*captions, "한국어 문장 입니다", "a red boat", "船 2")] == [
        True,
        False,
        True,
        True,
        False,
        False,
        False,
    ]
    for text in ("Hello, world's end!", "Ein Hündchen - schön", "кошка"):
        assert split_words(text, unspaced=True) == split_words(text)
    tokenizer = Tokenizer.build(captions, 40, unspaced=True)
    tokenizer.save(tmp_path / "v.txt")
    again = Tokenizer.from_file(tmp_path / "v.txt")
    assert again.unspaced
    assert again.decode(again.encode("湖上的红船")) == "湖 上 的 红 船"
    assert not Tokenizer.build(captions, 40).unspaced
