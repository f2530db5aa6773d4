"""What we ship keeps its promises: hashed locks without addresses, a modest image, a make that says what it misses."""

import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).parent.parent
LOCKS = ("requirements.txt", "requirements-dev.txt")


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def declared(section: str, option: str) -> list[Requirement]:
    lines = setup_cfg()[section][option].splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def locked(name: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Each package's pins with their hashes; two pins where the version of Python decides between them."""
    text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
    pins: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            pin = Requirement(requirement)
            pins.setdefault(canonicalize_name(pin.name), []).append((pin, hashes))
    return pins


def dockerfile() -> list[list[tuple[str, str]]]:
    """The stages of the Dockerfile, each a list of (instruction, its text)."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    stages: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, text.splitlines()):
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            stages.append([])
        stages[-1].append((instruction, " ".join(rest.split())))
    return stages


def last(stage: list[tuple[str, str]], instruction: str) -> str:
    return [text for name, text in stage if name == instruction][-1]


# --- Locks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_is_exact_and_hashed(name: str) -> None:
    pins = locked(name)
    assert pins
    for pin, hashes in (each for versions in pins.values() for each in versions):
        assert re.fullmatch(r"==[^*]+", str(pin.specifier)), pin
        assert hashes, pin
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", digest.strip()) for digest in hashes), pin


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_index_and_no_path(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"://|file:|--(extra-)?index|--find-links|--trusted|(^|\s)[/~]", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("section", "option", "lock"),
    [
        ("options", "install_requires", "requirements.txt"),
        ("options.extras_require", "build", "requirements.txt"),
        ("options", "install_requires", "requirements-dev.txt"),
        ("options.extras_require", "dev", "requirements-dev.txt"),
    ],
)
def test_the_lock_holds_what_setup_cfg_asks_for(section: str, option: str, lock: str) -> None:
    pins = locked(lock)
    for wanted in declared(section, option):
        versions = pins.get(canonicalize_name(wanted.name), [])
        assert versions, f"{wanted} is not in {lock}: make lock"
        for pin, _ in versions:
            (exact,) = pin.specifier
            assert wanted.specifier.contains(exact.version, prereleases=True), f"{wanted} but {pin}: make lock"


def test_what_serves_is_what_was_tested() -> None:
    tested = locked("requirements-dev.txt")
    for name, versions in locked("requirements.txt").items():
        assert {str(pin) for pin, _ in versions} == {str(pin) for pin, _ in tested[name]}


def test_no_test_tool_is_installed_with_the_service() -> None:
    development = {canonicalize_name(each.name) for each in declared("options.extras_require", "dev")}
    assert not development & set(locked("requirements.txt"))


def test_the_version_is_said_once() -> None:
    config = setup_cfg()
    assert config["metadata"]["version"] == "attr: identity.__version__"
    # Read as text by setuptools, before anything that identity imports is installed.
    assert re.search(r'^__version__ = "\d+\.\d+\.\d+"$', (ROOT / "identity/__init__.py").read_text(), re.MULTILINE)


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def test_the_image_runs_as_a_numbered_user_who_is_not_root() -> None:
    user, _, group = last(dockerfile()[-1], "USER").partition(":")
    assert int(user) > 0
    assert int(group) > 0


def test_the_image_starts_the_command_that_setup_cfg_declares() -> None:
    stage = dockerfile()[-1]
    assert json.loads(last(stage, "ENTRYPOINT")) == ["identity"]
    assert json.loads(last(stage, "CMD")) == ["serve"]
    assert setup_cfg()["options.entry_points"]["console_scripts"].strip() == "identity = identity.cli:main"


def test_the_image_is_built_in_one_stage_and_shipped_in_another() -> None:
    build, final = dockerfile()
    assert build[0] == ("FROM", "python:3.12-slim AS build")
    assert final[0] == ("FROM", "python:3.12-slim")
    assert any("pip install --require-hashes" in text for _, text in build)
    assert not any("pip" in text for name, text in final if name == "RUN")


def test_the_image_brings_no_secret_and_keeps_keys_and_data_in_volumes() -> None:
    stages = dockerfile()
    assert json.loads(last(stages[-1], "VOLUME")) == ["/app/var", "/app/keys"]
    for name, text in (each for stage in stages for each in stage):
        assert name != "ARG"
        assert name != "ADD"
        if name == "ENV":
            assert not re.search(r"KEY|SECRET|PASSWORD|TOKEN|DEVELOPMENT|_URL", text)
        if name == "COPY" and not text.startswith("--from="):
            assert not re.search(r"(^|[ /])(\.|keys|var|\.env)( |/|$)", text.rsplit(" ", 1)[0])


def test_the_engine_is_sent_nothing_but_what_the_image_is_built_from() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    sent = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for stage in dockerfile()
        for name, text in stage
        if name == "COPY" and not text.startswith("--from=")
        for source in text.split()[:-1]
    }
    assert sent == copied
    assert all((ROOT / source).exists() for source in copied)


def test_the_health_check_asks_readiness_with_what_the_image_has() -> None:
    options, _, command = last(dockerfile()[-1], "HEALTHCHECK").partition("CMD ")
    assert "--interval=" in options
    program, flag, code = json.loads(command)
    assert (program, flag) == ("python", "-c")
    assert "http://127.0.0.1:8000/health/ready" in code
    assert "IDENTITY_BIND=0.0.0.0:8000" in last(dockerfile()[-1], "ENV")
    # Nobody listens on the address it asks here, so it must end as unhealthy, and not as a syntax error.
    unused = code.replace("127.0.0.1:8000", "127.0.0.1:1")
    asked = subprocess.run([sys.executable, "-c", unused], capture_output=True, text=True, check=False, timeout=30)
    assert asked.returncode == 1
    assert "URLError" in asked.stderr


# --- Make and CI ------------------------------------------------------------------------------------------------------


def make(*arguments: str, cwd: pathlib.Path, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }
    program = shutil.which("make")
    assert program, "make is needed (Debian: make)"
    return subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def fresh(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with what make needs to see, and no environment yet."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def a_program(folder: pathlib.Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_make_names_the_packages_when_there_is_no_python(fresh: pathlib.Path) -> None:
    result = make("run", cwd=fresh, path=str(fresh / "empty"))
    assert result.returncode != 0
    assert "Python 3.11 or newer is needed" in result.stderr
    assert "python3-venv" in result.stderr


def test_make_refuses_a_python_that_is_too_old(fresh: pathlib.Path) -> None:
    a_program(fresh / "bin", "python3", "exit 1")
    assert "Python 3.11 or newer is needed" in make("run", cwd=fresh, path=str(fresh / "bin")).stderr
    chosen = make("run", f"PYTHON={fresh}/bin/python3", cwd=fresh)
    assert "is not Python 3.11 or newer" in chosen.stderr


def test_make_names_the_package_that_brings_venv(fresh: pathlib.Path) -> None:
    # As Debian ships it: Python is there, ensurepip is a package of its own.
    a_program(fresh / "bin", "python3.12", 'case "$2" in *ensurepip*) exit 1;; esac')
    result = make("run", cwd=fresh, path=str(fresh / "bin"))
    assert result.returncode != 0
    assert "install python3-venv" in result.stderr
    assert not (fresh / ".venv").exists()


def test_running_installs_no_test_tool_and_hashes_are_required(fresh: pathlib.Path) -> None:
    plan = make("--dry-run", "run", cwd=fresh).stdout
    assert "--require-hashes -r requirements.txt" in plan
    assert "requirements-dev.txt" not in plan
    assert "--require-hashes -r requirements-dev.txt" in make("--dry-run", "test", cwd=fresh).stdout


def test_a_second_make_installs_nothing(fresh: pathlib.Path) -> None:
    (fresh / ".venv").mkdir()
    for stamp in (".made", ".runtime", ".dev", ".project"):
        (fresh / ".venv" / stamp).touch()
    for target in ("run", "test", "check"):
        assert "pip" not in make("--dry-run", target, cwd=fresh).stdout


def test_a_changed_lock_is_installed(fresh: pathlib.Path) -> None:
    (fresh / ".venv").mkdir()
    for stamp in (".made", ".runtime", ".dev", ".project"):
        (fresh / ".venv" / stamp).touch()
    later = (fresh / ".venv/.project").stat().st_mtime + 10
    os.utime(fresh / "requirements.txt", (later, later))
    plan = make("--dry-run", "run", cwd=fresh).stdout
    assert "--require-hashes -r requirements.txt" in plan


def test_ci_can_be_run_and_calls_both_halves() -> None:
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    text = script.read_text()
    assert "set -euo pipefail" in text
    assert text.index("make check") < text.index("make test")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


# --- Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["keys/master.key", "keys/old.pem", "var/identity.db", "var/mail/1.eml", ".env", ".venv/x"]
)
def test_git_ignores_what_is_secret_or_made(path: str) -> None:
    if not (ROOT / ".git").exists():
        text = (ROOT / ".gitignore").read_text() + (ROOT / "keys/.gitignore").read_text()
        assert all(line in text for line in ("*\n", "/var/", ".env", "/.venv/"))
        return
    assert subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0


def test_git_keeps_the_page_that_explains_the_keys_folder() -> None:
    assert (ROOT / "keys/README.md").exists()
    assert "!README.md" in (ROOT / "keys/.gitignore").read_text()
