# make demo: environment, install, and the main job on the embedded model.   make test: environment, install, all checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# On Linux the default build brings CUDA, gigabytes of it; docs/install.md has the index of the build for processors:
#   make demo TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0
DEMO_OUT ?= demo-out

.PHONY: demo test check fuzz site notebook clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(VENV)/installed
	$(BIN)/bitwright quantize demo $(DEMO_OUT) --overwrite

test: $(VENV)/installed check
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

site: $(VENV)/installed
	$(BIN)/sphinx-build -W --keep-going -q -b html docs site

notebook: $(VENV)/installed
	$(BIN)/python -m pip install --quiet nbclient ipykernel
	$(BIN)/jupyter execute --inplace examples/quantize.ipynb

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz --seconds 600

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) $(DEMO_OUT) .$(DEMO_OUT).work site examples/notebook-out
