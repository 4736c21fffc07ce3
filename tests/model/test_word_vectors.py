"""Word vectors in each of their forms, only those that are asked for, and what is wrong with files."""

import gzip
import struct
import subprocess
import sys

import numpy as np
import pytest

from vatt.checkpoints.word_vectors import WordVectorError, read_word_vectors, vector_width

WORDS = ["</s>", "dog", "barks", "été", "rain"]
VECTORS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
LIST = ["<pad>", "rain", "unheardof", "dog", "été"]


def lines(header=""):
    rows = (f"{word} {' '.join(map(repr, map(float, row)))}" for word, row in zip(WORDS, VECTORS, strict=True))
    return (header + "\n".join(rows) + "\n").encode()


def binary(between=b""):
    rows = (word.encode() + b" " + row.tobytes() + between for word, row in zip(WORDS, VECTORS, strict=True))
    return b"5 6\n" + b"".join(rows)


def fasttext(buckets, rows):
    """As the tool writes it: sizes, the words with count and kind, then the matrix of words and n-grams."""
    sizes = struct.pack("<2i12id3i2q", 793712314, 12, 6, 5, 5, 1, 5, 1, 1, 2, buckets, 3, 4, 100, 1e-4, 5, 5, 0, 99, -1)
    words = b"".join(word.encode() + b"\0" + struct.pack("<qb", 3, 0) for word in WORDS)
    return sizes + words + struct.pack("<?2q", False, *rows.shape) + rows.astype("<f4").tobytes()


@pytest.mark.parametrize(
    "content",
    [lines("5 6\n"), lines(), binary(), binary(b"\n"), gzip.compress(binary()), gzip.compress(lines())],
    ids=["word2vec text", "GloVe", "word2vec binary", "with line ends", "binary.gz", "GloVe.gz"],
)
def test_words_that_are_asked_for_are_found(tmp_path, content):
    (tmp_path / "vectors").write_bytes(content)
    assert vector_width(tmp_path / "vectors") == 6
    places, vectors = read_word_vectors(tmp_path / "vectors", LIST)
    expected = {LIST.index(word): VECTORS[WORDS.index(word)] for word in ("dog", "été", "rain")}
    assert sorted(places) == sorted(expected)
    for place, vector in zip(places, vectors, strict=True):
        np.testing.assert_allclose(vector, expected[place], rtol=1e-6)


def test_fasttext_words_are_means_of_their_parts(tmp_path):
    gensim = pytest.importorskip("gensim.models.fasttext")
    rows = np.random.default_rng(1).standard_normal((5 + 7, 6))
    (tmp_path / "vectors.bin").write_bytes(fasttext(7, rows))
    assert vector_width(tmp_path / "vectors.bin") == 6
    theirs = gensim.load_facebook_vectors(str(tmp_path / "vectors.bin"))
    places, vectors = read_word_vectors(tmp_path / "vectors.bin", LIST)
    for place, vector in zip(places, vectors, strict=True):
        np.testing.assert_allclose(vector, theirs[LIST[place]], rtol=1e-5, atol=1e-7)
    assert {LIST[place] for place in places} == {"dog", "été", "rain"}


def test_entries_with_spaces_are_no_words(tmp_path):
    (tmp_path / "glove.txt").write_bytes(lines() + b"dog at home " + b" ".join([b"1"] * 6) + b"\n")
    _, vectors = read_word_vectors(tmp_path / "glove.txt", ["dog"])
    np.testing.assert_allclose(vectors[0], VECTORS[1], rtol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no word vectors"),
        (b"a cat sat\n", "no word vectors"),
        (lines() + b"cat 1 2\n", "vectors:6: 2 numbers behind the word"),
        (lines("5 6\n") + b"cat 1 2\n", "vectors:7: 2 numbers behind the word"),
        (lines().replace(b"dog ", b"dog x"), "vectors:2: 'dog' has something that is no number"),
        (lines().replace(repr(float(VECTORS[1, 0])).encode(), b"nan"), "'dog' has a number that is not finite"),
        (lines("9 6\n"), "ends after 5 of 9 words"),
        (binary()[:-3], "after 4 of 5 words"),
        (b"900 6\n" + b"\0" * 200_000, "after 0 of 900 words"),
        (gzip.compress(lines() * 99)[:-30], "end-of-stream"),
        (lines().replace(b"dog", b"cat").replace(b"rain", b"wind").replace("été".encode(), b"snow"), "none of the 5"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(tmp_path, content, message):
    (tmp_path / "vectors").write_bytes(content)
    with pytest.raises(WordVectorError, match=message):
        read_word_vectors(tmp_path / "vectors", LIST)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(WordVectorError, match="nowhere"):
        vector_width(tmp_path / "nowhere")


BOUNDED = """
import resource, sys
from vatt.checkpoints.word_vectors import read_word_vectors
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
places, _ = read_word_vectors(sys.argv[1], ["w5", "w149999"])
print(len(places), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_is_that_of_the_rows_that_are_kept(tmp_path):
    """180 MB of vectors; pieces of 16 MB are read."""
    row = np.zeros(300, "<f4").tobytes()
    with open(tmp_path / "vectors.bin", "wb") as file:
        file.write(b"150000 300\n")
        file.writelines(b"w%d " % i + row for i in range(150_000))
    told = subprocess.run([sys.executable, "-c", BOUNDED, tmp_path / "vectors.bin"], capture_output=True, check=True)
    found, grown = map(int, told.stdout.split())
    assert found == 2
    assert grown < 90_000 * (1 if sys.platform != "darwin" else 1024)
