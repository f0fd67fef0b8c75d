"""Which frameworks can supply what a clip rule needs."""

from __future__ import annotations

EVERYTHING = frozenset(
    {"advantages", "mask", "old_entropy", "sampling_logps", "positions", "groups", "disagreement", "logps"}
)

SUPPLIERS: dict[str, frozenset[str]] = {
    "bandpo.policy_loss": EVERYTHING,
    "TRL's BandGRPOTrainer": EVERYTHING - {"sampling_logps"} | {"control"},
    "TRL's BandGRPOTrainer with use_vllm=True": EVERYTHING | {"control"},
    "verl": frozenset({"advantages", "mask", "positions", "logps"}),
    "SkyRL": frozenset({"advantages", "mask", "positions", "logps"}),
    "prime-rl": frozenset({"advantages", "mask", "sampling_logps", "positions", "logps"}),
    "ms-swift": frozenset({"mask", "positions"}),
    "NeMo-RL": frozenset({"mask", "positions"}),
    "slime": frozenset({"positions"}),
}
"""What each supplier gives a rule beyond the old log-probs. "logps" are those of the policy being trained, which a
rule that ignores the advantage's sign needs if the framework does the clipping. "control" means that the supplier
measures once per rollout, over all processes, and keeps a controller's state (`bandpo.core.control`)."""


def check_needs(needs: frozenset[str], supplier: str, rule: str) -> None:
    """Refuse, before training starts, a rule whose needs `supplier` (a key of SUPPLIERS) cannot meet.

    Raises:
        ValueError: Names the need, and who can meet it.
    """
    missing = sorted(needs - SUPPLIERS[supplier])
    if missing:
        raise ValueError(unmet(rule, missing, f"{supplier} cannot give it"))


def unmet(rule: str, missing: list[str], why: str) -> str:
    """The sentence that names a rule's needs and who can meet them."""
    able = [who for who, given in SUPPLIERS.items() if given.issuperset(missing)]
    return f"clip rule {rule} needs {' and '.join(missing)}: {why}; suppliers that can: {', '.join(able) or 'none'}"
