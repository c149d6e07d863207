# Every target does all of the set-up that it needs: one .venv, made with pip.
PYTHON ?= python3
# The versions that are tested; any torch from 2.8 on should do.
TORCH ?= torch==2.14.1 torchvision==0.29.1
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench matrix clean

demo: $(READY)  ## audits the embedded samples, offline, with and without a defense
	$(BIN)/medpfl demo --out runs/demo --force

test: $(READY)
	$(BIN)/pytest -n 2

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/.bench  ## speed and strength beside peers, in at most ten minutes
	$(BIN)/python -m benchmarks

matrix: $(READY)  ## runs every attack on every model, briefly, and writes docs/support.md
	$(BIN)/python -m benchmarks matrix

.venv/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch .venv/.bench

clean:
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis

# torch goes first and by pip: resolvers that ignore pip's settings fetch another build of several GB.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)
