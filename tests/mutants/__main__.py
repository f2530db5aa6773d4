"""`python -m tests.mutants [--count N] [--seed S] [WING ...]`: mutants of the wings that decide, each against the tests of its module.

Those are the tests that import the module and those of the door that leads to its wing, on SQLite, the nearest first, until one fails.
A copy of the repository is broken, never the repository. One that makes the tests hang is told apart.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

WINGS = ("tokens", "clients", "signin", "access", "proofs")
DOORS = {
    "tokens": ("wire/test_status.py", "wire/test_custom_claims.py"),
    "clients": ("wire/test_oauth.py", "wire/test_token_reuse.py"),
    "signin": ("wire/test_s7risk.py", "wire/test_threatwinds.py", "wire/test_invitations.py"),
    "access": ("wire/test_gate.py", "wire/test_tenant_policy.py"),
    "proofs": ("core/signin/test_factors.py", "core/signin/test_new_password.py"),
}
ROOT = Path(__file__).parent.parent.parent
SECONDS = 600
NEAREST = 4
AT_ONCE = 2
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not postgresql and not live")
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


@dataclass(frozen=True)
class Mutant:
    """One breakage: the file, the line, what it does, and the file's text with it."""

    path: Path
    line: int
    deed: str
    text: str


def broken(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may take the place of `node`."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in _COMPARISONS:
            other = copy.deepcopy(node)
            other.ops = [_COMPARISONS[type(op)]()]
            yield f"{type(op).__name__} becomes {type(other.ops[0]).__name__}", other
        case ast.BoolOp():
            other = copy.deepcopy(node)
            other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield "and/or change places", other
        case ast.UnaryOp(op=ast.Not()):
            yield "not is left out", node.operand
        case ast.Constant(value=bool()):
            yield f"{node.value} becomes {not node.value}", ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield f"{node.value} becomes {node.value + 1}", ast.Constant(node.value + 1)
        case ast.Raise():
            yield "the refusal is left out", ast.Pass()
        case ast.Expr(value=ast.Call()):
            yield "the call is left out", ast.Pass()


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of a file, one change each."""
    source = (ROOT / path).read_text()
    for place, node in enumerate(ast.walk(ast.parse(source))):
        for deed, other in broken(node):
            tree = ast.parse(source)
            target = next(each for at, each in enumerate(ast.walk(tree)) if at == place)

            class Put(ast.NodeTransformer):
                def visit(self, node: ast.AST, target: ast.AST = target, other: ast.AST = other) -> ast.AST:
                    return other if node is target else super().visit(node)

            text = ast.unparse(ast.fix_missing_locations(Put().visit(tree)))
            yield Mutant(path, getattr(node, "lineno", 0), deed, text)


def tests_of(path: Path) -> list[str]:
    """The test files for a module of a wing, the nearest first."""
    wing, stem = path.parts[2], path.stem
    imports = re.compile(rf"identity\.core\.{wing}(\.{stem} import| import [^\n]*\b{stem}\b)")
    found = [
        str(each.relative_to(ROOT))
        for each in sorted((ROOT / "tests").rglob("test_*.py"))
        if imports.search(each.read_text()) and not {"faults", "recipes"} & set(each.parts) and "live" not in each.stem
    ]
    found.sort(key=lambda name: (stem not in name, f"core/{wing}/" not in name))
    return list(
        dict.fromkeys([*found[:NEAREST], "tests/test_survivors.py", *(f"tests/{door}" for door in DOORS[wing])])
    )


def verdict_of(mutant: Mutant, tests: list[str], copied: Path) -> str:
    """What the tests make of this mutant: noticed, SURVIVED, or hung (a slow machine may say so of a survivor)."""
    target = copied / mutant.path
    before = target.read_text()
    target.write_text(mutant.text)
    try:
        code = subprocess.run(
            [sys.executable, "-m", *PYTEST, "-x", *tests],
            cwd=copied,
            env=os.environ | {"PYTHONPATH": str(copied)},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        target.write_text(before)
    return "SURVIVED" if code in (0, 5) else "noticed"


def chosen_of(wings: Sequence[str], count: int, seed: int) -> tuple[list[Mutant], int]:
    """So many mutants of these wings, by chance, and how many there are."""
    found = [
        mutant
        for wing in wings
        for path in sorted((ROOT / "identity/core" / wing).glob("*.py"))
        for mutant in mutants_of(path.relative_to(ROOT))
    ]
    return random.Random(seed).sample(found, min(count, len(found))), len(found)


def copy_to(folder: Path) -> Path:
    """A copy of the repository that may be broken."""
    left = shutil.ignore_patterns(".git", ".venv", "var", "keys", "__pycache__", "node_modules")
    return Path(shutil.copytree(ROOT, folder, ignore=left))


def main() -> None:
    """Choose mutants by chance, try two at a time, and print those that nobody noticed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wings", nargs="*", default=list(WINGS))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chosen, of = chosen_of(options.wings, options.count, options.seed)
    with tempfile.TemporaryDirectory(prefix="id-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(AT_ONCE):
            copies.put(copy_to(Path(folder) / f"copy{number}"))

        def try_one(mutant: Mutant) -> str:
            copied = copies.get()
            try:
                verdict = verdict_of(mutant, tests_of(mutant.path), copied)
            finally:
                copies.put(copied)
            print(f"{verdict:8} {mutant.path}:{mutant.line}: {mutant.deed}", flush=True)
            return verdict

        with ThreadPoolExecutor(AT_ONCE) as pool:
            verdicts = Counter(pool.map(try_one, chosen))
    said = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    print(f"{len(chosen)} of {of} mutants tried (seed {options.seed}): {said}")


if __name__ == "__main__":
    main()
