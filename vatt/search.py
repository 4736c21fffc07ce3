"""Which clips fit these words, this sound, this video? `python -m vatt.search --index features.npz "a dog barks"`.

Ranks the clips of one or more files of `vatt.embed` by the cosine between common-space embeddings of one model:

    a text      with what the video says to text      (video_to_text, 256 wide)
    --audio     with what the video says to sound     (video_to_audio, 512 wide)
    --video     with the clips' own video_to_audio: the wider of the two video spaces, where words play no part

All three rank clips by what their video says, so sound files in an index, which have none, are told of and left out.
A query file is read at as many windows as the index, and their embeddings are averaged, as there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .config import Config, ConfigError
from .data.loader import EvalDataset
from .data.manifest import Clip, Manifest
from .data.reader import BadClip
from .data.sound_file import read_sound_windows
from .data.text import Tokenizer, VocabularyError, split_words
from .features import SUFFIXES, Features, FeaturesError, read_features
from .model.vatt import VATT
from .pretrained import load_config, load_tokenizer, load_vatt, weights_fingerprint
from .run import RunError, pick_device
from .runtime.forms import printable

COLUMNS = ("path", "start", "end", "video_clip", "text_clip", "caption")
SPACE = {"text": "video_to_text", "audio": "video_to_audio", "video": "video_to_audio"}
EXAMPLES = """examples:
  python -m vatt.search --index features.npz "a dog pulls a sled"
  python -m vatt.search --index holidays.npz work.parquet "people dance" "rain on a window" --top 5
  python -m vatt.search --index features.npz --audio bark.wav --json

Words after --index that do not end in .npz or .parquet are texts.
exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""


class Query(NamedTuple):
    kind: str  # "text", "audio" or "video"
    query: str  # the text, or the path of the file


class Index(NamedTuple):
    """Clips with video of all files, in order; `spaces` float32 [C, 256 or 512] normalised, by name."""

    paths: list[str]
    spans: list[tuple[float, float | None]]
    captions: list[list[str]]
    windows: list[int]
    spaces: dict[str, NDArray[np.float32]]


def build_index(files: list[Features], spaces: set[str]) -> Index:
    """One index of several files; they must hold embeddings of one model."""
    index = Index([], [], [], [], {})
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in spaces}
    for features in files:
        arrays, seen = features.arrays, features.arrays["video_clip"]
        starts, ends = arrays["start"][seen].tolist(), arrays["end"][seen].tolist()
        captions: dict[int, list[str]] = {clip: [] for clip in seen.tolist()}
        for clip, caption in zip(arrays["text_clip"].tolist(), arrays["caption"].tolist(), strict=True):
            captions.get(clip, []).append(caption)
        index.paths.extend(arrays["path"][seen].tolist())
        index.spans.extend((s, None if np.isnan(e) else e) for s, e in zip(starts, ends, strict=True))
        index.windows.extend([features.metadata["windows"]] * len(seen))
        index.captions.extend(captions.values())
        for name in spaces:
            parts[name].append(_normalised(arrays[name]))
    index.spaces.update({name: np.concatenate(part) for name, part in parts.items()})
    return index


