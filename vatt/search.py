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
from typing import Any

from .checkpoints.model_folder import load_config, load_tokenizer
from .data.tokenizer import Tokenizer, VocabularyError
from .inference.features_file import SUFFIXES, FeaturesError, read_features
from .inference.search_index import SPACE, Query, build_index, check_words, embed_query, open_model, rank
from .runtime.cli import exit_code
from .runtime.device import pick_device
from .runtime.forms import printable

COLUMNS = ("path", "start", "end", "video_clip", "text_clip", "caption")
EXAMPLES = """examples:
  python -m vatt.search --index features.npz "a dog pulls a sled"
  python -m vatt.search --index holidays.npz work.parquet "people dance" "rain on a window" --top 5
  python -m vatt.search --index features.npz --audio bark.wav --json

Words after --index that do not end in .npz or .parquet are texts.
exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.search",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Rank clips by a text, a sound or a video.",
    )
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
    """Return a dictionary a query: kind, query, warnings, results (see `rank`)."""
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
            raise VocabularyError(
                f"the word list has {len(tokenizer)} words but the model's table only "
                f"{config.model.text.vocabulary}; give the one it was trained with"
            )
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
        hits = rank(index, SPACE[query.kind], embedding, args.top)
        results.append({**query._asdict(), "warnings": warnings, "results": hits})
    return results


def format_results(answer: dict[str, Any]) -> str:
    lines = [f"{answer['kind']}: {answer['query']}", "  rank  cosine  clip"]
    for hit in answer["results"]:
        start, end = hit["start"], hit["end"]
        span = "" if not start and end is None else f"  {start:g}-{'end' if end is None else f'{end:g}'} s"
        windows = f"  ({hit['windows']} windows)"
        captions, more = hit["captions"], len(hit["captions"]) - 1
        caption = f"  {captions[0]}{f' (+{more})' if more else ''}" if captions else ""
        line = printable(f"{hit['path']}{span}{windows}{caption}")
        lines.append(f"  {hit['rank']:>4}  {hit['cosine']:>6.3f}  {line}")
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
    return exit_code(lambda: print_answers(args, search(args)))


if __name__ == "__main__":
    sys.exit(main())
