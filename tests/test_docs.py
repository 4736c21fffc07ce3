"""Pages: every relative link leads somewhere, the site lists every page, and no command of the console is left out."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from vatt import __main__ as console

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("bench", "docs", "examples", "findings", "reports")
FRONTS = ("examples", "bench")  # folders of programs with a page
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        ROOT / "bench" / "README.md",
        *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")),
    }
)
LINK = re.compile(r"(?<!`)!?\[[^\]\n]*(?:\n[^\]\n]*)?\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link may name in `page`: its headings in lower case, words joined by hyphens, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return frozenset(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    wrong = []
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.is_relative_to(ROOT):
            wrong.append(f"{link} leads out of the project")
            continue
        first = path.relative_to(ROOT).parts[0]
        if first in ("reports", "findings") and not (ROOT / first).exists():
            continue  # a source distribution has neither
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            wrong.append(link)
    assert wrong == []


def test_the_site_lists_every_page_and_no_other():
    listed = re.findall(r": ((?:\w+/)?[\w.]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert {page for page in listed if page.split("/")[0] not in ("reports", "findings")} == {
        name(page)
        for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / f / "README.md" for f in FRONTS)]
    }


def test_every_command_has_a_place_on_the_pages():
    text = "\n".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    for module, _ in console.COMMANDS.values():
        assert f"python -m {module} " in text, f"no page shows python -m {module}"
    commands = {path.stem for path in (ROOT / "bench").glob("*.py") if "def main(" in path.read_text(encoding="utf-8")}
    for command in commands - {"draw_reports"}:
        assert f"bench/{command}.py" in text, f"no page shows bench/{command}.py"


def test_readme_is_an_entrance():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160
    assert all(f"](docs/{page.name}" in "\n".join(lines) for page in (ROOT / "docs").glob("*.md"))


def test_the_software_is_cited_at_its_version():
    from vatt import __version__

    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
