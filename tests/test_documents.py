"""The repository explains itself: every page that is named is in it, and its generated parts are current."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Whose sections somebody without this repository can look up.
PUBLISHED = (
    r"(RFC \d+|NIST SP [\w-]+|GraphQL over HTTP|ASVS [\d.]+|FIPS [\d-]+|OpenID Connect [\w ]+ 1\.0|draft-[\w-]+)"
)
GENERATED = {"requirements.txt", "requirements-dev.txt", "package-lock.json"}
# This page states what it looks for.
THIS = Path(__file__).name


def tracked() -> list[Path]:
    """Every text file of the repository; what is ignored or not added yet is no part of it."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        paths = [ROOT / name for name in names if name]
    else:
        hidden = {".venv", "var", "keys", "build", "node_modules", "__pycache__"}
        paths = [path for path in ROOT.rglob("*") if not hidden & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file() and path.name not in GENERATED | {THIS} and is_text(path)]


def is_text(path: Path) -> bool:
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


FILES = tracked()


def foreign(text: str) -> list[str]:
    """What of `text` sends its reader to a page that is not in the repository."""
    found = [
        match[0]
        for match in re.finditer(r"\bcontract,? section\b|\bsections? of the contract\b|\.\./shared|/work/\w+", text)
    ]
    for match in re.finditer(r"\bsections? \d[\d.]*", text):
        before = " ".join(text[max(0, match.start() - 60) : match.start()].replace("#", " ").split())
        if not re.search(rf"{PUBLISHED}[,:]?( and| \(|[\w .,-]{{0,24}})?$", before):
            found.append(f"...{before[-30:]} {match[0]}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_file_refers_to_a_page_outside_of_the_repository(path: Path) -> None:
    assert foreign(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("as contract section 9 says", 2),
        ("see section 4", 1),
        ("(security notes, section 0)", 1),
        ("read from ../shared/vectors", 1),
        ("lies in /work/main", 1),
        ("RFC 9562 section 5.7", 0),
        ("RFC 6750 section 3: none", 0),
        ("(NIST SP 800-63B-4 section 3.1.1.2)", 0),
        ("RFC 8414 says in section 3.1", 0),
    ],
)
def test_such_a_reference_would_be_found(text: str, number: int) -> None:
    assert len(foreign(text)) == number


def pages_named_in(path: Path) -> set[str]:
    """The Markdown pages that a file names, in its prose, its comments or its links."""
    text = re.sub(r"https?://\S+", "", path.read_text("utf-8"))
    return set(re.findall(r"(?<![\w*{</-])((?:[\w.-]+/)*[\w-]+\.md)\b", text))


def test_every_page_that_any_file_names_is_in_the_repository() -> None:
    pages = {path.relative_to(ROOT).as_posix() for path in FILES if path.suffix == ".md"}
    by_name = {page.rpartition("/")[2] for page in pages}
    missing = {}
    for path in FILES:
        folder = path.parent.relative_to(ROOT)
        for named in pages_named_in(path):
            whole = (ROOT / folder / named).resolve()
            if named not in pages and not whole.exists() and not ("/" not in named and named in by_name):
                missing[path.relative_to(ROOT).as_posix()] = named
    assert missing == {}


def test_every_link_of_every_page_leads_somewhere() -> None:
    broken = {}
    for path in FILES:
        if path.suffix == ".md":
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8")):
                if "://" not in target and not (path.parent / target).exists():
                    broken[path.relative_to(ROOT).as_posix()] = target
    assert broken == {}


def test_a_contributor_finds_the_way_in() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in ("CONTRIBUTING.md", "SECURITY.md", "docs/interfaces.md"):
        assert f"]({page})" in readme, page
    commands = re.findall(r"`make (\w+)`", (ROOT / "CONTRIBUTING.md").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in commands if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    assert {"run", "test", "check", "readme"} <= set(commands)
