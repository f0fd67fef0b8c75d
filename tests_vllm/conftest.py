"""Tests that need vLLM's engine: `make test-vllm` runs them on the CPU, in an environment of their own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when vLLM is imported, here and in the processes that it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else a share of all memory
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # engines in this process start sooner


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> Path:
    """A small Llama with random weights, wide enough that its samples differ; vLLM wants heads of 32 or more."""
    from bandpo.models import scratch_model

    path = tmp_path_factory.mktemp("model")
    model, tokenizer = scratch_model(hidden_size=64, layers=2, heads=2, positions=256, seed=0, initializer_range=0.2)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def engine(model_path):
    """The backend, its engine and tokenizer; one engine for all tests, since it starts slowly."""
    from bandpo.evaluation.backends import choose_backend

    backend = choose_backend("vllm", str(model_path))
    return backend, *backend.load(str(model_path), "float32", 0)


@pytest.fixture(scope="session")
def exact(model_path):
    """The same model in transformers."""
    from bandpo.models import load_model

    return load_model(str(model_path), "float32")
