"""Write examples/embed_and_search.ipynb from two of the programs beside it, so that there is one text of each.

    python .ci/notebook.py

A notebook has a cell of text and a cell of code for each program, and one that runs it. Outputs are not kept.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "embed_and_search.ipynb"
TITLE = """# Embed clips and search them

Made of two programs of this folder by `python .ci/notebook.py`. A model comes from `make train`."""
SETTINGS = """from vatt.data.synthetic import build_corpus

MODEL = "runs/tiny/model"
CLIPS = build_corpus(clips=24)  # generated clips; name a folder of yours"""
CALLS = {
    "load_and_embed": "embeddings = main([MODEL, str(CLIPS)])",
    "search_your_clips": 'found = main([MODEL, str(CLIPS), "a red circle", "a blue square"])',
}


def cells() -> list[tuple[str, str]]:
    """Return (kind, text) of all cells, kind "markdown" or "code"."""
    made = [("markdown", TITLE), ("code", SETTINGS)]
    for name, call in CALLS.items():
        text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
        docstring, *_, last = ast.parse(text).body
        headline = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
        lines = text.splitlines()[docstring.end_lineno : last.lineno - 1]
        # The parser describes itself by the docstring of the module, which a notebook does not have.
        code = "\n".join(lines).strip().replace('description=__doc__.partition("\\n")[0]', "")
        made += [("markdown", f"## {headline}"), ("code", code), ("code", call)]
    return made


def notebook() -> str:
    """Return the notebook as JSON of format 4.5."""
    written: list[dict[str, object]] = []
    for number, (kind, text) in enumerate(cells()):
        cell: dict[str, object] = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        written.append(cell if kind == "markdown" else cell | {"execution_count": None, "outputs": []})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book = {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(book, indent=1) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
