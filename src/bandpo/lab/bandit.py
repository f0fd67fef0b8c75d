"""An exact softmax simulator: what a clip rule does to success and entropy, without a transformer.

Each prompt has logits z of shape (positions, vocabulary), pi = softmax(z). Everything except the samples is exact:
the success, the entropies and the divergence are sums over the vocabulary. The gradient is that of
`bandpo.core.losses.policy_loss` under any rule of `bandpo.core.registry.make_rule`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bandpo.core.adaptive import group_disagreement
from bandpo.core.control import Controller, make_controlled
from bandpo.core.losses import policy_loss
from bandpo.core.rules import ClipRule
from bandpo.lab.simulation import EDGES, Change, ControlRun, Ledger, RuleRun, Series, Simulation, SimulationResult

# The dimensions of the logits (prompts, positions, vocabulary) that share Adam's second moment.
SHARED: dict[str, tuple[int, ...]] = {"adam": (), "adam-token": (0, 1), "adam-shared": (0, 1, 2)}
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's, as PyTorch's defaults
Report = Callable[[str, int], None]


def simulate(settings: Simulation, name: str = "simulation", report: Report | None = None) -> SimulationResult:
    """Train the policies once under each rule, with common random numbers.

    Args:
        settings: Everything that determines the result.
        name: Name of the result.
        report: Called with (label of the rule, rollouts done) after each rollout.

    Raises:
        ValueError: For an unknown rule or option, before anything runs; for logits that overflow.
    """
    rules = {label: make_controlled(**rule) for label, rule in settings.rules.items()}  # type: ignore[arg-type]
    runs = {}
    for label, (rule, controller) in rules.items():
        started = time.perf_counter()
        policies = Policies(settings, rule, controller)
        for done in range(1, settings.rollouts + 1):
            policies.rollout()
            if report is not None:
                report(label, done)
        runs[label] = policies.result(settings.rules[label], time.perf_counter() - started)
    return SimulationResult(name=name, settings=settings, runs=runs)


def entropy_of(log_pi: Tensor) -> Tensor:
    """H = -sum_k pi_k ln pi_k in nats over the last dimension, (..., V) -> (...)."""
    return -(log_pi.exp() * log_pi).sum(-1)


def entropy_slope(log_pi: Tensor) -> Tensor:
    """-dH / dz_k = S_k = pi_k (H + ln pi_k) of a softmax, shape (..., V); sums to 0 over the last dimension."""
    pi = log_pi.exp()
    negative = pi * log_pi
    return negative - pi * negative.sum(-1, keepdim=True)


def logit_gradients(pi: Tensor, actions: Tensor, slopes: Tensor, columns: Tensor) -> Tensor:
    """Gradients of a sampled surrogate in the logits of a softmax, separately for the tokens of each column of the
    ledger.

    A token a whose surrogate has the slope c in ln pi_a (A r / group if it is not clipped) has the gradient
    c (e_a - pi).

    Args:
        pi: Probabilities, shape (P, T, V).
        actions: Sampled tokens, shape (P, T, K).
        slopes: c of each, shape (P, T, K).
        columns: Its column, 0 to 3, shape (P, T, K).

    Returns:
        Shape (4, P, T, V).
    """
    p, t, v = pi.shape
    places = ((columns * p * t + torch.arange(p * t).view(p, t, 1)) * v + actions).flatten()
    sums = torch.bincount(places, slopes.flatten(), minlength=4 * pi.numel()).view(4, p, t, v)
    return sums.addcmul_(pi.expand_as(sums), sums.sum(-1, keepdim=True), value=-1)


def entropy_change(log_pi: Tensor, change: Tensor) -> Tensor:
    """Change of a softmax's entropy in nats by a change dz of its logits, to first order; (..., V) -> (...).

        dH = sum_k (dH / dz_k) dz_k = -sum_k S_k dz_k = -Cov_pi(ln pi, dz),     S_k = pi_k (H + ln pi_k)

    (arXiv 2505.22617). One sampled token with slope c under gradient ascent, dz = rate c (e_a - pi), gives
    dH = -rate c (S_a - E_pi[S]), where E_pi[S] = Cov_pi(pi, ln pi) >= 0: rewarding a rare token, whose S_a is about
    0, raises the entropy by rate c E_pi[S], and penalizing it lowers it by the same amount. Every optimizer here is
    linear in the gradients once its second moment is known, so the change of the logits, and with it dH, is a sum
    over tokens: the ledger sums them by side, separately for tokens that kept their gradient and tokens that the rule
        clipped.
    """
    return -(entropy_slope(log_pi) * change).sum(-1)


def token_changes(log_pi: Tensor, actions: Tensor, slopes: Tensor) -> Tensor:
    """-c (S_a - E_pi[S]): what sampled tokens add to the entropy under gradient ascent, per unit of learning rate.

    `entropy_change` of each token's own gradient; log_pi of shape (P, T, V), the others (P, T, K).
    """
    slope = entropy_slope(log_pi)
    return -slopes * (slope.gather(-1, actions) - (log_pi.exp() * slope).sum(-1, keepdim=True))


def group_advantages(rewards: Tensor, kind: str) -> Tensor:
    """GRPO's advantages of rewards of shape (P, K): R - mean, or (R - mean) / (std + 1e-4) with n - 1 ("mean/std",
    arXiv 2402.03300)."""
    centered = rewards - rewards.mean(-1, keepdim=True)
    return centered / (rewards.std(-1, keepdim=True) + 1e-4) if kind == "mean/std" else centered


@dataclass
class Optimizer:
    """Gradient ascent, or Adam with a second moment that is a mean over the dimensions that share it."""

    name: str
    learning_rate: float
    first: Tensor | float = 0.0
    second: Tensor | float = 0.0
    updates: int = 0

    def step(self, gradients: Tensor) -> Tensor:
        """Changes of the logits by the gradients of the four columns, both of shape (4, P, T, V).

        The policy moves by the sum of the first two; the second moment is that of their sum. A logit whose second
        moment is below Adam's epsilon does not move.
        """
        if self.name not in SHARED:
            return self.learning_rate * gradients
        square, shared = (gradients[0] + gradients[1]).square(), SHARED[self.name]
        if shared:
            square = square.mean(shared, keepdim=True)
        self.updates += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * gradients
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * square
        root = (self.second / (1 - BETAS[1] ** self.updates)) ** 0.5
        # If the gradients of both sides cancel exactly, as before the first update, a rate of 1 / epsilon would
        # enter them in the ledger as two huge numbers that cancel.
        rate = torch.where(root > EPSILON, self.learning_rate / (root + EPSILON), 0.0)
        return rate * self.first / (1 - BETAS[0] ** self.updates)


class Samples(NamedTuple):
    """A rollout: actions of shape (P, T, K); old_logps and advantages of shape (P K, T) and (P K, 1) for the loss."""

    actions: Tensor
    old_logps: Tensor
    old_entropy: Tensor
    advantages: Tensor
    bins: Tensor
    disagreement: Tensor | None


@dataclass
class Counts:
    """Sums over the updates of one rollout."""

    clipped: list[Tensor] = field(default_factory=list)  # (2, P): shares of a prompt's tokens, low and high
    by_bin: Tensor = field(default_factory=lambda: torch.zeros(2, len(EDGES) - 1))
    entries: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))  # (4, T), prompts' mean
    entries_by_bin: Tensor = field(default_factory=lambda: torch.zeros(4, len(EDGES) - 1, dtype=torch.float64))


class Policies:
    """The softmax policies of all prompts under one rule, and their recorded history."""

    def __init__(self, settings: Simulation, rule: ClipRule, controller: Controller | None = None) -> None:
        s = self.settings = settings
        self.rule, self.optimizer = rule, Optimizer(s.optimizer, s.learning_rate)
        self.controller, self.control = controller, ControlRun([], [], [])
        self.random = torch.Generator().manual_seed(s.seed)
        ranks = torch.arange(s.vocabulary, dtype=torch.float64)
        start = -s.exponent * torch.log1p(ranks)
        self.logits = start.expand(s.prompts, s.positions, s.vocabulary).clone()
        self.right = self._draw_right()
        self.groups = torch.arange(s.prompts).repeat_interleave(s.group).unsqueeze(1)
        self.past: deque[Tensor] = deque(maxlen=s.lag + 1)
        self.states: dict[str, list[Tensor]] = {}
        self.flows: dict[str, list[Tensor]] = {"clip_fraction_low": [], "clip_fraction_high": [], "divergence": []}
        self.by_bin: list[Tensor] = []
        self.entries: list[Tensor] = []  # (5, T), as Ledger
        self.entries_by_bin: list[Tensor] = []
        self._note_state(self.logits.log_softmax(-1))

    def _draw_right(self) -> Tensor:
        """Mask of the right answers, shape (P, deciding, V)."""
        s = self.settings
        right = torch.zeros(s.prompts, s.deciding, s.vocabulary, dtype=torch.bool)
        if isinstance(s.answers, list):
            right[..., s.answers] = True
            return right
        places = torch.rand(s.prompts, s.deciding, s.vocabulary - s.first_rank, generator=self.random)
        drawn = places.argsort(-1)[..., : s.answers] + s.first_rank
        return right.scatter(-1, drawn, True)

    def rollout(self) -> None:
        """Sample, update and record."""
        s = self.settings
        self._change(s.changes.get(len(self.entries), Change()))
        log_pi = self.logits.log_softmax(-1)
        self.past.append(log_pi)
        samples, counts = self._sample(self.past[0]), Counts()
        if self.controller is not None:
            self._control(self.controller)
        for _ in range(s.updates):
            self._update(samples, counts)
        after = self.logits.log_softmax(-1)
        for name, value in zip(self.flows, torch.stack(counts.clipped).mean(0), strict=False):
            self.flows[name].append(value)
        sampler = self.past[0]
        self.flows["divergence"].append((sampler.exp() * (sampler - after)).sum(-1).mean(-1))
        tokens = torch.bincount(samples.bins.flatten(), minlength=len(EDGES) - 1) * s.updates
        self.by_bin.append(counts.by_bin / tokens)
        realized = (entropy_of(after) - entropy_of(log_pi)).mean(0)
        self.entries.append(torch.cat([counts.entries, realized.unsqueeze(0)]))
        self.entries_by_bin.append(counts.entries_by_bin)
        self._note_state(after)

    def _change(self, change: Change) -> None:
        if change.learning_rate is not None:
            self.optimizer.learning_rate = change.learning_rate
        if change.target is not None and self.controller is not None:
            self.controller.control = replace(self.controller.control, target=change.target)

    def _control(self, controller: Controller) -> None:
        """Move the rule's number: by this rollout's entropy, else by the metrics of the updates on the last one."""
        if controller.control.metric == "entropy":
            controller.add(float(entropy_of(self.past[0]).mean()))
        self.control.warning = controller.move() or self.control.warning
        self.rule = controller.rule
        self.control.value.append(controller.value)
        self.control.measured.append(controller.measured)
        self.control.target.append(controller.control.target)

    def _sample(self, log_pi: Tensor) -> Samples:
        s = self.settings
        uniform = torch.rand(s.prompts, s.positions, s.group, dtype=torch.float64, generator=self.random)
        coins = torch.rand(s.prompts, s.group, generator=self.random) < 0.5
        pi = log_pi.exp()
        actions = torch.searchsorted(pi.cumsum(-1), uniform, right=True).clamp(max=s.vocabulary - 1)
        decided = self.right.gather(-1, actions[:, : s.deciding]).all(1) if s.deciding else coins
        old_logps = log_pi.gather(-1, actions)
        edges = torch.tensor(EDGES[1:-1], dtype=torch.float64)
        ids = self._by_sequence(actions)
        asked = "disagreement" in self.rule.needs
        return Samples(
            actions,
            self._by_sequence(old_logps),
            self._by_sequence(entropy_of(log_pi).unsqueeze(-1).expand_as(actions)),
            group_advantages(decided.double(), s.advantage).reshape(-1, 1),
            torch.bucketize(old_logps.exp(), edges, right=True),
            group_disagreement(ids, self.groups, torch.ones_like(ids)) if asked else None,
        )

    def _by_sequence(self, x: Tensor) -> Tensor:
        """(P, T, K) -> (P K, T), the layout of tokens in a loss."""
        return x.transpose(1, 2).reshape(-1, self.settings.positions)

    def _by_prompt(self, x: Tensor) -> Tensor:
        """(P K, T) -> (P, T, K)."""
        s = self.settings
        return x.reshape(s.prompts, s.group, s.positions).transpose(1, 2)

    def _update(self, samples: Samples, counts: Counts) -> None:
        """One step on sum_i min(r_i A_i, clip(r_i) A_i) / group of each prompt."""
        log_pi = self.logits.log_softmax(-1)
        logps = self._by_sequence(log_pi.gather(-1, samples.actions)).requires_grad_()
        found = policy_loss(
            logps, samples.old_logps, samples.advantages, torch.ones_like(samples.old_logps), self.rule,
            "seq-mean-token-sum", old_entropy=samples.old_entropy, sampling_logps=samples.old_logps,
            groups=self.groups, disagreement=samples.disagreement, backend="eager",
        )  # fmt: skip
        slopes = torch.autograd.grad(-self.settings.prompts * found.loss, logps)[0]
        if self.controller is not None and self.controller.control.metric != "entropy":
            self.controller.add(float(found.metrics[self.controller.control.metric]))
        ratio = (logps.detach() - samples.old_logps).exp()
        clipped = (slopes == 0) & (samples.advantages != 0)  # read off the loss, whatever the rule
        sides = torch.stack([clipped & (ratio <= 1), clipped & (ratio > 1)])
        counts.clipped.append(sides.view(2, self.settings.prompts, -1).double().mean(-1))
        for side, one in enumerate(sides):
            bins = samples.bins[self._by_prompt(one)]
            counts.by_bin[side] += torch.bincount(bins, minlength=len(EDGES) - 1)
        # A clipped token is entered with the slope that it would have had; columns as in Ledger.
        slopes = torch.where(clipped, samples.advantages * ratio / self.settings.group, slopes)
        columns = torch.where(clipped, 2 + sides[0].long(), (samples.advantages <= 0).long())
        slopes, columns = self._by_prompt(slopes), self._by_prompt(columns)
        changes = self.optimizer.step(logit_gradients(log_pi.exp(), samples.actions, slopes, columns))
        counts.entries = counts.entries + entropy_change(log_pi, changes).mean(1)
        if self.optimizer.name not in SHARED:
            moved = self.settings.learning_rate * token_changes(log_pi, samples.actions, slopes)
            places = columns * (len(EDGES) - 1) + samples.bins
            sums = torch.bincount(places.flatten(), moved.flatten(), minlength=counts.entries_by_bin.numel())
            counts.entries_by_bin += sums.view(4, -1) / log_pi[..., 0].numel()
        self.logits = self.logits + changes[0] + changes[1]
        if not bool(self.logits.isfinite().all()):
            rate = self.settings.learning_rate
            raise ValueError(f"learning_rate is {rate}; allowed: a smaller one, because the logits have overflowed")

    def _note_state(self, log_pi: Tensor) -> None:
        entropy, deciding = entropy_of(log_pi), self.settings.deciding
        state = {}
        if deciding:
            within = log_pi[:, :deciding].masked_fill(~self.right, -torch.inf)
            state["success"] = within.exp().sum(-1).prod(-1)
            state["spread"] = torch.special.entr(within.softmax(-1)).sum(-1).mean(-1)
            state["entropy_deciding"] = entropy[:, :deciding].mean(-1)
        if deciding < self.settings.positions:
            state["entropy_neutral"] = entropy[:, deciding:].mean(-1)
        for name, value in state.items():
            self.states.setdefault(name, []).append(value)

    def result(self, rule: Mapping[str, object], seconds: float) -> RuleRun:
        states = {name: _series(values) for name, values in self.states.items()}
        low, high = torch.stack(self.by_bin, 1).tolist()
        entries, deciding = torch.stack(self.entries, 1), self.settings.deciding  # (5, rollouts, T)
        by_bin = torch.stack(self.entries_by_bin, 1).tolist()
        return RuleRun(
            rule=dict(rule),  # type: ignore[arg-type]
            success=states.get("success"),
            entropy_deciding=states.get("entropy_deciding"),
            entropy_neutral=states.get("entropy_neutral"),
            spread=states.get("spread"),
            **{name: _series(values) for name, values in self.flows.items()},
            clip_low_by_probability=_nulls(low),
            clip_high_by_probability=_nulls(high),
            control=None if self.controller is None else self.control,
            ledger=_ledger(entries),
            ledger_deciding=_ledger(entries[..., :deciding]) if deciding else None,
            ledger_neutral=_ledger(entries[..., deciding:]) if deciding < self.settings.positions else None,
            ledger_by_probability=None
            if self.optimizer.name in SHARED
            else {entry.name: rows for entry, rows in zip(fields(Ledger), by_bin, strict=False)},
            seconds=seconds,
        )


def _ledger(entries: Tensor) -> Ledger:
    """Entries of shape (5, rollouts, positions) as means over positions."""
    names = [entry.name for entry in fields(Ledger)]
    return Ledger(**dict(zip(names, entries.mean(-1).tolist(), strict=True)))


def _series(values: list[Tensor]) -> Series:
    """Entries of shape (P,) as means and standard errors."""
    stacked = torch.stack(values)
    return Series(stacked.mean(1).tolist(), (stacked.std(1) / stacked.shape[1] ** 0.5).tolist())


def _nulls(rows: list[list[float]]) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in rows]
