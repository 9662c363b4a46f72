# The README's commands. Everything is set up in .venv; nothing outside the checkout is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-browser check bench bench-step bench-pareto bench-distillation bench-streaming bench-saliency bench-sampler bench-cache bench-loader bench-search bench-search-ablation bench-trials bench-kills bench-worker-memory bench-gpu docs gallery clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/nas-kd search examples/demo.yaml
	$(BIN)/nas-kd report runs/demo
	$(BIN)/nas-kd export runs/demo

# A process a core, each with one thread: nets of the tests are too small for more. With worksteal each process has its
# own part of the files, so that few fixtures are made twice, and takes tests from another one when it has none left.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The report in a headless Chromium or Chrome; skipped where none is installed.
test-browser: install
	$(BIN)/python -m pytest -m browser tests/analysis/test_report_in_browser.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site in site/, which works offline. Its tools have an environment of their own.
docs:
	test -x $(VENV)-docs/bin/mkdocs || ($(PYTHON) -m venv $(VENV)-docs && $(VENV)-docs/bin/python -m pip install --quiet \
		--disable-pip-version-check mkdocs-material==9.8.2 'mkdocstrings[python]==1.0.8')
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --quiet
	@echo "site/index.html"

# The campaigns of docs/gallery.md and their pictures; one of them: make gallery GALLERY=saliency
GALLERY ?= $(basename $(notdir $(wildcard examples/gallery/*.yaml)))

gallery: install
	for name in $(GALLERY); do \
		$(BIN)/nas-kd search examples/gallery/$$name.yaml && $(BIN)/nas-kd report runs/gallery/$$name && \
		cp runs/gallery/$$name/report/front.png docs/gallery/$$name.png || exit 1; \
	done

bench: bench-step bench-pareto bench-distillation bench-streaming bench-saliency bench-sampler bench-cache bench-loader

bench-step: install
	$(BIN)/python benchmarks/step.py

bench-pareto: install
	$(BIN)/python benchmarks/pareto.py

bench-distillation: install
	$(BIN)/python benchmarks/distillation.py

bench-streaming: install
	$(BIN)/python benchmarks/streaming.py

bench-saliency: install
	$(BIN)/python benchmarks/saliency.py

bench-sampler: install
	$(BIN)/python benchmarks/sampler.py $(NAS_BENCH_MACRO)

bench-trials: install
	$(BIN)/python benchmarks/trials.py

# 50 faults on a Ray of the driver's own, then 50 on a cluster with the ledger in PostgreSQL, where a server is installed.
bench-kills: install
	$(BIN)/python benchmarks/kills.py --kills 60 --trials 400
	$(BIN)/python benchmarks/kills.py --kills 60 --trials 400 --executor cluster --storage postgresql

bench-worker-memory: install
	$(BIN)/python benchmarks/worker_memory.py

# Where there is a GPU.
bench-gpu: install
	$(BIN)/python benchmarks/gpu.py --keep

bench-cache: install
	$(BIN)/python benchmarks/cache.py --keep

bench-loader: install
	$(BIN)/python benchmarks/loader.py --keep

# Many hours; goes on after an interruption. For a part of it: $(BIN)/python benchmarks/search.py --help
bench-search: install
	$(BIN)/python benchmarks/search.py --result benchmarks/results/search.json

bench-search-ablation: install
	$(BIN)/python benchmarks/search_ablation.py

clean:
	rm -rf $(VENV) $(VENV)-docs site build *.egg-info .mypy_cache .ruff_cache .pytest_cache
