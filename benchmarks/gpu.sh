#!/bin/sh
# What is worth knowing about a GPU, in at most twelve minutes and without a network, in one JSON:
#   benchmarks/gpu.sh results/gpu/h100.json            from the repository's root, after `make build`
#   benchmarks/gpu.sh build/gpu.json --toy             at toy size, on any machine
# PYTHON names another interpreter.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" -m benchmarks.gpu "$@"
