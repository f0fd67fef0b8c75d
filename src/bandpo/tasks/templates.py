"""Prompt templates by name."""

from __future__ import annotations

from bandpo.words import nearest

TEMPLATES = {
    "plain": "{question}",
    "qa": "Question: {question}\nAnswer:",
    "boxed": "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "tags": (
        "{question}\n\nThink step by step between <think> and </think>, then give the final answer alone between "
        "<answer> and </answer>."
    ),
}


def template_text(template: str) -> str:
    """The text of a template, given by name or as a string with {question}.

    Raises:
        ValueError: If it is neither.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    if "{question}" not in template:
        raise ValueError(
            f"template is {template!r}{nearest(template, TEMPLATES)}; "
            f"it must contain {{question}}, or be one of {', '.join(TEMPLATES)}"
        )
    return template
