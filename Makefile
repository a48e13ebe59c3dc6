# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer; everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup demo test lint clean

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

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) demo/answers.json demo/reply.wav demo/drawing.png demo/edited.png .pytest_cache .ruff_cache build *.egg-info
