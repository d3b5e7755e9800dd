# Needs Python 3.11 or newer with venv, and a package index. Everything is installed into .venv.

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := .venv/.installed
ZOO := .venv/.zoo-installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-zoo lint bench models clean

help: ## Say what the targets are
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' Makefile

demo: $(READY) ## Prune models/resnet.onnx by half, into demo/
	@mkdir -p demo
	$(BIN)/onnxprune slim models/resnet.onnx --channels 0.5 \
	  --data models/calibration.npz --eval models/validation.npz \
	  --output demo/resnet.slim.onnx --save-plan demo/plan.json \
	  --report demo/report.html --report demo/report.md --report demo/report.json --force
	@printf '%s\n' '' \
	  'What this shows:' \
	  '* Half of the channels are gone, so about three quarters of the weights and of the multiply-accumulates are.' \
	  '* The remaining weights were fitted to the original on unlabelled images, without training: without that repair' \
	  '  one answer in six would be right.' \
	  '* The proof line says that the surgery was right: before the repair, the file computes what the original computes' \
	  '  with the removed channels set to zero where they are summed. It says nothing about accuracy.' \
	  '* The latency is that of this machine, both models measured in turns.' \
	  '* The model is demo/resnet.slim.onnx, the report demo/report.html (also .md and .json), the plan demo/plan.json.'

test: $(READY) $(ZOO) ## Run every test that is not marked zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not zoo" --durations 8 --numprocesses $(WORKERS) --dist loadfile

test-zoo: $(READY) $(ZOO) ## Run the slow tests over whole collections of models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m zoo --numprocesses $(WORKERS) --dist worksteal

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) $(ZOO) ## Measure what is covered, how fast the engine is, and how fast its results are
	$(BIN)/python bench/coverage.py --save
	$(BIN)/python bench/speed.py --save
	$(BIN)/python bench/latency.py --save

models: $(READY) ## Train the models in models/ again (needs PyTorch and Fashion-MNIST; see models/README.md)
	$(INSTALL) --editable ".[dev,train]"
	$(BIN)/python models/make_models.py

clean: ## Remove everything that make made, .venv included
	rm -rf .venv demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'onnxprune needs Python 3.11 or newer: name one, as in make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
	  { echo 'this Python has no ensurepip, which makes virtual environments: on Debian and Ubuntu, apt install python3-venv' >&2; exit 1; }
	@echo 'installing into .venv (some hundred megabytes, once)'
	@$(PYTHON) -m venv .venv
	@$(INSTALL) --editable ".[dev]"
	@touch $@

# Packages that carry real ONNX models. Without --no-deps they would bring `onnxruntime`, which unpacks into the same
# folder as `onnxruntime-gpu` and breaks it.
$(ZOO): $(READY)
	@$(INSTALL) --no-deps magika==1.0.3 silero-vad==6.2.3 basic-pitch==0.4.0 \
	  'rapidocr-onnxruntime==1.4.4; python_version < "3.13"'
	@touch $@
