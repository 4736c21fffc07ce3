"""Zero-shot classification: class names rank each clip through the space of video and text, without any training.

A class is the mean of the unit vectors of its sentences. A clip is compared with it by cosine, over its windows as in
retrieval. Divided by the temperature of pre-training the cosines of a clip are logits, whose softmax is written as
probabilities.

Legend: C clips that could be read, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.datasets.evaluation import EvalDataset
from ..data.tokenizer import Tokenizer
from ..model.vatt import VATT
from ..runtime.distributed import SINGLE_PROCESS, World
from .classification import report
from .metrics import window_similarity
from .retrieval import embed_clips


def unknown_words(prompts: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> list[str]:
    """Return the words of `prompts` that `tokenizer` does not know, each once."""
    words = (word for said in prompts.values() for text in said for word in tokenizer.split(text))
    return list(dict.fromkeys(word for word in words if word not in tokenizer.ids))


def zero_shot(
    model: VATT,
    dataset: EvalDataset,
    vectors: Tensor,
    temperature: float,
    score: str,
    out: Path,
    autocast: Any,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Classify clips by `vectors` of class names, and write the files of a classification to `out`.

    Args:
        dataset: clips, with the K classes as their labels.
        vectors: [K,256] of `one_file.class_embeddings`, in that order.
        temperature: by which cosines are divided for probabilities.
        score: how a clip's windows are averaged, see `metrics.window_similarity`.
        out: its folder embeddings.parts holds finished shards, which are not made again.
        world: all ranks embed, the first one goes on; on the others this ends with `RankFinished`.

    Returns:
        What `classification.report` does. Clips with several labels are scored as tags.

    Raises:
        DataError: too many clips cannot be read.
    """
    clips, limit = dataset.clips, dataset.data.max_bad_share
    embedded = embed_clips(model, dataset, autocast, out / "embeddings.parts", world, limit)
    world.only_main_continues()
    cosines = window_similarity(vectors.cpu(), embedded.video_text, score).T
    several = any(len(clip.labels) > 1 for clip in clips)
    loss = "sigmoid" if several else "softmax"
    found = report(out, clips, embedded.clips, cosines / temperature, embedded.bad, loss, probabilities="softmax")
    return found | {"views": dataset.windows_per_clip, "temperature": temperature}
