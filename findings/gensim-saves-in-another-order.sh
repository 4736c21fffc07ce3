#!/usr/bin/env bash
# gensim writes word vectors in another order than it has them in memory, so row numbers mean other words afterwards.
#
# Versions: gensim 4.4.0, numpy 2.4.6.
# Input: vectors of "<pad>", "<unk>", "a", "dog", "cat" with the counts of a corpus (1, 2, 50, 5, 9), written with
#   save_word2vec_format (text and binary) and loaded again; then the same without counts.
# Expected: the order of index_to_key, the row numbers of kv.vectors, survives; a word2vec file is a list of rows.
# Seen:
#     in memory:            <pad> <unk> a dog cat
#     saved with counts:    a cat dog <unk> <pad>
#     saved without counts: <pad> <unk> a dog cat
#   The parameter sort_attr, "count" by default, re-orders what is written where such an attribute exists; vectors trained by
#   gensim always have it, in order, but rows that were put in front for padding or added later do not fit that order.
# Why it matters: captions are stored as row numbers. A text tower whose table is read from the file gets "a" for every padding
#   position; shapes agree, nothing fails, retrieval is merely bad. Pass sort_attr=None, or map by word.
# Public: https://github.com/piskvorky/gensim/issues/3196 (re-ordering by frequency in memory); for saving none was found.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet gensim==4.4.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import numpy as np
from gensim.models import KeyedVectors

words, counts = ["<pad>", "<unk>", "a", "dog", "cat"], [1, 2, 50, 5, 9]


def saved(with_counts, **how):
    vectors = KeyedVectors(4)
    vectors.add_vectors(words, np.arange(20, dtype=np.float32).reshape(5, 4))
    if with_counts:
        for word, count in zip(words, counts):
            vectors.set_vecattr(word, "count", count)
    assert vectors.index_to_key == words
    orders = []
    for binary in (False, True):
        vectors.save_word2vec_format("vectors", binary=binary, **how)
        orders.append(KeyedVectors.load_word2vec_format("vectors", binary=binary).index_to_key)
    assert orders[0] == orders[1]
    return orders[0]


print("in memory:           ", *words)
counted, plain = saved(True), saved(False)
print("saved with counts:   ", *counted)
print("saved without counts:", *plain)
assert plain == words == saved(True, sort_attr=None) and counted == ["a", "cat", "dog", "<unk>", "<pad>"]
PY
