"""What we ship keeps its promises: hashed locks without addresses, a modest image, a make that says what it misses."""

import configparser
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from packaging.markers import default_environment
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


ENVIRONMENTS = [
    {
        "python_version": f"3.{minor}",
        "python_full_version": f"3.{minor}.1",
        "sys_platform": platform,
        "platform_system": system,
    }
    for minor in (11, 12, 13, 14)
    for platform, system in (("linux", "Linux"), ("darwin", "Darwin"))
]


def holds(requirement: Requirement, environment: dict[str, str], extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**environment, "extra": extra})


def holes(lock: str, roots: list[Requirement], environment: dict[str, str]) -> list[str]:
    """Every requirement, of whatever package and for whatever extra somebody asks of it, that the lock does not hold."""
    pins = {
        name: pin for name, versions in locked(lock).items() for pin, _ in versions if holds(pin, environment)
    }  # fmt: skip
    found: list[str] = []
    asked: set[tuple[str, str]] = set()
    waiting = [(wanted, "setup.cfg") for wanted in roots if holds(wanted, environment)]
    # What the lock holds is installed, whoever asked for it: its own requirements count, asked for or not.
    waiting += [(Requirement(name), lock) for name in pins]
    while waiting:
        wanted, whose = waiting.pop()
        name = canonicalize_name(wanted.name)
        pin = pins.get(name)
        version = next(iter(pin.specifier)).version if pin else ""
        if pin is None or not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{whose} wants {wanted}, {lock} has {pin}")
            continue
        for extra in {"", *wanted.extras} - {extra for known, extra in asked if known == name}:
            asked.add((name, extra))
            distribution = next(iter(importlib.metadata.distributions(name=name)), None)
            if distribution is None or distribution.version != version:
                # Of another system or version of Python: its metadata is not here to be read.
                assert not holds(pin, dict(default_environment())), (
                    f"{pin} is locked and not installed: make install-dev"
                )
                continue
            for line in distribution.requires or ():
                inner = Requirement(line)
                if holds(inner, environment, extra):
                    waiting.append((inner, name))
    return found


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda one: f"{one['python_version']} {one['sys_platform']}")
@pytest.mark.parametrize(
    ("lock", "extras"), [("requirements.txt", ("build",)), ("requirements-dev.txt", ("build", "dev"))]
)
def test_a_lock_is_closed_everything_that_anything_in_it_needs_is_in_it(
    lock: str, extras: tuple[str, ...], environment: dict[str, str]
) -> None:
    roots = declared("options", "install_requires")
    for extra in extras:
        roots += declared("options.extras_require", extra)
    assert holes(lock, roots, {**default_environment(), **environment}) == []


def test_a_hole_in_a_lock_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = locked("requirements-dev.txt")
    here = dict(default_environment())
    (extra,) = [one for one in declared("options.extras_require", "dev") if one.name == "pyjwt"]
    for name in ("cryptography", "coverage", "markupsafe"):
        monkeypatch.setattr(
            sys.modules[__name__], "locked", lambda _lock, name=name: {k: v for k, v in whole.items() if k != name}
        )
        assert any(f"wants {name}" in hole.lower() for hole in holes("requirements-dev.txt", [extra], here)), name


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
    assert any("pip install --no-deps --require-hashes" in text and "pip check" in text for _, text in build)
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


def a_python(
    folder: pathlib.Path, name: str, minor: int, *, able: bool = True, pace: int = 1000, place: str = ""
) -> pathlib.Path:
    """A program that answers what make asks of a Python, and writes down whose environment it was told to make."""
    where = place or str(folder / name)
    a_program(
        folder,
        name,
        f"""case "$1 $2" in
*ensurepip*) echo "{"able" if able else "bare"} {minor:02d} {where}";;
*perf_counter_ns*) echo "asked {where}" >>"{folder.parent}/paces"; echo {pace};;
"--version "*) echo "Python 3.{minor}.0";;
"-m venv") mkdir -p .venv && echo "{where}" >.venv/maker;;
*) exit 1;;
esac""",
    )
    return folder / name


def choose(fresh: pathlib.Path, *folders: str, python: str = "") -> subprocess.CompletedProcess[str]:
    """Let make choose among the Pythons of these folders; it finds its own tools, and no other Python, behind them."""
    tools = fresh / "tools"
    tools.mkdir(exist_ok=True)
    for tool in ("sh", "grep", "cut", "sort", "head", "tail", "mkdir", "touch", "cat"):
        if not (tools / tool).exists():
            (tools / tool).symlink_to(shutil.which(tool) or tool)
    path = ":".join([*(str(fresh / folder) for folder in folders), str(tools)])
    return make(".venv/.made", *([f"PYTHON={python}"] if python else []), cwd=fresh, path=path)


def maker(fresh: pathlib.Path) -> str:
    return (fresh / ".venv/maker").read_text().strip()


