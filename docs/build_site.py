"""Build the documents as a site: `python docs/build_site.py OUTPUT`.

A document's links are those of the repository, so that they work where its files are read. In the
site the README is the first page, and links to documents that lie elsewhere follow them to their
new places. Zensical (the group `docs` of pyproject.toml) checks every link and anchor.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "results/README.md": "results/index.md",
    "results/LEADERBOARD.md": "results/leaderboard.md",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)]*)?\)")


def pages() -> dict[str, str]:
    """Return every document's path in the repository and its path in the site."""
    here = {f"docs/{path.name}": path.name for path in sorted((ROOT / "docs").glob("*.md"))}
    return ELSEWHERE | here


def site_text(path: str) -> str:
    """Return a document with the links that lead to the right pages of the site."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return LINK.sub(lambda link: f"]({_link(path, link[1])}{link[2] or ''})", text)


def _link(path: str, target: str) -> str:
    """Return a link of the site, given the document that holds it and its target there."""
    known = pages()
    source = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
    page = known.get(source, source.removeprefix("docs/"))
    return posixpath.relpath(page, posixpath.dirname(known[path]) or ".")


def build(output: Path) -> int:
    """Build the site in a folder. Return the exit code of Zensical: 0 where every link leads to
    something.
    """
    with TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(ROOT / "docs" / "site.toml", root / "zensical.toml")
        for path, page in pages().items():
            (root / "docs" / page).parent.mkdir(parents=True, exist_ok=True)
            (root / "docs" / page).write_text(site_text(path), encoding="utf-8")
        for picture in (ROOT / "docs").glob("*.png"):
            shutil.copy(picture, root / "docs")
        command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
        code = subprocess.run(command, cwd=root).returncode
        if not code:
            shutil.copytree(root / "site", output, dirs_exist_ok=True)
        return code


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(build(Path(sys.argv[1])))
