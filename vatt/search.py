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
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .checkpoints.model_folder import load_tokenizer
from .data.tokenizer import Tokenizer, VocabularyError
from .inference.features_file import SUFFIXES
from .inference.search.archive import SUFFIX, is_archive
from .inference.search.cards import search_page
from .inference.search.index import SPACE, Query, SearchIndex
from .inference.search.server import serve
from .runtime.cli import exit_code
from .runtime.device import pick_device
from .runtime.files import write_atomically
from .runtime.forms import printable

EXAMPLES = """examples:
  python -m vatt.search --index features.npz "a dog pulls a sled"
  python -m vatt.search --index holidays.npz work.parquet "people dance" "rain on a window" --top 5
  python -m vatt.search --index features.npz --audio bark.wav --json
  python -m vatt.search --index features.npz "a dog" --html found.html
  python -m vatt.search --index archive.lance --serve
  python -m vatt.search --index archive.lance "a dog" --where "label = 'dog' and start > 60" --per-file 1

Words after --index that do not end in .npz, .parquet or .lance are texts.
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
    add("--serve", action="store_true", help="a page to search with, for a browser on this machine")
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where --serve listens (default: this machine only)")
    add("--port", type=int, default=7860, metavar="N", help="its port (default 7860; 0: one that is free)")
    add(
        "--where",
        metavar="FILTER",
        help="only clips of an archive for which this holds, in SQL: \"label = 'dog' and start > 60\"",
    )
    add("--per-file", type=int, metavar="N", help="list at most N moments of a file (default: as many as come)")
    add("--top", type=int, default=10, metavar="N", help="clips to list for each query (default 10)")
    add("--model", type=Path, metavar="DIR", help="folder of the model (default: the one the index names)")
    add("--vocabulary", type=Path, metavar="FILE", help="word list (default: vocabulary.txt in the model's folder)")
    add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
    add("--json", action="store_true", help="print JSON instead of a table")
    add("--html", type=Path, metavar="FILE", help="write a page to look at: pictures, and players that start there")
    args = parser.parse_args(argv)
    # `--index a.npz "a dog"` is how people write it, and argparse gives --index all of it.
    files = [name for name in args.index if name.endswith(SUFFIXES) or is_archive(name)]
    args.texts = [name for name in args.index if name not in files] + args.texts
    args.index = list({name if "://" in name else Path(name).resolve(): name for name in files}.values())  # each once
    if not files:
        parser.error(f"--index takes files of features, ending in {' or '.join((*SUFFIXES, SUFFIX))}")
    if not 0 <= args.port < 2**16:
        parser.error(f"--port is 0 to 65535, got {args.port}")
    if not (args.serve or args.texts or args.audio or args.video):
        parser.error('nothing to search for; give a text in quotes ("a dog barks"), --audio FILE or --video FILE')
    for name in ("top", "per_file"):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} is at least 1, got {value}")
    return args


def open_index(args: argparse.Namespace, kinds: Collection[str]) -> SearchIndex:
    """The index that the flags name, with its model and the words of its texts."""
    index = SearchIndex(args.index, args.model, device=pick_device(args.device), kinds=kinds)
    model = index.model
    if "text" in kinds and (args.vocabulary or model.tokenizer is None):
        assert model.folder is not None
        model.tokenizer = Tokenizer.from_file(args.vocabulary) if args.vocabulary else load_tokenizer(model.folder)
        if len(model.tokenizer) > model.settings.model.text.vocabulary:
            raise VocabularyError(
                f"the word list has {len(model.tokenizer)} words but the model's table only "
                f"{model.settings.model.text.vocabulary}; give the one it was trained with"
            )
    if index.silent:
        print(f"{index.silent} clips without video are not ranked", file=sys.stderr)
    return index


def search(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A dictionary a query: kind, query, warnings, results (see `rank`)."""
    queries = [Query("text", text) for text in args.texts]
    queries += [Query("audio", path) for path in args.audio] + [Query("video", path) for path in args.video]
    index = open_index(args, {query.kind for query in queries})
    return [index.answer(query, args.top, args.where, args.per_file) for query in queries]


def format_results(answer: dict[str, Any]) -> str:
    lines = [f"{answer['kind']}: {answer['query']}", "  rank  cosine  clip"]
    for found in answer["results"]:
        start, end = found["start"], found["end"]
        span = "" if not start and end is None else f"  {start:g}-{'end' if end is None else f'{end:g}'} s"
        windows = f"  ({found['windows']} window{'s' * (found['windows'] != 1)})"
        captions, more = found["captions"], len(found["captions"]) - 1
        said = f"  {captions[0]}{f' (+{more})' if more else ''}" if captions else ""
        missing = "  (the file is gone)" if found["gone"] else ""
        place = printable(f"{found['path']}{span}{windows}{missing}{said}")
        lines.append(f"  {found['rank']:>4}  {found['cosine']:>6.3f}  {place}")
    return "\n".join(lines if answer["results"] else [*lines, "  nothing was found"])


def print_answers(args: argparse.Namespace, answers: list[dict[str, Any]]) -> None:
    if args.html:
        write_atomically(args.html, search_page(answers, args.html.parent).encode(errors="surrogateescape"))
        print(f"{args.html} is written", file=sys.stderr)
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

    def action() -> None:
        if args.serve:
            serve(open_index(args, SPACE), args.host, args.port)
        else:
            print_answers(args, search(args))

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
