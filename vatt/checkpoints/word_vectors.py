"""Word vectors from files: word2vec (text and binary), GloVe, fastText (.vec and .bin), any of them gzipped but .bin.

A file is read once, a piece at a time, and only the rows of asked words are kept. gensim's readers hold all rows, 3.6
GB for 3 million x 300, and their `limit` takes the first ones, not those that are asked for; so it is gensim's hash of
character n-grams alone that is used here, for fastText's .bin.
"""

from __future__ import annotations

import gzip
import mmap
import struct
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingPackage, UsageError

_CHUNK = 1 << 24
_LONGEST_WORD = 1 << 16  # bytes; where no word ends within so many there is none
_FASTTEXT = 793_712_314  # the first number of a .bin file
_FASTTEXT_HEADER = struct.Struct("<2i12id3i2q")


class WordVectorError(UsageError, ValueError):
    """Word vectors that cannot be used. The message names the file and the way out."""


class WordVectors(NamedTuple):
    """`vectors` float32 [found, width] of the words at `places` of the list that was asked for."""

    places: list[int]
    vectors: NDArray[np.float32]


class _Form(NamedTuple):
    """How a file holds its vectors. `rows` None: until it ends."""

    kind: str
    width: int
    rows: int | None


def vector_width(path: str | Path) -> int:
    """Return how many numbers a vector of the file has. Raises `WordVectorError`."""
    with _opened(path) as file:
        return _form(file, path).width


def read_word_vectors(path: str | Path, words: Sequence[str]) -> WordVectors:
    """Return the vectors of those of `words` that the file has; of a word that it has twice the first one.

    Raises:
        WordVectorError: the file cannot be read, a row of it is broken, or it has none of the words.
        MissingPackage: a fastText .bin file, and gensim is not installed.
    """
    wanted = {word.encode(): place for place, word in enumerate(words)}
    with _opened(path) as file:
        form = _form(file, path)
        rows = {"fasttext": _fasttext_rows, "binary": _binary_rows, "text": _text_rows}[form.kind]
        found: dict[int, NDArray[np.float32]] = {}
        try:
            for word, vector in rows(file, path, form, wanted.keys()):
                if not np.isfinite(vector).all():
                    raise WordVectorError(f"{path}: {word.decode()!r} has a number that is not finite; load it anew")
                found.setdefault(wanted[word], vector)
        except (OSError, EOFError, zlib.error) as error:
            raise WordVectorError(f"{path}: cannot be read to its end ({error}); load it anew") from error
    if not found:
        raise WordVectorError(
            f"{path}: none of the {len(words)} words of the list is in it; is it of another language?"
        )
    return WordVectors([*found], np.stack([*found.values()]))


def _opened(path: str | Path) -> IO[bytes]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - the caller closes it
        if file.read(2) == b"\x1f\x8b":
            file.close()
            return gzip.open(path, "rb")  # type: ignore[return-value]
        file.seek(0)
    except OSError as error:
        raise WordVectorError(f"{path}: cannot read word vectors ({error.strerror or error})") from error
    return file


def _form(file: IO[bytes], path: str | Path) -> _Form:
    """Tell the form of a file by how it begins, and go to its first row."""
    try:
        start = file.read(_LONGEST_WORD)
    except (OSError, EOFError) as error:
        raise WordVectorError(f"{path}: cannot read word vectors ({error})") from error
    if len(start) >= _FASTTEXT_HEADER.size and struct.unpack_from("<i", start)[0] == _FASTTEXT:
        return _Form("fasttext", struct.unpack_from("<3i", start)[2], None)
    first, _, rest = start.partition(b"\n")
    numbers = first.split()
    if len(numbers) == 2 and all(n.isdigit() for n in numbers):
        rows, width = map(int, numbers)
        file.seek(len(first) + 1)
        kind = "text" if _numbers(rest.partition(b"\n")[0], width) is not None else "binary"
    else:
        rows, width, kind = None, len(numbers) - 1, "text"
        file.seek(0)
        if _numbers(first, width) is None:
            width = 0
    if width < 1:
        raise WordVectorError(
            f"{path}: no word vectors; word2vec, GloVe and fastText files begin with a word and its numbers, or with "
            "how many there are"
        )
    return _Form(kind, width, rows)


