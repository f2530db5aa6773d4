"""What importing the kit brings with it, and what the package promises."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import identity_verifier

HERE = Path(identity_verifier.__file__).parent
HEAVY = ("flask", "fastapi", "django", "httpx", "requests", "pytest", "starlette", "identity")


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_it_brings_no_framework() -> None:
    names = ("", ".client", ".testing", ".conformance", ".asgi", ".wsgi")
    loaded = loaded_by("; ".join(f"import identity_verifier{name}" for name in names))
    assert not [name for name in HEAVY if name in loaded]


def test_it_needs_nothing_but_pyjwt() -> None:
    needed = [each for each in distribution("identity-verifier").requires or [] if "extra ==" not in each]
    assert [each.lower().replace(" ", "") for each in needed] == ["pyjwt[crypto]>=2.10"]


def test_it_imports_nothing_of_the_service() -> None:
    for path in HERE.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.lstrip().startswith(
                ("import identity.", "from identity.", "from identity import", "import identity\n")
            ), path


def test_it_is_typed() -> None:
    assert (HERE / "py.typed").exists()


def test_the_version_is_in_the_changelog() -> None:
    changelog = Path(__file__).parents[1] / "CHANGELOG.md"
    assert f"## [{identity_verifier.__version__}]" in changelog.read_text()
