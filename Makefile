# `make demo` and `make test` do all set-up on a fresh machine with Python 3.10 to 3.12.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
DEMO := demo

.PHONY: demo test lint clean

demo: $(INSTALLED)
	$(BIN)/cmt-export --variant ti --target openvino --target tensorrt --fp16 --int8 \
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