def test_make_names_the_package_that_brings_venv(fresh: pathlib.Path) -> None:
    # As Debian ships it: Python is there, ensurepip is a package of its own.
    a_python(fresh / "bin", "python3.12", 12, able=False)
    for result in (choose(fresh, "bin"), choose(fresh, python=f"{fresh}/bin/python3.12")):
        assert result.returncode != 0
        assert f"{fresh}/bin/python3.12 cannot make virtual environments" in result.stderr
        assert "apt install python3-venv" in result.stderr
    assert not (fresh / ".venv").exists()


def test_make_takes_the_newest_minor_version_that_can_make_an_environment(fresh: pathlib.Path) -> None:
    a_python(fresh / "one", "python3.11", 11, pace=1)
    a_python(fresh / "one", "python3", 12, pace=9000)
    a_python(fresh / "two", "python3.13", 13, able=False)
    a_program(fresh / "two", "python3.14", "exit 127")  # a shim that leads nowhere
    result = choose(fresh, "one", "two")
    assert result.returncode == 0, result.stderr
    assert maker(fresh) == f"{fresh}/one/python3"
    assert f"Making .venv with Python 3.12.0 ({fresh}/one/python3)" in result.stderr
    assert not (fresh / "paces").exists(), "the only one of its version is not measured"


def test_make_takes_the_quickest_of_several_and_says_which(fresh: pathlib.Path) -> None:
    a_python(fresh / "slow", "python3.12", 12, pace=130_000)
    a_python(fresh / "slow", "python3", 12, pace=130_000, place=f"{fresh}/slow/python3.12")  # the same by another name
    a_python(fresh / "quick", "python3.12", 12, pace=99_000)
    a_python(fresh / "older", "python3.11", 11, pace=1)
    result = choose(fresh, "slow", "older", "quick")
    assert result.returncode == 0, result.stderr
    assert maker(fresh) == f"{fresh}/quick/python3.12"
    assert f"({fresh}/quick/python3.12, the quickest of 2)" in result.stderr
    asked = (fresh / "paces").read_text().splitlines()
    assert asked == [f"asked {fresh}/slow/python3.12", f"asked {fresh}/quick/python3.12"]


def test_make_refuses_no_python_for_being_slow_or_newer_than_those_we_tried(fresh: pathlib.Path) -> None:
    a_python(fresh / "bin", "python3", 19, pace=10**15)
    assert choose(fresh, "bin").returncode == 0
    assert maker(fresh) == f"{fresh}/bin/python3"
    shutil.rmtree(fresh / ".venv")
    a_python(fresh / "known", "python3.12", 12)
    assert choose(fresh, "bin", "known").returncode == 0
    assert maker(fresh) == f"{fresh}/known/python3.12"
    shutil.rmtree(fresh / ".venv")
    assert choose(fresh, "known", python=f"{fresh}/bin/python3").returncode == 0
    assert maker(fresh) == f"{fresh}/bin/python3", "one that is named is taken"


def test_the_pace_is_that_of_a_real_python_within_a_second(fresh: pathlib.Path) -> None:
    text = (fresh / "Makefile").read_text()
    (program,) = re.findall(r"^define PACE\n(.*?)^endef", text, re.MULTILINE | re.DOTALL)
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    assert 1_000 < int(asked.stdout) < 1_000_000_000
    (program,) = re.findall(r"^define PROBE\n(.*?)^endef", text, re.MULTILINE | re.DOTALL)
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    able, minor, place = asked.stdout.split()
    assert (able, int(minor)) == ("able", sys.version_info[1])
    assert os.access(place, os.X_OK)


def test_an_installation_that_fails_says_what_to_try(fresh: pathlib.Path) -> None:
    environment = fresh / ".venv"
    environment.mkdir()
    a_program(environment / "bin", "python", "echo 'no route to host' >&2; exit 1")
    (environment / ".made").touch()
    result = make("install", cwd=fresh)
    assert result.returncode != 0
    assert "no route to host" in result.stderr
    assert "installing from requirements.txt failed" in result.stderr
    assert "PIP_INDEX_URL" in result.stderr
    assert not (environment / ".runtime").exists(), "the next call tries again"


def test_running_installs_no_test_tool_and_hashes_are_required(fresh: pathlib.Path) -> None:
    plan = make("--dry-run", "run", cwd=fresh).stdout
    assert "--no-deps --require-hashes -r requirements.txt" in plan
    assert "requirements-dev.txt" not in plan
    assert "--no-deps --require-hashes -r requirements-dev.txt" in make("--dry-run", "test", cwd=fresh).stdout
    assert plan.count(" check") == 1


# --- A package index that has newer versions of everything ---------------------------------------------------------------


