# Two commands: `make lab` to learn, `make test` to check everything. Both make .venv when it is missing.
# Each finished step of the installation leaves a stamp in .venv: a second run does nothing, an interrupted one resumes.

PYTHON ?= python3
PORT ?= 8888
BROWSER ?=
CUDA ?=

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
EXTRAS := notebooks,qlora,trl,dev
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
# without CUDA= on the command line an environment keeps the torch that it has: `make lab CUDA=1`, later `make test`
FLAVOUR := $(if $(CUDA),$(if $(filter 0,$(CUDA)),cpu,cuda),$(if $(wildcard $(VENV)/.torch-*-cuda),cuda,cpu))
NOTEBOOKS := $(wildcard notebooks/*.ipynb notebooks/solutions/*.ipynb)

# On Linux the default index serves torch with gigabytes of CUDA; its own index serves the CPU build. macOS has one build only.
CPU_INDEX := $(if $(filter Linux,$(shell uname -s)),https://download.pytorch.org/whl/cpu)
TORCH_INDEX ?= $(if $(filter cpu,$(FLAVOUR)),$(CPU_INDEX))
# `===` takes the plain build alone: `==` would also take a local 2.x+cpu wheel, which sorts above it
TORCH_PIN := torch$(if $(filter cuda,$(FLAVOUR)),$(if $(TORCH_INDEX),==,===),==)$(TORCH)

MADE := $(VENV)/.made
TORCH_DONE := $(VENV)/.torch-$(TORCH)-$(FLAVOUR)
INSTALLED := $(VENV)/.installed
# a virtual environment knows its own path and its Python: moved, copied or orphaned, it has to be made again
VENV_WORKS := $(shell [ "$$(cat $(MADE) 2>/dev/null)" = "$(CURDIR)" ] && $(RUN) -c 'import pip' 2>/dev/null && echo yes)
# no question about news over a beginner's first page, no look for a newer release
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings
NO_NEWS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}

# $(call pip_install,arguments): what is fetched, with its size, and that it is unpacked, from pip's many lines; pip's own exit status
define pip_install
{ $(PIP) install --progress-bar off $(1); echo $$? > $(VENV)/.pip-status; } \
	  | grep --line-buffered -E '^ *(Downloading|Using cached) .*([0-9]{2}(\.[0-9]+)? MB|GB)[)]|^Installing collected' | cut -c1-110; \
	  [ "$$(cat $(VENV)/.pip-status)" = 0 ]
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: test-gpu help lab renew test book slides handout pictures tables solutions frontier class lint format doctor constraints clean again

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "  variables: PYTHON=python3.12  CUDA=1 (torch for an NVIDIA GPU; CUDA=0 goes back)  PORT=8888  BROWSER=0 (open none)  TORCH_INDEX=<url>"

# ---------------------------------------------------------------- environment

$(MADE): $(if $(VENV_WORKS),,again)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'no command here')." >&2; \
	  echo "Install one from python.org or your package manager, then name it: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "[1/3] virtual environment in $(VENV), from $$($(PYTHON) --version); with torch for CPUs it will hold about 2.2 GB"
	@rm -f $(VENV)/.torch-* $(INSTALLED)
	@$(PYTHON) -m venv $(if $(wildcard $(MADE)),--clear) $(VENV) && $(RUN) -c 'import pip' 2>/dev/null \
	  || $(PYTHON) -m venv --clear $(VENV) \
	  || { echo "$(PYTHON) can make no virtual environment. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "$(CURDIR)" > $@

# --force-reinstall: 2.x and 2.x+cpu are the same version to pip, so a change of flavour would go unseen.
# --no-deps: torch's own requirements come with the next step, under constraints.txt.
$(TORCH_DONE): $(MADE)
	@echo "[2/3] torch $(TORCH) ($(FLAVOUR)): some minutes when it has to be downloaded"
	@rm -f $(VENV)/.torch-* $(INSTALLED)
	@$(if $(filter cpu,$(FLAVOUR)),$(PIP) install -qq --force-reinstall --no-deps --no-index "$(TORCH_PIN)" 2>/dev/null ||) \
	  { $(call pip_install,--force-reinstall --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH_PIN)"); } \
	  || { echo "torch $(TORCH) could not be installed from $(or $(TORCH_INDEX),the default index) (pip's reason is above)." >&2; \
	       echo "Expected: a connection to it and a wheel for this machine. Mirror: make TORCH_INDEX=<url> ..." >&2; exit 1; }
	@touch $@

$(INSTALLED): $(TORCH_DONE) pyproject.toml constraints.txt
	@echo "[3/3] the package and $$(grep -c == constraints.txt) requirements, as pinned in constraints.txt: some minutes the first time"
	@{ $(call pip_install,-c constraints.txt -e ".[$(EXTRAS)]"); } \
	  || { echo "The installation stopped (pip's reason is above). Put it right and give the same command: it resumes." >&2; exit 1; }
	@echo "      $(VENV) holds $$(du -sh $(VENV) | cut -f1); later starts skip all this"
	@mkdir -p $(LAB_SETTINGS) && echo '$(NO_NEWS)' > $(LAB_SETTINGS)/overrides.json
	@touch $@

# ---------------------------------------------------------------- commands

lab: $(INSTALLED) ## open JupyterLab on the first of your own copies of the notebooks, in my_notebooks
	@$(RUN) -m dphrl_lite.course.copies
	@echo "JupyterLab starts; Ctrl-C here ends it."
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" exec $(RUN) -m jupyterlab --notebook-dir=. --LabApp.default_url=/lab/tree/my_notebooks/00_start_here.ipynb \
	  --port=$(PORT) --log-level=ERROR --LabApp.log_level=ERROR \
	  $(if $(filter 0,$(BROWSER)),--no-browser) $(if $(filter 0,$(shell id -u)),--allow-root)

renew: $(INSTALLED) ## take newer editions of the notebooks (NOTEBOOK=06: a fresh copy); what you wrote is kept in my_notebooks/earlier
	@$(RUN) -m dphrl_lite.course.copies --renew $(NOTEBOOK)

# $(call stage,number,name,command): run it under a header, say how long it took, name it when it fails
define stage
@printf '\n[%s/5] %s\n' '$(1)' '$(2)'; start=$$(date +%s); \
  if $(3); then echo "      $(2): passed in $$(($$(date +%s) - start)) s"; \
  else echo "make $@: stage '$(2)' failed after $$(($$(date +%s) - start)) s" >&2; exit 1; fi
endef

# which room may import which: [tool.importlinter] in pyproject.toml
ARROWS = $(if $(shell grep -F '[tool.importlinter' pyproject.toml),$(VENV)/bin/lint-imports --no-cache,true)

# on two cores: neighbours share what they build, and who is done takes from the other
SHARED := -n 2 --dist worksteal
# the pages of the book stay with one of the two (xdist_group)
READERS := -n 2 --dist loadgroup
# side by side, with one thread each: the students' edition, kept as pages for the browser stage, and that of solutions
STUDENTS = OMP_NUM_THREADS=1 $(RUN) -m dphrl_lite.course.book --quick --out build/quick-book
SOLUTIONS = OMP_NUM_THREADS=1 $(RUN) -m pytest --nbmake --nbmake-timeout=900 notebooks/solutions

test: export HF_HUB_OFFLINE = 1
test: export TOKENIZERS_PARALLELISM = false
test: $(INSTALLED) ## run everything that continuous integration runs
	$(call stage,1,style,$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(ARROWS))
	$(call stage,2,tests,$(RUN) -m pytest tests --ignore=tests/browser $(SHARED))
	$(call stage,3,notebooks carry no outputs,$(RUN) -m nbstripout --verify --keep-id $(NOTEBOOKS))
	$(call stage,4,notebooks run,rm -rf build/book/*-quick; $(STUDENTS) & students=$$!; trap "kill $$students" INT TERM; $(SOLUTIONS); solutions=$$?; wait $$students && [ $$solutions = 0 ])
	$(call stage,5,browser,$(RUN) -m pytest tests/browser -rs $(READERS))
	@printf '\nmake test: %s\n' "$$($(RUN) -c 'from dphrl_lite.doctor import find_browser as found; \
	  print("all 5 stages passed" if found() else "stages 1 to 4 passed; stage 5 (browser) was SKIPPED: no Chromium or Chrome here")')"

lint: $(INSTALLED) ## check style (stages 1 and 3 of make test)
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(ARROWS) && $(RUN) -m nbstripout --verify --keep-id $(NOTEBOOKS)

format: $(INSTALLED) ## put style right and strip the notebooks' outputs
	@$(RUN) -m ruff check --fix --exit-zero --quiet . && $(RUN) -m ruff format . && $(RUN) -m nbstripout --keep-id $(NOTEBOOKS)
	@$(RUN) -m ruff check .

book: $(INSTALLED) ## make the static edition of all notebooks in book/, executed (QUICK=1: at the tests' small sizes)
	@$(RUN) -m dphrl_lite.course.book $(if $(QUICK),--quick)

slides: $(INSTALLED) ## make slides of notebooks 00, 01, 03, 06 and 08 in slides/: live figures, no network (QUICK=1: at small sizes)
	@$(RUN) -m dphrl_lite.course.slides $(if $(QUICK),--quick)

handout: $(INSTALLED) ## make the one-page handout as HTML and, with Chromium, as PDF in handout/
	@$(RUN) -m dphrl_lite.course.handout

pictures: $(INSTALLED) ## make README's pictures again, in notebooks/images (needs Chromium)
	@DPHRL_REQUIRE_BROWSER=1 DPHRL_SCREENSHOTS=notebooks/images $(RUN) -m pytest tests/browser/test_pictures.py

tables: $(INSTALLED) ## write the tables of docs/results.md again, from data/paths
	@$(RUN) docs/tables.py

solutions: $(INSTALLED) ## write notebooks/solutions/ again from the notebooks' exercises
	@$(RUN) -m dphrl_lite.course.solutions

frontier: $(INSTALLED) ## run what runs/frontier lacks of the big sweep, MINUTES=60 at a time, and print what it says
	@$(RUN) -m dphrl_lite.cli experiment frontier --out runs/frontier $(if $(MINUTES),--minutes $(MINUTES))

class: $(INSTALLED) ## four short paths for a class (collapse and both cures), in runs/class
	@$(RUN) -m dphrl_lite.cli experiment class --out runs/class

doctor: $(INSTALLED) ## say what this machine can run, and why
	@$(RUN) -m dphrl_lite.cli doctor

# another torch: make constraints TORCH=2.14.0
constraints: ## remake constraints.txt with the newest versions (TORCH=... for another torch)
	@rm -rf build/constraints && $(PYTHON) -m venv build/constraints
	@$(MAKE) --no-print-directory build/constraints.txt TORCH=$(TORCH)
	@mv build/constraints.txt constraints.txt && rm -rf build/constraints

build/constraints.txt: PIP = build/constraints/bin/python -m pip --disable-pip-version-check
build/constraints.txt: again
	@$(PIP) install -qq --no-deps --no-index "torch==$(TORCH)" 2>/dev/null \
	  || $(PIP) install -qq --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$(TORCH)"
	@$(PIP) install -qq "torch==$(TORCH)" -e ".[$(EXTRAS)]"
	@echo "# Every version that make lab and make test install. Remake with: make constraints" > $@
	@$(PIP) freeze --all --exclude pip --exclude-editable | sed -E 's/^(torch==[0-9.]+).*/\1/' | grep -v -i '^nvidia-' >> $@

clean: ## remove .venv and caches; your runs/ stay
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed $(VENV), build products and caches"

test-gpu: export DPHRL_TEST_GPU = 1
test-gpu: $(INSTALLED) ## tests that need an NVIDIA GPU
	@$(RUN) -m pytest tests/gpu -rs
