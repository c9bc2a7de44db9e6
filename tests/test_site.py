"""The documents as a site: every link and anchor leads to something, every page is in the menu."""

import importlib.util
import tomllib

import pytest
from documents import ROOT

SPEC = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
build_site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build_site)


def entries(menu):
    """The pages of a menu and of the menus in it."""
    for entry in menu:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else entries(value)


def test_every_document_has_its_place_in_the_menu():
    menu = tomllib.loads((ROOT / "docs" / "site.toml").read_text())["project"]["nav"]
    assert sorted(entries(menu)) == sorted(build_site.pages().values())


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("README.md", "](reading-a-row.md#verdict)"),
        ("README.md", "](results/leaderboard.md)"),
        ("README.md", "](page.png)"),
        ("results/LEADERBOARD.md", "](../reading-a-row.md)"),
        ("docs/gpu-engine.md", "](results/index.md#on-an-h100)"),
    ],
)
def test_links_of_the_repository_lead_to_pages_of_the_site(path, link):
    assert link in build_site.site_text(path)


@pytest.mark.wide
def test_it_builds_and_no_link_is_broken(tmp_path):
    pytest.importorskip("zensical")
    assert build_site.build(tmp_path / "site") == 0
    for page in build_site.pages().values():
        name = page.removesuffix(".md").removesuffix("index").rstrip("/")
        assert (tmp_path / "site" / name / "index.html").is_file()
    start = (tmp_path / "site" / "index.html").read_text()
    assert "<h1" in start
    assert "fonts.googleapis" not in start


def test_a_broken_link_fails_the_build(tmp_path, monkeypatch):
    pytest.importorskip("zensical")
    real = build_site.site_text
    broken = {"docs/sharing.md": "[no such page](nowhere.md)"}
    monkeypatch.setattr(build_site, "site_text", lambda path: broken.get(path) or real(path))
    assert build_site.build(tmp_path / "site") != 0
    assert not (tmp_path / "site").exists()
