# make demo: the whole job on real data.  make test: what must pass.  Both work on a fresh machine with Python 3.11+.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long parity-faults test-lowest lint docs zoo kernels noise bench bench-accuracy bench-runtime bench-map engines serve soak fuzz kills sbom cuda aarch64 clean

# Rebuilt when a dependency list changes; pip is upgraded first because Python 3.11's own has no --group.
$(VENV)/installed: pyproject.toml runtime/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable "./runtime[cpu]" --editable ".[demo]" --group dev
	touch $@

demo: $(VENV)/installed
	$(BIN)/edgeport demo --out demo

lint: $(VENV)/installed
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two processes: most tests keep one core busy. PyTorch's threads must not spin while they wait, or two processes that train keep each other from it.
test test-long: export OMP_WAIT_POLICY = PASSIVE
test: $(VENV)/installed lint
	$(BIN)/pytest -n 2 --dist loadfile

# Every example, and whatever else takes minutes. What model servers speak is optional: its tests are skipped without it.
test-long: $(VENV)/installed
	-$(MAKE) .venv-deploy/installed
	$(BIN)/pytest -n 2 -m long --timeout 1800

# tritonclient wants an older protobuf than onnx does.
.venv-deploy/installed: pyproject.toml
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --upgrade pip
	.venv-deploy/bin/python -m pip install --quiet --group deploy
	touch $@

# 64 clients for two minutes, on the demo's CNN behind MLServer.
serve: $(VENV)/installed .venv-deploy/installed
	$(BIN)/edgeport deploy mlserver demo/bundles/cnn --out demo/mlserver --force
	PYTHONPATH=runtime .venv-deploy/bin/python tests/bench/serve.py demo/mlserver

# What workers on Ray cost and bring: `make bench-map BUNDLE=bundles/mine`.
BUNDLE := examples/digits
bench-map: $(VENV)/installed .venv-deploy/installed
	$(BIN)/python tests/bench/ray_map.py $(BUNDLE)

# Golden cases of the demo's bundles on every engine that is here.
engines: $(VENV)/installed
	$(BIN)/python tests/bench/golden_engines.py demo/bundles/*

# Every fault that only numbers can betray, on every network that it can be put into.
parity-faults: $(VENV)/installed
	$(BIN)/pytest -n 2 -m "long or not long" tests/test_parity_faults.py

# The floors of the dependency lists, in an environment of their own.
.venv-lowest/installed: pyproject.toml runtime/pyproject.toml tests/lowest.py
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --upgrade pip
	.venv-lowest/bin/python tests/lowest.py > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable "./runtime[cpu]" --editable ".[demo]" --group dev
	touch $@

test-lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest -n 2 --dist loadfile -W default   # what old packages warn of is theirs

docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir site

zoo: $(VENV)/installed
	$(BIN)/python tests/bench/zoo.py --results zoo.jsonl --table docs/zoo.md

# The peers live in an environment of their own, so that they change nothing of what is measured.
.venv-peers/installed: pyproject.toml
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --upgrade pip
	.venv-peers/bin/python -m pip install --quiet --group peers
	touch $@

kernels: $(VENV)/installed
	$(BIN)/python tests/bench/kernels.py --table docs/kernels.md

# An hour of inputs that nobody would send on purpose; SECONDS says how long.
SECONDS := 3600
fuzz: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --group fuzz
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS) --folder fuzz

# Exports that are killed at random moments, beside a process that loads the bundle all the time.
kills: $(VENV)/installed
	$(BIN)/python tests/bench/kills.py --kills 200

# Both wheels, and what each of them needs.
sbom: $(VENV)/installed
	$(BIN)/python tests/sbom.py dist

noise: $(VENV)/installed
	$(BIN)/python tests/bench/noise.py --results noise.jsonl --table docs/noise.md

bench: $(VENV)/installed .venv-peers/installed
	$(BIN)/python tests/bench/bench.py --peers .venv-peers/bin/python --folder bench --results bench/results.jsonl --table docs/bench.md

bench-accuracy: $(VENV)/installed .venv-peers/installed
	$(BIN)/python tests/bench/accuracy.py --peers .venv-peers/bin/python

bench-runtime: $(VENV)/installed
	$(BIN)/python tests/bench/runtime.py

# Ten minutes at one image size, then at two thousand.
soak: $(VENV)/installed
	$(BIN)/python tests/bench/soak.py
	$(BIN)/python tests/bench/soak.py --sizes 2000

# On a machine with a card, whose Python has torch, onnx and onnxruntime-gpu. Each call takes two minutes, and the next one goes on; bundles that
# `prepare` made elsewhere are taken as they are.
CUDA_PYTHON ?= python3
cuda:
	PYTHONPATH="runtime:models:export:$$PYTHONPATH" $(CUDA_PYTHON) tests/bench/cuda.py prepare
	PYTHONPATH="runtime:models:export:$$PYTHONPATH" $(CUDA_PYTHON) tests/bench/cuda.py run
	PYTHONPATH="runtime:models:export:$$PYTHONPATH" $(CUDA_PYTHON) tests/bench/cuda.py table

# The runtime's tests and the demo's golden cases on another processor, under emulation. Needs Debian's qemu-user and the right to install it.
aarch64: $(VENV)/installed
	$(BIN)/python tests/bench/aarch64.py

clean:
	rm -rf $(VENV) .venv-peers .venv-lowest .aarch64 site bench demo cuda-bundles cuda-results.jsonl dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