def a_wheel(folder: pathlib.Path, name: str, version: str, *requires: str, extras: tuple[str, ...] = ()) -> str:
    """Put a wheel of one module into an index; returns its hash."""
    folder.mkdir(exist_ok=True)
    module, stem = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}"
    lines = [f"Provides-Extra: {extra}" for extra in extras] + [f"Requires-Dist: {one}" for one in requires]
    metadata = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", f"version = {version!r}\n")
        wheel.writestr(f"{stem}.dist-info/METADATA", metadata)
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def an_environment(folder: pathlib.Path) -> pathlib.Path:
    """An environment with pip and nothing else, made without the seconds that installing pip takes."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    pip = importlib.util.find_spec("pip")
    assert pip is not None
    assert pip.submodule_search_locations
    (site / "pip").symlink_to(pip.submodule_search_locations[0])
    return site


def pip_commands(target: str, cwd: pathlib.Path) -> list[str]:
    """What make would have pip do."""
    lines = make("--dry-run", target, cwd=cwd).stdout.splitlines()
    return [line.partition(" || ")[0] for line in lines if "-m pip" in line and "--editable" not in line]


def run_pip(command: str, cwd: pathlib.Path, index: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    environment |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
    }
    return subprocess.run(
        ["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_lock_installs_the_same_when_the_index_has_newer_versions_of_everything(fresh: pathlib.Path) -> None:
    index = fresh / "index"
    # The shape that once failed: a package that is locked asks for an extra of another that is locked too.
    hashes = {
        "runner": a_wheel(index, "runner", "1.0", "measure[toml]>=1"),
        "measure": a_wheel(index, "measure", "1.0", 'reader>=1; extra == "toml"', extras=("toml",)),
        "reader": a_wheel(index, "reader", "1.0"),
    }
    for name, requires in (("runner", ("measure[toml]>=1",)), ("measure", ()), ("reader", ())):
        a_wheel(index, name, "2.0", *requires, extras=("toml",) if name == "measure" else ())
    lock = "".join(f"{name}==1.0 --hash=sha256:{digest}\n" for name, digest in hashes.items())
    (fresh / "requirements.txt").write_text(lock)
    site = an_environment(fresh / ".venv")
    (fresh / ".venv/.made").touch()
    install, check = pip_commands("install", fresh)
    assert install.endswith("--no-deps --require-hashes -r requirements.txt")
    # The test would notice: with dependencies the same lock is refused on the day when the index has something newer.
    resolving = run_pip(install.replace(" --no-deps", ""), fresh, index)
    assert resolving.returncode != 0
    assert "hashes" in resolving.stderr or "pinned" in resolving.stderr, resolving.stderr
    assert not (site / "runner.py").exists()

    installed = run_pip(install, fresh, index)
    assert installed.returncode == 0, installed.stderr
    assert {(site / f"{name}.py").read_text() for name in hashes} == {"version = '1.0'\n"}
    assert run_pip(check, fresh, index).returncode == 0
    # And a lock with a hole, which then installs, is told by the second command.
    (fresh / "requirements.txt").write_text("\n".join(line for line in lock.splitlines() if "measure" not in line))
    shutil.rmtree(fresh / ".venv")
    an_environment(fresh / ".venv")
    assert run_pip(install, fresh, index).returncode == 0
    assert run_pip(check, fresh, index).returncode != 0


@pytest.mark.parametrize("target", ["install", "install-dev"])
def test_what_our_locks_hold_is_taken_as_it_is_whatever_the_index_has(fresh: pathlib.Path, target: str) -> None:
    index = fresh / "index"
    for name in locked("requirements-dev.txt"):
        a_wheel(index, name, "9999")
    commands = [line for line in pip_commands(target, fresh) if "--require-hashes" in line]
    assert len(commands) == (1 if target == "install" else 2)
    for command in commands:
        # In this environment, where the lock is installed: whoever looked for something newer would find it.
        looked = run_pip(command.replace(".venv/bin/python", sys.executable) + " --dry-run", fresh, index)
        assert looked.returncode == 0, looked.stderr
        assert "Would install" not in looked.stdout
        assert "9999" not in looked.stdout + looked.stderr


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


def test_ci_can_be_run_and_ends_with_the_summary_of_the_whole_suite() -> None:
    for name in (".ci/run", ".ci/fresh-clone"):
        script = ROOT / name
        assert os.access(script, os.X_OK)
        assert "set -euo pipefail" in script.read_text()
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    text = (ROOT / ".ci/run").read_text()
    assert text.index("make check") < text.index(".ci/fresh-clone") < text.index("make test PYTEST_ARGS")


@pytest.mark.parametrize("failing", ["", "check", "clone", "suite"])
def test_ci_fails_where_any_part_of_it_failed_and_shows_the_rest_all_the_same(
    tmp_path: pathlib.Path, failing: str
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    a_program(tmp_path / ".ci", "fresh-clone", f'echo "in a clone"; exit {int(failing == "clone")}')
    a_program(
        tmp_path / "bin",
        "make",
        f"""case "$1" in
check) echo checked; exit {int(failing == "check")};;
test) echo "7 passed in 1.00s"; exit {int(failing == "suite")};;
esac""",
    )
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    ran = subprocess.run(
        [tmp_path / ".ci/run"], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ran.returncode != 0) is bool(failing)
    assert "checked\n" in ran.stdout
    assert "in a clone\n" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "7 passed in 1.00s"


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
