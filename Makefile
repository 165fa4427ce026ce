PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench soak setup protos clean

demo: setup
	$(BIN)/muster demo
