# Thin targets over scripts/setup.py and the CMake presets.
#
#   make demo    set everything up, build, train a small AlphaFold 3 on shipped entries, draw the picture
#   make test    set everything up, build, run the C++ and Python tests and the sanitizers
#   make build   set everything up and build
#
# PRESET=cpu|cuda|hip chooses the build (default: cuda where nvcc is found, hip where hipcc is, else cpu).
PRESET ?= $(if $(shell command -v nvcc),cuda,$(if $(shell command -v hipcc),hip,cpu))
PYTHON ?= python3
VENV   := $(CURDIR)/.venv/bin
BUILD  := $(CURDIR)/build/$(PRESET)
export PATH := $(VENV):$(PATH)
RUN_PYTHON := PYTHONPATH=$(CURDIR)/python MEGAFOLD_LIBRARY_DIR=$(BUILD)/lib $(VENV)/python

.PHONY: build demo test test-cpp test-python test-sanitizers setup clean

setup:
	@$(PYTHON) scripts/setup.py

$(BUILD)/build.ninja: | setup
	cmake --preset $(PRESET) -DPython3_EXECUTABLE=$(VENV)/python

build: setup $(BUILD)/build.ninja
	@cmake --build --preset $(PRESET)

# The program alone: the tests are half of a whole build.
demo: setup $(BUILD)/build.ninja
	@cmake --build --preset $(PRESET) --target megafold_program
	$(BUILD)/bin/megafold train --config configs/tiny.yaml --output runs/demo --overwrite
	@$(VENV)/python python/megafold/plot.py runs/demo

# Several tests run at a time: waiting OpenMP threads sleep, spinning ones would take the others' cores.
test test-cpp test-python test-sanitizers: export OMP_WAIT_POLICY ?= passive
test: test-cpp test-python test-sanitizers

# Runs the C++ tests of a build folder; ctest names those that were skipped, their reasons stand in its log.
define run_ctest
ctest --test-dir $(1) --output-on-failure -j2
@grep -h -A1 ': Skipped$$' $(1)/Testing/Temporary/LastTest.log || true
endef

test-cpp: build
	$(call run_ctest,$(BUILD))

test-python: build
	$(RUN_PYTHON) -m pytest -q -rs tests/build $(wildcard tests/python tests/cuda)

# The libraries below PyTorch once more, under ASan and UBSan.
test-sanitizers: setup
	@test -f build/asan/build.ninja || cmake --preset asan
	@cmake --build --preset asan
	$(call run_ctest,build/asan)

clean:
	rm -rf build
