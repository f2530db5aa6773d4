# The one door: `make run`, `make test`, `make check`, `make bench`. Needs make and Python >= 3.11, nothing else.
# Everything is installed from the hashed locks into .venv; stamps keep a repeated call quick.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
# Which Python makes the environment; empty means the quickest of the newest minor version found below.
PYTHON ?=
PYTEST_ARGS ?=
SERVE_ARGS ?=
BENCH_ARGS ?=
# How often the long form of the fault suite repeats what is left to chance: kills for each database.
FAULT_ROUNDS ?= 200
# Four workers on the two cores of a small machine: many a test waits. Each starts its own PostgreSQL and Valkey.
TEST_WORKERS ?= 4

.DELETE_ON_ERROR:
.PHONY: help run test check format readme bench faults mutants recipes browser lock install install-dev clean

help:
	@echo "make run      start the service on 127.0.0.1:8000 (settings: environment, see README)"
	@echo "make test     the whole suite; PYTEST_ARGS='-k token -x' narrows it"
	@echo "make check    format, lint, types, import contracts"
	@echo "make format   rewrite to the house format"
	@echo "make readme   write the generated parts of README.md and docs/interfaces.md anew"
	@echo "make recipes  docs/recipes with the real clients and proxies (installs them; needs Node 20)"
	@echo "make browser  the pages in a real Chromium, and pictures of them into docs/screenshots (installs both)"
	@echo "make bench    load runs against a private server"
	@echo "make faults   the long form of the fault suite (installs PgBouncer, Patroni, etcd, faketime; a full disk needs root)"
	@echo "make mutants  break rules of the core one at a time, and see whether its tests notice; MUTANTS_ARGS='--count 50 proofs'"
	@echo "make lock     resolve the locks anew from setup.cfg (needs uv)"
	@echo "make clean    remove the environment and caches, never data or keys"

run: install
	@exec $(BIN)/identity serve $(SERVE_ARGS)

test: install-dev
	@exec $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

faults: install-dev
	@tests/faults/install.sh
	@IDENTITY_FAULT_ROUNDS=$(FAULT_ROUNDS) exec $(BIN)/python -m pytest -q -rP tests/faults $(PYTEST_ARGS)

mutants: install-dev
	@exec $(BIN)/python -m tests.mutants $(MUTANTS_ARGS)

recipes: install-dev
	@tests/recipes/install.sh
	@exec $(BIN)/python -m pytest -q tests/recipes $(PYTEST_ARGS)

# Pictures of every page go where SCREENSHOTS says; nowhere if it is empty.
SCREENSHOTS ?= docs/screenshots
browser: install-dev
	@tests/chromium/install.sh
	@IDENTITY_SCREENSHOTS=$(SCREENSHOTS) exec $(BIN)/python -m pytest -q tests/chromium $(PYTEST_ARGS)

# All four always run: one call shows every fault.
check: install-dev
	@failed=0; \
	$(BIN)/ruff format --quiet --check . || failed=1; \
	$(BIN)/ruff check --quiet . || failed=1; \
	$(BIN)/mypy --no-error-summary || failed=1; \
	contracts=$$($(BIN)/lint-imports --config setup.cfg --no-logo 2>&1) || { echo "$$contracts"; failed=1; }; \
	exit $$failed

format: install-dev
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .

readme: install-dev
	@$(BIN)/python docs/tables.py

bench: install-dev
	@exec $(BIN)/python -m bench $(BENCH_ARGS)

# No address of a package index ever enters a lock: who installs decides where from. The hashes decide what.
LOCK = $(UV) pip compile --quiet --upgrade --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
UV ?= uv

lock:
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: 'pip install uv', or UV=/path/to/uv" >&2; exit 1; }
	@$(LOCK) setup.cfg --extra build --output-file requirements.txt
	@$(LOCK) setup.cfg --extra build --extra dev --constraint requirements.txt --output-file requirements-dev.txt

install: $(VENV)/.project
install-dev: $(VENV)/.dev $(VENV)/.project $(VENV)/.kit

# The lock is the whole answer, so nothing is resolved here: with dependencies, pip would ask the index what is newest
# for every extra that a locked package names, and refuse it for want of a hash. `pip check` then shows a lock with a hole.
LOCKED = $(PIP) install --no-deps --require-hashes

# What a Python says of itself: whether it can make an environment, its minor version, and where it really is.
define PROBE
import os, sys
if not (3, 11) <= sys.version_info[:2] < (4, 0):
    sys.exit(1)
try:
    import ensurepip, venv
    able = "able"
except ImportError:
    able = "bare"
print(able, "%02d" % sys.version_info[1], os.path.realpath(sys.executable))
endef

