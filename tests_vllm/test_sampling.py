"""vLLM samples from the model that transformers has: log-probs, greedy texts, seeds."""

from __future__ import annotations

import pytest
import torch

from bandpo.evaluation import Sampling, sample

PROMPTS = [f"{a} + {b} = " for a in range(12, 30) for b in range(3, 20)]  # 306


def mean_log_prob(model, tokenizer, prompt, text, truncated):
    """Of the tokens of `text` after `prompt`, by one forward pass."""
    start = tokenizer(prompt, add_special_tokens=False).input_ids
    own = tokenizer(text, add_special_tokens=False).input_ids + ([] if truncated else [tokenizer.eos_token_id])
    with torch.no_grad():
        logits = model(torch.tensor([start + own])).logits[0, len(start) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(own)), own].mean().item()


def test_log_probs_are_those_of_transformers(engine, exact):
    backend, llm, tokenizer = engine
    drawn = backend.sample(llm, tokenizer, PROMPTS[:16], Sampling(samples=2, max_new_tokens=24, seed=1))
    compared = 0
    for prompt, completions in zip(PROMPTS, drawn, strict=False):
        for one in completions:
            if "<" in one.text or len(one.text) + (not one.truncated) != one.tokens:
                continue  # a special token was drawn, which the text does not show
            assert -one.entropy == pytest.approx(mean_log_prob(*exact, prompt, one.text, one.truncated), abs=2e-4)
            compared += 1
    assert compared > 16


def test_greedy_texts_are_those_of_transformers(engine, exact):
    backend, llm, tokenizer = engine
    greedy = Sampling(samples=1, max_new_tokens=16, temperature=0.0)
    texts = [[c.text for c in one] for one in backend.sample(llm, tokenizer, PROMPTS[:24], greedy)]
    assert texts == [[c.text for c in one] for one in sample(*exact, PROMPTS[:24], greedy)]


def test_a_batch_of_any_size_gives_the_samples_of_its_seed(engine):
    """Many seeded prompts at once: an engine that reads a prompt in parts fails on the CPU."""
    backend, llm, tokenizer = engine
    long = [prompt * 6 for prompt in PROMPTS]
    settings = Sampling(samples=4, max_new_tokens=8, seed=3)
    whole = backend.sample(llm, tokenizer, long, settings)
    assert whole == backend.sample(llm, tokenizer, long, settings)
    assert len({c.text for one in whole for c in one}) > 300
    other = backend.sample(llm, tokenizer, long[:50], Sampling(samples=4, max_new_tokens=8, seed=4))
    assert [[c.text for c in one] for one in other] != [[c.text for c in one] for one in whole[:50]]
