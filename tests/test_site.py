"""The built documentation: its examples are code, its links lead somewhere, its navigation reaches every page."""

import html.parser
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest

_ROOT = pathlib.Path(__file__).parents[1]
_SITE_URL = re.search(r"^site_url: (\S+)$", (_ROOT / "mkdocs.yml").read_text(), re.MULTILINE)[1]
_VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
_PRIVATE = re.compile(r"jaxprune\.(\w+\.)*_(?!_)\w+")

pytestmark = [
    pytest.mark.whole,
    pytest.mark.skipif(
        importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs, which `pip install -e '.[dev]'` brings"
    ),
]


class _Page(html.parser.HTMLParser):
    """The anchors, the links and the text of a page, each with the elements that it stands in."""

    def __init__(self, path):
        super().__init__()
        self.anchors = set()
        self.links = []  # (address, whether in the navigation)
        self.texts = []  # (text, the classes and names of the elements around it)
        self._open = []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if "id" in values:
            self.anchors.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append((values["href"], any("nav" in around for around in self._open)))
        if tag not in _VOID:
            self._open.append({tag, *(values.get("class") or "").split()})

    def handle_endtag(self, tag):
        while self._open and tag not in self._open.pop():
            pass

    def handle_data(self, data):
        if not any({"script", "style"} & around for around in self._open):
            self.texts.append((data, set().union(*self._open)))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page of the site by its path; the site is built unless `JAXPRUNE_SITE` names a folder that holds it."""
    site = pathlib.Path(os.environ.get("JAXPRUNE_SITE") or tmp_path_factory.mktemp("site"))
    if "JAXPRUNE_SITE" not in os.environ:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
        built = subprocess.run(
            command,
            check=False,
            cwd=_ROOT,
            env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
        )
        assert built.returncode == 0, built.stderr
    found = {path.relative_to(site): _Page(path) for path in site.rglob("*.html")}
    assert len(found) > 10
    return found


def _target(page, address):
    """The page that a link leads to and the anchor on it; `None` for another site or another kind of file."""
    url = urllib.parse.urljoin(_SITE_URL + page.as_posix(), address)
    if not url.startswith(_SITE_URL):
        return None
    path, _, anchor = url.removeprefix(_SITE_URL).partition("#")
    path = pathlib.Path(path or ".")
    if path.suffix not in ("", ".html"):
        return None
    return (path if path.suffix else path / "index.html"), urllib.parse.unquote(anchor)


def test_examples_are_code(pages):
    """`Example:` in a docstring is an admonition, whose `>>>` Markdown takes for quotations; `Examples:` is code."""
    texts = [
        (path, text, around) for path, page in pages.items() if path.parts[0] == "api" for text, around in page.texts
    ]
    prompts = [(path, around) for path, text, around in texts if ">>>" in text]
    assert len(prompts) > 50
    assert {path for path, around in prompts if not {"highlight", "code"} <= around} == set()
    assert {path for path, _, around in texts if {"blockquote", "example"} & around} == set()


def test_no_markup_is_left_in_the_text(pages):
    """What MkDocs or an extension did not understand comes out as it was written."""
    marks = re.compile(r"^\s*(===|!!!|:::|```)|<!--|--8<--|\]\([\w./-]+\.md\)")
    left = {
        (path, text)
        for path, page in pages.items()
        for text, around in page.texts
        if marks.search(text) and not {"code", "mermaid"} & around
    }
    assert left == set()


def test_every_link_leads_somewhere(pages):
    dead = []
    for path, page in pages.items():
        for address, _ in page.links:
            target = _target(path, address)
            if target is None:
                continue
            to, anchor = target
            if to not in pages or (anchor and anchor not in pages[to].anchors):
                dead.append((str(path), address))
    assert dead == []


def test_readme_works_outside_the_repository(pages):
    """The package index shows the README too, so its links are absolute; those to this site lead somewhere."""
    links = re.findall(r"\]\((.*?)\)", (_ROOT / "README.md").read_text())
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []
    targets = [_target(pathlib.Path("index.html"), link) for link in links]
    assert [link for link, to in zip(links, targets, strict=True) if to is not None and to[0] not in pages] == []


def test_every_page_is_reachable_from_the_navigation(pages):
    home = pathlib.Path("index.html")
    reached, waiting = set(), [home]
    while waiting:
        path = waiting.pop()
        if path in reached or path not in pages:
            continue
        reached.add(path)
        targets = [_target(path, address) for address, in_navigation in pages[path].links if in_navigation]
        waiting.extend(target[0] for target in targets if target is not None)
    assert set(pages) - reached == {pathlib.Path("404.html")}


def test_api_pages_name_no_private_module(pages):
    rendered = {path: page for path, page in pages.items() if path.parts[0] == "api"}
    assert len(rendered) > 10
    named = [
        (str(path), found[0])
        for path, page in rendered.items()
        for text in [*(text for text, _ in page.texts), *page.anchors, *(address for address, _ in page.links)]
        if (found := _PRIVATE.search(text))
    ]
    assert named == []
