"""`python -m tests.mutants [--count N] [--seed S] [WING ...]`: mutants of the wings that decide, each against its wing's tests.

A copy of the repository is broken, never the repository. A mutant that makes the tests hang counts as noticed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WINGS = ("tokens", "clients", "signin", "access", "proofs")
ROOT = Path(__file__).parent.parent.parent
SECONDS = 300
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


def is_noticed(mutant: Mutant, tests: list[str], copied: Path) -> bool:
    """Whether a test fails with this mutant in place."""
    target = copied / mutant.path
    before = target.read_text()
    target.write_text(mutant.text)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not postgresql", *tests]
    try:
        return subprocess.run(
            command,
            cwd=copied,
            env=os.environ | {"PYTHONPATH": str(copied)},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        ).returncode not in (0, 5)
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(before)


def main() -> None:
    """Choose mutants by chance, try each, and print those that nobody noticed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("wings", nargs="*", default=list(WINGS))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    found = [
        (wing, mutant)
        for wing in options.wings
        for path in sorted((ROOT / "identity/core" / wing).glob("*.py"))
        for mutant in mutants_of(path.relative_to(ROOT))
    ]
    chosen = chance.sample(found, min(options.count, len(found)))
    with tempfile.TemporaryDirectory(prefix="id-mutants-") as folder:
        copied = Path(folder) / "copy"
        shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".git", ".venv", "var", "keys", "__pycache__"))
        survivors = 0
        for wing, mutant in chosen:
            tests = [f"tests/core/{wing}", "tests/test_survivors.py"]
            noticed = is_noticed(mutant, tests, copied)
            survivors += not noticed
            verdict = "noticed " if noticed else "SURVIVED"
            print(f"{verdict} {mutant.path}:{mutant.line}: {mutant.deed}", flush=True)
    print(f"{len(chosen)} of {len(found)} mutants tried (seed {options.seed}), {survivors} survived")


if __name__ == "__main__":
    main()
