# `make demo` and `make test` do all set-up on a fresh machine with Python 3.10 to 3.12.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEMO := demo
# TensorRT-RTX, which builds engines without a GPU, has wheels for 64-bit x86 only.
TENSORRT := $(if $(filter x86_64 AMD64,$(shell uname -m)),--target tensorrt)

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/cmt-export --variant ti --target openvino $(TENSORRT) --fp16 --int8 \
		--out $(DEMO) --force

test: lint
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(DEMO)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
