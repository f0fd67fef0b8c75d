"""Shared fixtures: small models and data that a test can afford."""

import os

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if not torch.cuda.is_available():
    # Triton reads this when it is first imported, and some libraries import it early.
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def tiny():
    """A model and tokenizer of a few thousand weights."""
    from bandpo.models import scratch_model

    return scratch_model(hidden_size=32, layers=2, heads=2, positions=64, seed=0)


@pytest.fixture
def questions(tmp_path):
    """A JSONL file of twenty word problems."""
    import json

    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Ann has {i} nuts and finds 2. How many now?", "answer": str(i + 2)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