def _numbers(line: bytes, width: int) -> NDArray[np.float32] | None:
    """Return the numbers behind the first word of a line, None unless there are `width` of them."""
    try:
        found = np.array(line.split()[1:], np.float32)
    except ValueError:
        return None
    return found if len(found) == width else None


Rows = Iterator[tuple[bytes, NDArray[np.float32]]]


def _text_rows(file: IO[bytes], path: str | Path, form: _Form, wanted: Collection[bytes]) -> Rows:
    number, first = 0, 1 if form.rows is None else 2
    for number, line in enumerate(file, 1):
        line = line.strip()
        spaces = line.count(b" ") + line.count(b"\t")
        if spaces < form.width:
            raise WordVectorError(
                f"{path}:{number + first - 1}: {spaces} numbers behind the word, and not {form.width}; load it anew"
            )
        # GloVe has entries with spaces in them, which are no words here.
        if spaces == form.width and (word := line.split(None, 1)[0]) in wanted:
            vector = _numbers(line, form.width)
            if vector is None:
                raise WordVectorError(f"{path}:{number + first - 1}: {word.decode()!r} has something that is no number")
            yield word, vector
    if form.rows is not None and number < form.rows:
        raise WordVectorError(f"{path}: ends after {number} of {form.rows} words; load it anew")


def _binary_rows(file: IO[bytes], path: str | Path, form: _Form, wanted: Collection[bytes]) -> Rows:
    held, at, size = b"", 0, 4 * form.width
    for row in range(form.rows or 0):
        end = held.find(b" ", at)
        while end < 0 or end + 1 + size > len(held):
            more = file.read(_CHUNK) if end >= 0 or len(held) - at < _LONGEST_WORD else b""
            if not more:
                raise WordVectorError(f"{path}: ends or breaks off after {row} of {form.rows} words; load it anew")
            held, at = held[at:] + more, 0
            end = held.find(b" ")
        word = held[at:end].lstrip(b"\n")  # which stands between rows in some files
        if word in wanted:
            yield word, np.frombuffer(held, "<f4", form.width, end + 1).astype(np.float32)
        at = end + 1 + size


def _fasttext_rows(file: IO[bytes], path: str | Path, form: _Form, wanted: Collection[bytes]) -> Rows:
    """A word's vector is the mean of its own row and those of its character n-grams."""
    try:
        from gensim.models.fasttext import ft_ngram_hashes
    except ImportError as error:
        raise MissingPackage(
            f"{path}: fastText's .bin needs gensim; pip install -e '.[words]', or take the .vec"
        ) from error
    try:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _, _, width, *_, buckets, shortest, longest, _, _, _, words, labels, _, pruned = (
                _FASTTEXT_HEADER.unpack_from(data)
            )
            at, places = _FASTTEXT_HEADER.size, {}
            for row in range(words + labels):
                end = data.find(b"\0", at)
                if (word := data[at:end]) in wanted:
                    places[word] = row
                at = end + 10  # behind a count of 8 bytes and a kind of 1
            quantised, _, columns = struct.unpack_from("<?2q", data, at)
            if quantised or pruned > 0 or columns != width:
                raise WordVectorError(f"{path}: a quantised fastText file; take the .bin or .vec that it was made from")
            matrix = at + 17
            for word, row in places.items():
                grams = ft_ngram_hashes(word.decode(), shortest, longest, buckets) if buckets and longest > 0 else []
                starts = [matrix + 4 * width * r for r in (row, *(words + gram for gram in grams))]
                own = [np.frombuffer(data[start : start + 4 * width], "<f4", width) for start in starts]
                yield word, np.stack(own).mean(axis=0, dtype=np.float64).astype(np.float32)
    except (struct.error, ValueError, OSError) as error:
        if isinstance(error, WordVectorError):
            raise
        raise WordVectorError(f"{path}: breaks off, or is no fastText file ({error}); load it anew") from error
