# Every target does all of the set-up that it needs: one .venv, made with pip.
PYTHON ?= python3
# The versions that are tested; any torch from 2.8 on should do.
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
READY := .venv/.ready
EXTRAS := .venv-extras/bin
# Bytecode is kept, also where the environment forbids it: tests start many programs, and each would compile the package.
export PYTHONDONTWRITEBYTECODE :=
# The ten slowest tests are printed.
PYTEST := pytest -n 2 --durations 10

.PHONY: demo quick test test-extras check docs pictures bench matrix clean

demo: $(READY)  ## audits the embedded samples, offline, with and without a defense
	$(BIN)/medpfl demo --out runs/demo --force

test: $(READY)  ## the core suite: all that needs no other package than those of the extra dev
	$(BIN)/$(PYTEST)

quick: $(READY)  ## the core suite without tests that take more than a third of a second
	$(BIN)/$(PYTEST) -m "not extra and not slow"

test-extras: .venv-extras/.ready  ## the rest: beside Flower, NVIDIA FLARE, MONAI, TenSEAL, SimpleITK, breaching, and image decoders; the benchmarks
	$(EXTRAS)/$(PYTEST) -m extra

check: $(READY) docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(READY)  ## builds the documentation site into build/site, with warnings as errors; open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: $(READY)  ## makes the pictures of the README and the site again, from the embedded samples (needs chromium)
	$(BIN)/python -m website.pictures
	$(BIN)/medpfl demo --out runs/demo
	$(BIN)/python -m website.screenshot runs/demo/share/report.html
	$(BIN)/python -m website.charts

bench: .venv/.bench  ## speed and strength beside peers, in at most ten minutes
	$(BIN)/python -m benchmarks

matrix: $(READY)  ## runs every attack on every model, briefly, and writes docs/support.md
	$(BIN)/python -m benchmarks matrix

.venv/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch .venv/.bench

clean:
	rm -rf .venv .venv-extras runs .pytest_cache .ruff_cache .hypothesis

# torch goes first and by pip: resolvers that ignore pip's settings fetch another build of several GB.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

.venv-extras/.ready: pyproject.toml
	test -x $(EXTRAS)/python || $(PYTHON) -m venv .venv-extras
	$(EXTRAS)/python -m pip install --quiet $(TORCH)
	$(EXTRAS)/python -m pip install --quiet --editable '.[test-extras]'
	touch $@
