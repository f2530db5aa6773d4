"""Writes the README's generated tables anew: `make readme`. A test holds them to the code."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from identity.errors import CATALOGUE
from identity.settings import describe

README = Path(__file__).parent.parent / "README.md"


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


def spliced(text: str) -> str:
    """`text` with its marked tables as the code has them now."""
    for name, table in (("settings", settings_table()), ("errors", error_table())):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    before = README.read_text()
    README.write_text(spliced(before))
    sys.stdout.write("README.md is up to date\n" if spliced(before) == before else "README.md written anew\n")