# How long a Python takes for one piece of work, in nanoseconds: the best within a quarter of a second, so that a busy machine misleads
# little. Its build flags would not tell: an unoptimised shared build calls itself optimised, and costs every route 5 to 17 %.
define PACE
from time import perf_counter_ns as now
def piece():
    total, known = 0, {}
    for number in range(2000):
        known[number & 63] = str(number)
        total += len(known[number & 63])
    return total
end, best = now() + 250_000_000, 1 << 60
while now() < end:
    begun = now()
    piece()
    best = min(best, now() - begun)
print(best)
endef

# A Python is searched by running it: a name on the PATH may be a shim that leads nowhere. Versions that we tried go before newer ones;
# among several Pythons of the version that wins, the quickest is taken. What there is, is taken: nothing is refused for being slow.
$(VENV)/.made: export PROBE := $(value PROBE)
$(VENV)/.made: export PACE := $(value PACE)
$(VENV)/.made:
	@python="$(PYTHON)"; why=; \
	if [ -n "$$python" ]; then \
	    found=$$("$$python" -c "$$PROBE" 2>/dev/null) || \
	        { echo "make: PYTHON=$$python is not Python 3.11 or newer" >&2; exit 1; }; \
	else \
	    found=$$(IFS=:; for folder in $$PATH; do for name in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	        [ -x "$$folder/$$name" ] && [ ! -d "$$folder/$$name" ] || continue; \
	        said=$$("$$folder/$$name" -c "$$PROBE" 2>/dev/null) && printf '%s %s\n' "$$said" "$$folder/$$name"; \
	    done; done); \
	    [ -n "$$found" ] || { echo "make: Python 3.11 or newer is needed and was not found" \
	        "(Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3; macOS: brew install python)." \
	        "It may also be named: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	    usable=$$(printf '%s\n' "$$found" | grep '^able ') || usable=$$found; \
	    tried=$$(printf '%s\n' "$$usable" | grep -E '^[a-z]+ (11|12|13|14) ') || tried=$$usable; \
	    minor=$$(printf '%s\n' "$$tried" | cut -d ' ' -f 2 | sort -n | tail -n 1); \
	    newest=$$(printf '%s\n' "$$tried" | grep -E "^[a-z]+ $$minor " | while read -r able minor place name; do \
	        case " $$seen " in *" $$place "*) ;; *) seen="$$seen $$place"; echo "$$name";; esac; done); \
	    count=$$(printf '%s\n' "$$newest" | grep -c .); \
	    if [ "$$count" -gt 1 ]; then \
	        python=$$(printf '%s\n' "$$newest" | while read -r name; do \
	            pace=$$("$$name" -c "$$PACE" 2>/dev/null) && printf '%s %s\n' "$$pace" "$$name"; \
	        done | sort -n | head -n 1 | cut -d ' ' -f 2-); \
	        why=", the quickest of $$count"; \
	    fi; \
	    [ -n "$$python" ] || python=$$(printf '%s\n' "$$newest" | head -n 1); \
	    found=$$usable; \
	fi; \
	case "$$found" in able*) ;; *) echo "make: $$python cannot make virtual environments: install its package for that" \
	    "(Debian, Ubuntu: apt install python3-venv, or for another version of Python, e.g., python3.12-venv)" >&2; exit 1;; esac; \
	echo "Making $(VENV) with $$("$$python" --version) ($$python$$why); this happens once" >&2; \
	"$$python" -m venv --clear $(VENV) || { echo "make: $$python could not make $(VENV) here; see above." \
	    "Another Python: make PYTHON=/path/to/python3" >&2; exit 1; }
	@touch $@

# What to look at when pip fails; pip itself has said why, at length, above it.
define INSTALL_FAILED
echo "make: installing from $(1) failed; pip says why above. Without a way to a package index: set PIP_INDEX_URL to a mirror, or" \
    "HTTPS_PROXY. Where a hash does not match, or no file fits this machine: try another Python (make clean; make PYTHON=...)." >&2
endef

$(VENV)/.runtime: requirements.txt $(VENV)/.made
	@echo "Installing what the service needs (once per requirements.txt)" >&2
	@$(LOCKED) -r requirements.txt || { $(call INSTALL_FAILED,requirements.txt); exit 1; }
	@$(PIP) check
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "Installing what the tests need (once per requirements-dev.txt)" >&2
	@$(LOCKED) -r requirements-dev.txt || { $(call INSTALL_FAILED,requirements-dev.txt); exit 1; }
	@$(PIP) check
	@touch $@

# Without build isolation: isolated, pip would fetch its build tools with no hash to check them by.
$(VENV)/.project: setup.cfg pyproject.toml $(VENV)/.runtime
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/.kit: kit/setup.cfg kit/pyproject.toml $(VENV)/.dev
	@$(PIP) install --no-build-isolation --no-deps --editable kit
	@touch $@

clean:
	@rm -rf $(VENV) build identity.egg-info kit/build kit/src/identity_verifier.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage*
