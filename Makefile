# Everything a newcomer needs: `make demo`, `make test`, `make lint`, `make wheel`.
#
# One virtual environment in .venv; a stamp file in it stands for each finished step, so that a
# second run does only what changed. Needs Python >= 3.11 with venv, a C++17 compiler and CMake.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
IMAGE ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

PACKAGE := pyproject.toml CMakeLists.txt constraints.txt README.md LICENSE \
  $(shell find fasdiff_edge csrc -type f -not -name '*.py[co]' -not -name '*.so')
CPP := $(shell find csrc tests/cpp -name '*.h' -o -name '*.cpp')
PYTHON_DIRS := fasdiff_edge export benchmarks scripts examples tests

.PHONY: demo gallery test test-cpp test-conformance test-python lint mypy format wheel clean

demo: $(STAMPS)/demo
	$(BIN)/python scripts/demo.py --output build/demo $(if $(IMAGE),--image '$(IMAGE)')

gallery: $(STAMPS)/demo
	$(BIN)/python scripts/gallery.py --output docs/gallery

test: test-cpp test-python

# The C++ tests twice: as released, and under AddressSanitizer and UBSan.
test-cpp:
	cmake -S . -B build/tests -DCMAKE_BUILD_TYPE=Release -DFASDIFF_BUILD_TESTS=ON
	cmake --build build/tests --parallel $(JOBS)
	ctest --test-dir build/tests --verbose --no-tests=error
	cmake -S . -B build/sanitized -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DFASDIFF_BUILD_TESTS=ON -DFASDIFF_SANITIZE=ON
	cmake --build build/sanitized --parallel $(JOBS)
	ctest --test-dir build/sanitized --verbose --no-tests=error

# The integers of every platform (docs/conformance.md): unoptimised, without vector kernels, and for
# 64-bit Arm under an emulator.
CONFORMANCE := -DFASDIFF_BUILD_TESTS=ON
test-conformance:
	cmake -S . -B build/conformance-O0 $(CONFORMANCE) -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS=-O0
	cmake -S . -B build/conformance-scalar $(CONFORMANCE) -DFASDIFF_SIMD=OFF
	cmake -S . -B build/conformance-aarch64 $(CONFORMANCE) \
	  -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/cmake/aarch64-linux.cmake
	for build in O0 scalar aarch64; do \
	  cmake --build build/conformance-$$build --parallel $(JOBS) \
	    --target verify_vectors --target core_tests; \
	  ctest --test-dir build/conformance-$$build --verbose --no-tests=error \
	    -R '^(verify_vectors|core_tests)$$'; \
	done

# The whole suite, and once more with the other inference engine what the choice of it can change.
# Tests that take the engine as a parameter run with both in the first pass, and bear its name.
ENGINE_TESTS := api bench benchmarks cli compare engines errors examples export_networks public_api rate \
  readme
test-python: $(STAMPS)/test
	FASDIFF_ENGINE=openvino $(BIN)/pytest
	FASDIFF_ENGINE=onnxruntime $(BIN)/pytest -k 'not openvino and not onnxruntime' \
	  $(ENGINE_TESTS:%=tests/test_%.py)

lint: $(STAMPS)/lint mypy
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(BIN)/clang-format --dry-run --Werror $(CPP)

mypy: $(STAMPS)/lint
	$(BIN)/mypy fasdiff_edge benchmarks scripts export

format: $(STAMPS)/lint
	$(BIN)/ruff check --fix $(PYTHON_DIRS)
	$(BIN)/ruff format $(PYTHON_DIRS)
	$(BIN)/clang-format -i $(CPP)

wheel: $(STAMPS)/venv
	$(BIN)/python -m pip wheel --quiet --constraint constraints.txt --no-deps --wheel-dir dist .
	@ls -l dist/*.whl

clean:
	rm -rf $(VENV) build dist
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
	rm -rf .pytest_cache .mypy_cache .ruff_cache

$(STAMPS)/venv:
	@test -n '$(PYTHON)' || { echo 'no python3.11 or python3 found; set PYTHON=' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	mkdir -p $(STAMPS)
	touch $@

# Running needs no torch.
$(STAMPS)/demo: $(PACKAGE) | $(STAMPS)/venv
	$(INSTALL) '.[demo]'
	touch $@

# The tests need torch, to compare with the trainer, and what the benchmarks need.
$(STAMPS)/test: $(PACKAGE) benchmarks/requirements.txt | $(STAMPS)/venv
	$(INSTALL) --requirement benchmarks/requirements.txt '.[demo,test,train]'
	touch $@

$(STAMPS)/lint: $(STAMPS)/test
	$(INSTALL) ruff mypy clang-format
	touch $@
