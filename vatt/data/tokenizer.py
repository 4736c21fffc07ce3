"""Captions to word ids, as the official word tokenizer does it: no punctuation, lower case, split at white space.

Scripts without spaces would so make one word of a sentence. A word list that holds `<unspaced>` says that each of their
characters is a word, with the marks that belong to it; so it does wherever the list goes with a model.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from ..runtime.files import write_atomically

PAD = 0
PAD_WORD, UNKNOWN_WORD, UNSPACED = "<pad>", "<unk>", "<unspaced>"

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Thai, Lao, Tibetan, Burmese, Khmer; kana; Han; half-width kana; rarer Han.
_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\uff66-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{_SCRIPTS}]")
_NUMBERED = re.compile(r"(\d+) (\S+)")


class VocabularyError(UsageError, ValueError):
    """A word list that cannot be used. The message names the file and the way out."""


def split_words(text: str, unspaced: bool = False) -> list[str]:
    """Return the words of `text`; with `unspaced` each character of scripts without spaces is one."""
    if unspaced:
        # A mark (category M) stays with the letter in front of it; punctuation of any script divides.
        kinds = [unicodedata.category(letter)[0] for letter in text]
        text = "".join(
            (f" {letter}" if kind != "M" else letter)
            if _UNSPACED.match(letter) and kind != "P"
            else " "
            if kind == "P" and not letter.isascii()
            else letter
            for letter, kind in zip(text, kinds, strict=True)
        )
        text = re.sub(f"(?<=[{_SCRIPTS}])(?=[^{_SCRIPTS}])", " ", text)
    return text.translate(_NO_PUNCTUATION).lower().split()


def is_unspaced(text: str) -> bool:
    """Return whether `text` has a word of several characters of a script that puts no spaces between words."""
    return any(len(_UNSPACED.findall(word)) > 3 for word in text.split()) if not text.isascii() else False


class Tokenizer:
    """Words to ids. Id 0 is padding, `unknown` any word that is not in the list; no begin or end marks are added."""

    def __init__(self, words: Sequence[str]) -> None:
        """`words`: the list in the order of ids. One without `<pad>` gets `<pad>`, `<unk>` in front (ids 0 and 1).

        One with it, as the official list, starts with it (the models mask id 0) and has `<unk>` anywhere.
        """
        if PAD_WORD not in words and UNKNOWN_WORD not in words:
            words = [PAD_WORD, UNKNOWN_WORD, *words]
        self.words = tuple(words)
        self.unspaced = UNSPACED in self.words
        self.ids = {word: i for i, word in enumerate(self.words)}
        if len(self.ids) != len(self.words):
            double = next(word for word, count in Counter(self.words).items() if count > 1)
            raise VocabularyError(f"the word {double!r} is listed twice; ids would be ambiguous, remove one")
        if self.words[0] != PAD_WORD or UNKNOWN_WORD not in self.ids:
            raise VocabularyError(
                f"a list with {PAD_WORD} or {UNKNOWN_WORD} starts with {PAD_WORD} and holds both; "
                "leave both out to have them added"
            )
        self.unknown = self.ids[UNKNOWN_WORD]

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read one word a line, in the order of ids; or lines of id and word, as official word lists may have."""
        try:
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise VocabularyError(f"{path}: cannot read the word list ({error}); give one UTF-8 word a line") from error
        words = [line.strip() for line in lines]
        while words and not words[-1]:
            words.pop()
        if "" in words:
            raise VocabularyError(f"{path}:{words.index('') + 1}: an empty line; give one word a line")
        if not words:
            raise VocabularyError(f"{path}: the word list is empty; give one word a line")
        numbered = [_NUMBERED.fullmatch(word) for word in words]
        if all(numbered):
            by_id = {int(match[1]): match[2] for match in numbered if match}
            if sorted(by_id) != list(range(len(words))):
                raise VocabularyError(f"{path}: the ids are not 0 to {len(words) - 1}, each once; repair the list")
            words = [by_id[i] for i in range(len(words))]
        try:
            return cls(words)
        except VocabularyError as error:
            raise VocabularyError(f"{path}: {error}") from error

    @classmethod
    def build(cls, captions: Iterable[str], size: int, unspaced: bool = False) -> Tokenizer:
        """Return the `size - 2` most frequent words of `captions`, one less with `unspaced`.

        Ties in alphabetical order.
        """
        counts = Counter(word for caption in captions for word in split_words(caption, unspaced))
        return cls.of_ranked(sorted(counts, key=lambda word: (-counts[word], word)), size, unspaced)

    @classmethod
    def of_ranked(cls, words: Iterable[str], size: int, unspaced: bool = False) -> Tokenizer:
        """The first `size - 2` of `words`, one less with `unspaced`."""
        return cls(list(islice(chain([UNSPACED] * unspaced, words), max(0, size - 2))))

    def save(self, path: str | Path) -> None:
        write_atomically(Path(path), "".join(word + "\n" for word in self.words).encode())

    def split(self, text: str) -> list[str]:
        """Return the words of `text`, as this list divides them."""
        return split_words(text, self.unspaced)

    def encode(self, text: str, words: int = 16) -> NDArray[np.int64]:
        """Return int64 [words]: cut off or padded with 0."""
        ids = np.full(words, PAD, np.int64)
        known = [self.ids.get(word, self.unknown) for word in self.split(text)[:words]]
        ids[: len(known)] = known
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return words of `ids` without padding."""
        return " ".join(self.words[i] for i in ids if i != PAD)

    def encode_captions(
        self,
        captions: Sequence[str],
        count: int = 5,
        words: int = 16,
        rng: np.random.Generator | None = None,
    ) -> tuple[NDArray[np.int64], bool]:
        """Return int64 [count, words], and whether the clip has any text. Without text all ids are 0.

        More captions than `count`: `rng` draws `count` of them without replacement; without `rng` the first ones.
        Fewer: they repeat in order. The release leaves the missing rows empty instead, and does not mask them in the
        loss; but an empty row has the same embedding in every clip, so it would be a positive that all clips share.
        """
        encoded = [ids for caption in captions if (ids := self.encode(caption, words)).any()]
        if not encoded:
            return np.full((count, words), PAD, np.int64), False
        order = np.arange(count) % len(encoded)
        if rng is not None and len(encoded) > count:
            order = rng.permutation(len(encoded))[:count]
        return np.stack([encoded[i] for i in order]), True