def _normalised(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def rank(index: Index, space: str, embedding: NDArray[np.float32], top: int) -> list[dict[str, Any]]:
    """The `top` clips nearest to `embedding` [256 or 512]; ties in the order of the index."""
    cosine = index.spaces[space] @ _normalised(embedding)
    order = np.argsort(-cosine, kind="stable")[:top].tolist()
    return [
        {
            "rank": place,
            "cosine": float(cosine[i]),
            "path": index.paths[i],
            "start": index.spans[i][0],
            "end": index.spans[i][1],
            "windows": index.windows[i],
            "captions": index.captions[i],
        }
        for place, i in enumerate(order, 1)
    ]


def open_model(files: list[Features], given: Path | None, device: torch.device) -> tuple[VATT, Path]:
    """The model that made the index: the folder on record, or `given`. Raises `RunError` if it is another one."""
    weights = files[0].metadata["weights_sha256"]
    for features in files[1:]:
        if features.metadata["weights_sha256"] != weights:
            raise RunError(f"{features.source} was made by another model ({features.metadata['model']}) than "
                           f"{files[0].source} ({files[0].metadata['model']}); search them apart")  # fmt: skip
    folder = given or Path(files[0].metadata["model"])
    if given is None and not folder.is_dir():
        raise RunError(f"{files[0].source} was made by the model in {folder}, which is not there; name its folder with "
                       "--model")  # fmt: skip
    model = load_vatt(folder, device=device)
    if weights_fingerprint(model) != weights:
        made_by = files[0].metadata["model"]
        raise RunError(f"{files[0].source} was made by another model (in {made_by}) than that in {folder} now; name "
                       "the right one with --model, or embed the clips again")  # fmt: skip
    spaces = load_config(folder).model.head
    for features in files:
        for name, wanted in (("video_to_text", spaces.video_text), ("video_to_audio", spaces.video_audio)):
            if name in features.arrays and features.arrays[name].shape[1] != wanted:
                raise FeaturesError(f"{features.source} is damaged: {name} is {features.arrays[name].shape[1]} wide, "
                                    f"and {wanted} in the model in {folder}; embed the clips again")  # fmt: skip
    return model, folder


def check_words(text: str, tokenizer: Tokenizer, limit: int) -> list[str]:
    """What to warn of; raises `ConfigError` for a text of which the model knows no word."""
    words = split_words(text)
    unknown = [word for word in dict.fromkeys(words[:limit]) if word not in tokenizer.ids]
    listed = ", ".join(repr(word) for word in unknown)
    if not words:
        raise ConfigError(f"the text {text!r} holds no words")
    if all(word in unknown for word in words[:limit]):
        raise ConfigError(f"{text!r}: the model's vocabulary of {len(tokenizer)} words has none of these: {listed}")
    warnings = [f"{text!r}: not in the vocabulary, read as unknown: {listed}"] if unknown else []
    return warnings + ([f"{text!r}: only the first {limit} words are read"] if len(words) > limit else [])


@torch.no_grad()
def embed_query(model: VATT, config: Config, query: Query, windows: int, tokenizer: Tokenizer | None) -> NDArray:
    """float32 [256] for a text, [512] for a sound or video. Raises `BadClip` for a file that cannot be read."""
    device = next(model.parameters()).device
    limit = config.data.decode_seconds
    if query.kind == "text":
        assert tokenizer is not None
        ids = torch.from_numpy(tokenizer.encode(query.query, config.model.text.words))
        return model.embed_text(ids[None, None].to(device))[0, 0].cpu().numpy()
    path = Path(query.query).absolute()
    if query.kind == "audio":
        sound = torch.from_numpy(read_sound_windows(path, config.model.audio, windows, limit))
        return model.embed_audio(sound.to(device)).mean(0).cpu().numpy()
    clip = Manifest((Clip(0, path, query.query),), path.parent, ())
    batch = EvalDataset(clip, config.data, config.model, Tokenizer([]), windows, 1)[0]
    if batch.bad:
        raise BadClip(path, batch.bad[0][1])
    return model.embed_video(batch.video[0].to(device))[0].mean(0).cpu().numpy()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.search", epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Rank clips by a text, a sound or a video.",
    )  # fmt: skip
    add = parser.add_argument
    add("texts", nargs="*", metavar="TEXT", help="what the clips should show, in words")
    add("--index", nargs="+", action="extend", required=True, metavar="FILE", help="files of vatt.embed")
    add("--audio", action="append", default=[], metavar="FILE", help="a sound, or the sound of a video; repeatable")
    add("--video", action="append", default=[], metavar="FILE", help="a video; repeatable")
    add("--top", type=int, default=10, metavar="N", help="clips to list for each query (default 10)")
    add("--model", type=Path, metavar="DIR", help="folder of the model (default: the one the index names)")
    add("--vocabulary", type=Path, metavar="FILE", help="word list (default: vocabulary.txt in the model's folder)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    # `--index a.npz "a dog"` is how people write it, and argparse gives --index all of it.
    files = [name for name in args.index if name.endswith(SUFFIXES)]
    args.texts = [name for name in args.index if name not in files] + args.texts
    args.index = list({Path(name).resolve(): name for name in files}.values())  # each clip once
    if not files:
        parser.error(f"--index takes files of features, ending in {' or '.join(SUFFIXES)}")
    if not (args.texts or args.audio or args.video):
        parser.error('nothing to search for; give a text in quotes ("a dog barks"), --audio FILE or --video FILE')
    if args.top < 1:
        parser.error(f"--top is at least 1, got {args.top}")
    return args


def search(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A dictionary a query: kind, query, warnings, results (see `rank`)."""
    queries = [Query("text", text) for text in args.texts]
    queries += [Query("audio", path) for path in args.audio] + [Query("video", path) for path in args.video]
    spaces = {SPACE[query.kind] for query in queries}
    files = [read_features(path, (*COLUMNS, *sorted(spaces))) for path in args.index]
    model, folder = open_model(files, args.model, pick_device(args.device))
    config = load_config(folder)
    # Reading a query is one clip's work: no worker processes.
    config = replace(config, data=replace(config.data, workers=0))
    tokenizer = None
    if args.texts:
        tokenizer = Tokenizer.from_file(args.vocabulary) if args.vocabulary else load_tokenizer(folder)
        if len(tokenizer) > config.model.text.vocabulary:
            raise VocabularyError(f"the word list has {len(tokenizer)} words but the model's table only "
                                  f"{config.model.text.vocabulary}; give the one it was trained with")  # fmt: skip
    index = build_index(files, spaces)
    silent = sum(len(features.arrays["path"]) for features in files) - len(index.paths)
    if not index.paths:
        raise FeaturesError(f"{', '.join(args.index)}: none of the {silent} clips has video, which all queries ask for")
    if silent:
        print(f"{silent} clips without video are not ranked", file=sys.stderr)
    results = []
    for query in queries:
        warnings = (
            check_words(query.query, tokenizer, config.model.text.words) if query.kind == "text" and tokenizer else []
        )
        embedding = embed_query(model, config, query, files[0].metadata["windows"], tokenizer)
        found = rank(index, SPACE[query.kind], embedding, args.top)
        results.append({**query._asdict(), "warnings": warnings, "results": found})
    return results


def format_results(answer: dict[str, Any]) -> str:
    lines = [f"{answer['kind']}: {answer['query']}", "  rank  cosine  clip"]
    for found in answer["results"]:
        start, end = found["start"], found["end"]
        span = "" if not start and end is None else f"  {start:g}-{'end' if end is None else f'{end:g}'} s"
        windows = f"  ({found['windows']} windows)"
        captions, more = found["captions"], len(found["captions"]) - 1
        said = f"  {captions[0]}{f' (+{more})' if more else ''}" if captions else ""
        place = printable(f"{found['path']}{span}{windows}{said}")
        lines.append(f"  {found['rank']:>4}  {found['cosine']:>6.3f}  {place}")
    return "\n".join(lines)


def print_answers(args: argparse.Namespace, answers: list[dict[str, Any]]) -> None:
    for warning in (line for answer in answers for line in answer["warnings"]):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        if args.json:
            print(json.dumps({"index": args.index, "queries": answers}, indent=2, ensure_ascii=False))
        else:
            print("\n\n".join(format_results(answer) for answer in answers))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has what it wants (`| head -1`). What is left in the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        print_answers(args, search(args))
    except (ConfigError, VocabularyError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except (RunError, FeaturesError, BadClip, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
