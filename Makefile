# Each target is one command on a machine that has python3, g++ and make: it makes its own environment in .venv.
PYTHON ?= python3
# What pip installs as torch, where .venv has none: TORCH="torch --index-url ..." takes another build of it.
TORCH ?= torch==2.13.0
# make demo PHOTOS="a.jpg b.jpg", make test ARGS="-k crp", make bench ARGS=--everything
# make test-all ARGS=--everything takes longer: every dtype of every case in Triton's interpreter, every row of tiles
# compiled for every GPU, more problems for the kernels under sanitizers and on aarch64.
PHOTOS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
PACKAGE := setup.py pyproject.toml MANIFEST.in README.md \
  $(shell find build_tools csrc kernels lwrn_fast -type f -not -name '*.so' -not -name '*.pyc')
CPP := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
TEST_TOOLS := g++-aarch64-linux-gnu qemu-user
BROWSER := chromium
SCREEN := xvfb

# $(call debian,packages): install them where the user may, else say that they are missing.
debian = if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; \
  then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1) >/dev/null; \
  else echo "missing on this machine: $(1)" >&2; false; fi

.PHONY: demo test test-all test-left-out test-tools cuda bench lint format clean

demo: $(VENV)/cli.stamp
	$(BIN)/python -I -m lwrn_fast.demo $(PHOTOS)

# The tests are of the installed package, so that what the wheel lacks is noticed: from tests/ the sources are not in sight.
PYTEST = cd tests && ../$(BIN)/python -m pytest

# For every change: every kind of test, backend and instruction set, but no slow test and few combinations.
test: $(VENV)/test.stamp
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-all: $(VENV)/test.stamp test-tools
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder --all $(ARGS)

# Lists what test leaves out and test-all does not.
test-left-out: $(VENV)/test.stamp
	@$(PYTEST) --collect-only --quiet --left-out $(ARGS)

# What the tests of cross-compilation, pages and windows need; they skip, and say so, where this cannot be installed.
test-tools:
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || $(call debian,$(TEST_TOOLS)) || true
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || $(call debian,$(BROWSER)) || true
	@command -v Xvfb >/dev/null || $(call debian,$(SCREEN)) || true

# A wheel with the CUDA part, for all compute capabilities or LWRN_FAST_CUDA_ARCHS; it needs nvcc, but no GPU.
cuda: $(VENV)/torch.stamp
	LWRN_FAST_CUDA=1 $(BIN)/python -m pip --disable-pip-version-check wheel --no-deps -w dist .

bench: $(VENV)/bench.stamp
	cd bench && ../$(BIN)/python -m pytest . --benchmark-json ../build/bench.json $(ARGS)
	cd bench && ../$(BIN)/python table.py ../build/bench.json

# All tools run, whichever of them fails.
lint: $(VENV)/lint.stamp
	@status=0; for tool in "ruff check ." "clang-format --dry-run -Werror $(CPP)" mypy "lint-imports --no-logo"; do \
	  $(BIN)/$$tool || { echo "make lint: $${tool%% *} fails" >&2; status=1; }; \
	done; exit $$status

format: $(VENV)/lint.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf build dist $(VENV) *.egg-info

# The tools alone, beside torch, whose types mypy reads: they need the sources, not the package.
$(VENV)/lint.stamp: $(VENV)/torch.stamp pyproject.toml build_tools/extras.py
	$(BIN)/python build_tools/extras.py lint | xargs -d '\n' $(PIP)
	@touch $@

# The package is installed with the extra that the stamp is named after.
$(VENV)/%.stamp: $(VENV)/torch.stamp $(PACKAGE)
	$(PIP) '.[$*]'
	@touch $@

HAS_TOOLS := import ensurepip, os, sysconfig; assert os.path.exists(sysconfig.get_path('include') + '/Python.h')

$(VENV)/torch.stamp:
	@$(PYTHON) -c "$(HAS_TOOLS)" 2>/dev/null || $(call debian,python3-venv python3-dev)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(PIP) $(TORCH)
	@touch $@
