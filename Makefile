# make train | test | bench | lint | reports | docs. The first call creates $(VENV); later ones reuse it.
# make compat [FULL=1]: the tests on every Python of this machine. make constraints: newest releases for all of them.
# make full: what takes longer than CI may. Reports of data that is not here: make bench ESC10=DIR YOUCOOK2=DIR CLIPS=DIR.
VENV ?= .venv
# The first interpreter that runs, is supported and can make an environment. pyenv puts a shim on PATH for every Python
# it has, and those of unchosen versions only say so: they are skipped, and its versions are looked at last.
PYENV = $(or $(PYENV_ROOT),$(HOME)/.pyenv)
PYTHONS = python3 python3.14 python3.13 python3.12 python3.11 python $(wildcard $(PYENV)/versions/3.1[1-4]*/bin/python3)
PYTHON ?= $(shell for p in $(PYTHONS); do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' >/dev/null 2>&1 && \
	{ echo $$p; break; }; done)
RUN = OMP_WAIT_POLICY=passive $(VENV)/bin/python
INSTALLED = $(VENV)/.installed

.PHONY: train test bench lint reports docs compat constraints full clean

train: $(INSTALLED)
	$(RUN) -m vatt.train --fused $(ARGS)

# A file of tests is one process's; a thread each, as two pools of them on two cores crawl.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		$(ARGS)

bench: $(INSTALLED)
	$(RUN) -m pytest --benchmark-only $(ARGS)
	$(RUN) bench/fused_vs_reference.py
	$(RUN) bench/tiny_training.py
	$(RUN) bench/model_sizes.py
	$(RUN) bench/resolution_sweep.py
	$(RUN) bench/aot_table.py
	$(RUN) bench/decode.py
	$(RUN) bench/soak.py
	$(RUN) bench/step_launches.py
	$(RUN) bench/videomae.py
	$(RUN) bench/cpu_report.py
	$(RUN) bench/scaling.py
	$(RUN) bench/figure2.py
	$(RUN) bench/figure4.py --model runs/figure2/tiny_ma
	$(if $(CLIPS),$(RUN) bench/real_clips.py --data $(CLIPS) --init runs/figure2/tiny)
	$(if $(YOUCOOK2),$(RUN) bench/youcook2.py --data $(YOUCOOK2))
	$(if $(ESC10),$(RUN) bench/esc10_official.py --data $(ESC10))
	$(RUN) bench/droptoken_sweep.py $(if $(ESC10),--esc10 $(ESC10))
	$(RUN) bench/chaos.py

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy vatt kernels bench $(wildcard .ci/*.py)

reports: $(INSTALLED)
	$(RUN) bench/draw_reports.py

# A site of the pages, which lie in it as they do here, so that the same links lead the same way: build/site/index.html.
docs: $(INSTALLED)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	rm -rf build/pages build/site && mkdir -p build/pages
	cp -r *.md CITATION.cff LICENSE docs examples findings reports build/pages/
	mkdir build/pages/bench && cp bench/README.md build/pages/bench/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

compat: $(INSTALLED)
	$(RUN) .ci/compat.py $(if $(FULL),--full --report) $(ARGS)

constraints: $(INSTALLED)
	$(RUN) .ci/constraints.py

# What CI has no time for, with VATT_FULL=1 also in the tests. Its table says with which commit it ran last:
# reports/compat.md.
full: export VATT_FULL = 1
full: test lint docs
	$(RUN) .ci/compat.py --full --report
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 VATT_GPU_DTYPES=float16,float32 $(RUN) -m pytest \
		tests/kernels/test_triton_as_gpu.py
	$(RUN) bench/workloads/pretended_gpu.py --all --shapes
	$(RUN) bench/step_launches.py --quick
	$(RUN) bench/tune.py --dry-run --seconds 600

$(INSTALLED): setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 to 3.14 with its venv module is needed (Debian: python3-venv);" \
		"name one with PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,bench,dev]'
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
