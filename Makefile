# make demo           the main job on the embedded pocket model
# make test           the whole test suite, without what needs libtpu or the CUDA plugin
# make test-tpu       programs compiled for TPUs that are not here; downloads libtpu (210 MB) the first time
# make test-gpu-plan  programs compiled for GPUs that are not here; downloads XLA's CUDA compiler (220 MB) the first time
# make stages         pretraining in three stages, in the small: a corpus, general, reasoning, long context; minutes
# make soak           kills a training run ten times and looks whether anything is lost; SOAK_MINUTES=30 goes on so long
# make device-check   parity and speed of the GPU or TPU of this machine, 8 minutes; writes docs/results/device.md
# make check          what a commit must pass besides the tests: format, lint, types (`.ci/run` and pre-commit too)
# Each makes .venv when it is missing, with the versions pinned in constraints.txt.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
WORKERS ?= 2

VENV := .venv
GPU_VENV := .venv-gpu-plan
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'
RUN := $(VENV)/bin/python
PIP := PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-tpu test-gpu-plan stages soak device-check check format lint types fix clean

demo: $(VENV)/.installed
	@$(RUN) -m qwen3_jax.cli demo

test: $(VENV)/.installed-dev
	@$(RUN) -m pytest -n $(WORKERS) --dist loadfile --ignore tests/tpu --ignore tests/gpu

test-tpu: $(VENV)/.installed-tpu-plan
	@$(RUN) -m pytest tests/tpu

test-gpu-plan: $(GPU_VENV)/.installed
	@$(GPU_VENV)/bin/python -m pytest tests/gpu

STAGES := configs/train/stages/small
stages: $(VENV)/.installed
	@$(RUN) -m qwen3_jax.cli corpus runs/corpus
	@$(RUN) -m qwen3_jax.cli train $(STAGES)/1-general.yaml run_dir=runs/stages/1-general
	@$(RUN) -m qwen3_jax.cli train $(STAGES)/2-reasoning.yaml run_dir=runs/stages/2-reasoning init_from=runs/stages/1-general
	@$(RUN) -m qwen3_jax.cli train $(STAGES)/3-long.yaml run_dir=runs/stages/3-long init_from=runs/stages/2-reasoning

soak: $(VENV)/.installed-dev
	@$(RUN) tests/soak/soak.py $(if $(SOAK_OUT),--out $(SOAK_OUT))

# With the packages as they are found: on a machine with a GPU these are often not the pinned ones.
device-check:
	@$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m benchmarks.device $(if $(DEVICE_OUT),--out $(DEVICE_OUT))

check: format lint types

format: $(VENV)/.installed-dev
	@$(RUN) -m ruff format --check .

lint: $(VENV)/.installed-dev
	@$(RUN) -m ruff check .

types: $(VENV)/.installed-dev
	@$(RUN) -m mypy

fix: $(VENV)/.installed-dev
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, none was found on PATH: install it, or name it with PYTHON=" >&2; exit 2; }
	@echo "making $(VENV) with $(PYTHON)"
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed, $(PYTHON) is not: name another with PYTHON=" >&2; exit 2; }
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) --upgrade pip setuptools
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.py pyproject.toml constraints.txt
	@echo "installing the pinned dependencies (once)"
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created setup.py pyproject.toml constraints.txt
	@echo "installing the pinned dependencies of the tests and checks (once)"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-tpu-plan: $(VENV)/.installed-dev
	@echo "installing the TPU's compiler (once)"
	@$(PIP) --no-build-isolation --editable '.[dev,tpu-plan]'
	@touch $@

# Sees the packages of $(VENV), where the CUDA plugin would have JAX look for a GPU in everything that runs.
$(GPU_VENV)/.installed: $(VENV)/.installed-dev
	@echo "installing XLA's CUDA compiler (once)"
	@$(RUN) -m venv --without-pip $(GPU_VENV)
	@$(RUN) -c $(SITE) > "$$($(GPU_VENV)/bin/python -c $(SITE))/shared.pth"
	@PYTHONWARNINGS=ignore $(RUN) -m pip --python $(GPU_VENV)/bin/python install --quiet --disable-pip-version-check \
		--constraint constraints.txt --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
	@touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
