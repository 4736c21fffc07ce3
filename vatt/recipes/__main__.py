"""The paper's tables, row by row: `python -m vatt.recipes [NAME]` prints what leads to each number.

A recipe is a row of vatt.recipes.rows; `commands` are all steps from the official annotation files to the score, and
`settings` what they resolve to. The paper's corpora have to be there already: nothing is downloaded.
"""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
import textwrap
from collections.abc import Iterable
from typing import Any

from .. import evaluate, finetune
from ..config.finetuning import FinetuneConfig
from ..errors import ConfigError
from ..runtime.cli import exit_code
from .rows import CHECKPOINTS, DATASETS, PRETRAINING, RECIPES, Recipe

EXAMPLES = """examples:
  python -m vatt.recipes                     all recipes, with the paper's numbers
  python -m vatt.recipes --table 1           those of one table
  python -m vatt.recipes k400-medium         the commands of one, from annotation file to score
  python -m vatt.recipes k400-medium > k400.sh

The checkpoints are expected in downloads/, see "Where the official files are" in docs/checkpoints.md; media folders are
named as their data sets are usually unpacked: change --media to yours. `python bench/paper_tables.py k400-medium=FILE`
prints a result.json beside the paper's numbers. A fine-tuned checkpoint of the release needs no training: convert it,
and score it with python -m vatt.evaluate --task classify.
exit codes: 0 done, 2 no such recipe."""
WORDS = "downloads/misc/howto100m_en.txt"


def source_commands(recipe: Recipe) -> list[str]:
    """Return the commands from annotation files to manifests."""
    dataset = DATASETS[recipe.dataset]
    return [
        f"python -m vatt.data.sources {source} --out {manifest}"
        for source, manifest in zip(dataset.sources, dataset.manifests(recipe.dataset), strict=True)
    ]


def start_commands(recipe: Recipe) -> list[str]:
    """Return the commands to the model that is fine-tuned or frozen: the official checkpoint, or a pre-training of
    one's own.
    """
    folder = start(recipe)
    if recipe.scratch:
        return []
    if recipe.drop is not None:
        return [
            f"python -m vatt.data.sources {PRETRAINING.sources[0]} --out howto100m.csv",
            f"python -m vatt.train --preset {recipe.model} --fused --data howto100m.csv --batch-size 2048 --drop-rate "
            f"{recipe.drop:g} --set data.vocabulary={WORDS} --set model.text.freeze_embedding=false --out {folder}",
        ]
    convert = f"python -m vatt.official convert downloads/{CHECKPOINTS[recipe.model]}/ckpt-500000 --out {folder}"
    return [convert, f"cp {WORDS} {folder}/vocabulary.txt"] if recipe.task == "retrieve" else [convert]


def start(recipe: Recipe) -> str:
    """Return folder of the model that is fine-tuned or frozen."""
    if recipe.drop is not None:
        return f"runs/{recipe.model}-drop-{100 * recipe.drop:.0f}"
    return f"vatt-{recipe.model.replace('_', '-')}"


def score_command(recipe: Recipe) -> str:
    """Return the last one, which ends with the score in runs/NAME/result.json."""
    dataset = DATASETS[recipe.dataset]
    data = " ".join(dataset.manifests(recipe.dataset))
    out = f"--out runs/{recipe.name}"
    if not recipe.tuned:
        split = "" if recipe.task == "probe" else f" --split {dataset.split}"
        run = f"--run {start(recipe)} --data {data}{split}"
        return f"python -m vatt.evaluate --task {recipe.task} {run} {recipe.flags} {out}"
    init = f"none --model {recipe.model}" if recipe.scratch else start(recipe)
    flags = f"{recipe.flags} " if recipe.flags else ""
    split = "" if dataset.split == "test" else f"--set data.test_split={dataset.split} "
    return f"python -m vatt.finetune --task {recipe.task} --data {data} --init {init} --fused {flags}{split}{out}"


def commands(recipe: Recipe) -> list[str]:
    """Return all of them, in order, as a shell takes them."""
    return [*start_commands(recipe), *source_commands(recipe), score_command(recipe)]


def settings(recipe: Recipe) -> FinetuneConfig | dict[str, Any]:
    """Return what the last command resolves to with the sizes of its checkpoint: settings, or the flags of
    vatt.evaluate.
    """
    words = shlex.split(score_command(recipe))[3:]
    if not recipe.tuned:
        return vars(evaluate.parse_arguments(words))
    if not recipe.scratch:
        position = words.index("--init") + 1
        words[position : position + 1] = ["none", "--model", recipe.model]
    return finetune.resolve_config(finetune.parse_arguments(words))


def recipe(name: str) -> Recipe:
    """Return the named one. Raises `ConfigError` with the nearest name for an unknown one."""
    if name not in RECIPES:
        close = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "python -m vatt.recipes lists them"
        raise ConfigError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name]


def format_recipe(recipe: Recipe) -> str:
    """Return commands under comments, which a shell can run."""
    scores = ", ".join(f"{name} {value:g}" for name, value in recipe.paper.items())
    begin = "random weights" if recipe.scratch else f"the official checkpoint pretrain/{CHECKPOINTS[recipe.model]}"
    if recipe.drop is not None:
        begin = f"a pre-training of its own with {recipe.drop:.0%} of the tokens dropped"
    title = f"{recipe.name}: Table {recipe.table}, {recipe.row} on {DATASETS[recipe.dataset].name}"
    about = [title, f"paper: {scores}; starts from {begin}", *textwrap.wrap(recipe.note, 110)]
    return "\n".join([*(f"# {line}" for line in about), *commands(recipe)])


def listing(recipes: Iterable[Recipe]) -> str:
    """Return a line for each recipe."""
    lines = [f"{'recipe':<22}{'table':<7}{'row':<28}{'on':<17}paper"]
    for one in recipes:
        scores = ", ".join(f"{name} {value:g}" for name, value in one.paper.items())
        lines.append(f"{one.name:<22}{one.table:<7}{one.row:<28}{DATASETS[one.dataset].name:<17}{scores}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vatt.recipes",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The commands from annotation file to score for every row of the paper's tables.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="print the commands of these (default: list them all)")
    parser.add_argument("--table", type=int, choices=range(1, 7), help="only recipes of this table")
    args = parser.parse_args(argv)

    def action() -> None:
        if args.names:
            print("\n\n".join([format_recipe(recipe(name)) for name in args.names]))
        else:
            print(listing(one for one in RECIPES.values() if args.table in (None, one.table)))

    return exit_code(action)


if __name__ == "__main__":
    sys.exit(main())
