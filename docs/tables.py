"""Writes the generated parts of README.md and docs/interfaces.md anew: `make readme`. A test holds them to the code."""

from __future__ import annotations

import re
import sys
from itertools import groupby
from pathlib import Path

from identity.app import endpoints
from identity.errors import CATALOGUE
from identity.settings import describe
from identity.wire.endpoint import Endpoint

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "interfaces.md")


def settings_table() -> str:
    """Every setting, as `identity settings --markdown` prints it."""
    rows = [
        f"| `{name}` | {kind} | {f'`{default}`' if default else ''} | {meaning} |"
        for name, kind, default, meaning in describe()
    ]
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows])


def error_table() -> str:
    """Every error code."""
    rows = [f"| {problem.status} | `{problem.code}` | {reason} |" for problem, reason in CATALOGUE]
    return "\n".join(["| status | error | when |", "|---|---|---|", *rows])


def routes() -> str:
    """Every route, by dialect: what it reads, by which policy it is limited, what it does."""
    declared = sorted(endpoints(), key=lambda endpoint: endpoint.tags[0])
    sections = [_section(name, list(group)) for name, group in groupby(declared, key=lambda endpoint: endpoint.tags[0])]
    return "\n\n".join(sections)


def _section(name: str, group: list[Endpoint]) -> str:
    elsewhere = sorted({prefix for endpoint in group for prefix in endpoint.mounts if prefix})
    shape = group[0].shape
    told = [f"Refusals: {shape.name}."]
    if elsewhere:
        told.append("Also under " + " and ".join(f"`{prefix}`" for prefix in elsewhere) + ".")
    rows = [_row(endpoint) for endpoint in sorted(group, key=lambda endpoint: (endpoint.path, endpoint.method))]
    head = ["| route | reads | limit | what it does |", "|---|---|---|---|"]
    return "\n".join([f"## {name}", "", " ".join(told), "", *head, *rows])


def _row(endpoint: Endpoint) -> str:
    method = "any method" if endpoint.any_method else endpoint.method
    reads = endpoint.reads.value + (", administrators" if endpoint.admin else ", owners" if endpoint.owners else "")
    summary = endpoint.summary.replace("|", "\\|")
    return f"| {method} `{endpoint.path}` | {reads} | {endpoint.limit or 'none'} | {summary} |"


def spliced(text: str) -> str:
    """`text` with its marked parts as the code has them now."""
    for name, part in (("settings", settings_table), ("errors", error_table), ("routes", routes)):
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if pattern.search(text):
            fresh = part()
            text = pattern.sub(lambda m, fresh=fresh: f"{m[1]}{fresh}\n{m[2]}", text)
    return text


if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text()
        page.write_text(spliced(before))
        state = "is up to date" if spliced(before) == before else "written anew"
        sys.stdout.write(f"{page.relative_to(ROOT)} {state}\n")
