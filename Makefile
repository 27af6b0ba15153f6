# `make demo` and `make test` do all set-up on a fresh machine with Python 3.10 to 3.13.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEMO := demo
# A line every nine seconds while what comes after it runs, which may say nothing for minutes.
ALIVE = while sleep 9; do echo '  still installing'; done & alive=$$!; trap "kill $$alive" EXIT;
# TensorRT-RTX, which builds engines without a GPU, has wheels for 64-bit x86 only.
TENSORRT := $(if $(filter x86_64 AMD64,$(shell uname -m)),--target tensorrt)

ROOMS := calib_data targets quantize bundle report measure export training commands
TYPED := build/typed/made

# The C++ build takes OpenVINO and the JSON headers from the environment's packages.
RUNTIME ?= build/runtime
FUZZ_SECONDS ?= 60
FUZZ_COUNT ?= 20000
PACKAGES := $(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'

.PHONY: demo docs docs-cpp test lint lint-cpp runtime sanitize fuzz fuzz-alike fuzz-python fuzz-build arm lock audit clean

demo: $(INSTALLED)
	$(BIN)/cmt-export --variant ti --target openvino $(TENSORRT) --fp16 --int8 \
		--out $(DEMO) --force

# Threads that wait by spinning would take the cores from the other half of the tests.
test: lint
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest --numprocesses 2 --dist worksteal

lint: $(INSTALLED) $(TYPED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typed && ../../$(BIN)/lint-imports --no-cache ../../pyproject.toml
	$(BIN)/mypy

# The folders as they are installed, for tools that look at files alone.
$(TYPED): pyproject.toml
	rm -rf build/typed && mkdir -p build/typed/cmt
	ln -s $(CURDIR)/cmt/* $(addprefix $(CURDIR)/,$(ROOMS)) build/typed/cmt
	ln -s $(CURDIR)/benchmarks build/typed/benchmarks
	touch $@

docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/mkdocs build --strict --quiet

# Needs doxygen.
docs-cpp:
	mkdir -p build
	doxygen runtime/cpp/Doxyfile

runtime: $(INSTALLED)
	packages="$$($(PACKAGES))" && cmake -S runtime/cpp -B $(RUNTIME) $(RUNTIME_OPTIONS) \
		-DCMT_TESTS=ON -DCMT_OPENVINO=ON "-DOpenVINO_DIR=$$packages/openvino/cmake" \
		"-DCMT_JSON_INCLUDE=$$packages/nlohmann_json/include"
	cmake --build $(RUNTIME) --parallel 2

# Needs clang-format and clang-tidy.
lint-cpp: runtime
	clang-format --dry-run -Werror runtime/cpp/*/*.[ch]pp runtime/cpp/*/*.c runtime/cpp/include/cmt/*.h*
	clang-tidy --quiet -p $(RUNTIME) runtime/cpp/src/*.cpp runtime/cpp/tools/*.cpp

# The C++ tests with every leak, memory error and undefined behaviour an abort.
sanitize: $(INSTALLED)
	RUNTIMES=sanitized $(BIN)/pytest tests/runtime

# All fuzzers, each for so many seconds; C++'s need clang.
fuzz: fuzz-build fuzz-python
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) fuzz_manifest fuzz_image

# Python's and C++'s answers to the same images and manifests, held against each other.
fuzz-alike: runtime
	$(BIN)/python tests/fuzz/alike.py $(RUNTIME)/tests/decode_images --seconds $(FUZZ_SECONDS)
	$(BIN)/python tests/fuzz/manifests_alike.py $(RUNTIME)/tests/read_manifests --count $(FUZZ_COUNT)

fuzz-python: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS) \
		manifest report idx safetensors checkpoint

fuzz-build: $(INSTALLED)
	$(MAKE) runtime RUNTIME=build/fuzz RUNTIME_OPTIONS="-DCMAKE_CXX_COMPILER=clang++ \
		-DCMT_SANITIZERS=address,undefined,fuzzer-no-link -DCMT_FUZZERS=ON -DCMT_TOOLS=OFF"
	$(BIN)/python runtime/cpp/tests/fuzz_seeds.py build/fuzz/seeds

# Needs root on Debian 12 and its network: bundles and C++ on aarch64, emulated.
arm: $(INSTALLED) $(TYPED)
	PYTHON=$(BIN)/python tests/endurance/arm.sh

# The versions that were tested together: PIP_CONSTRAINT=constraints.txt make installs them.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet '.[dev,docs,fuzz]'
	build/lock/bin/python -m pip freeze --exclude cmt-export | sed 's/+cpu$$//' > constraints.txt

# Needs the network: known vulnerabilities of the locked versions. What could not be looked up
# is a failure as well.
audit: $(INSTALLED)
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf .venv $(DEMO) build

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	@echo 'installing into .venv'
	@$(ALIVE) $(BIN)/python -m pip install --quiet --upgrade pip
	@$(ALIVE) $(BIN)/python -m pip install --quiet --editable '.[dev]'
	echo '$(CURDIR)' > "$$($(PACKAGES))/checkout.pth"  # for benchmarks/, which nobody installs
	touch $@
