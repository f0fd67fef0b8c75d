"""GRPO in your own loop, from logits to metrics, with only PyTorch and bandpo (docs/tutorial.md).
The policy learns to count down: after 5 it should write 4 3 2 1 0. Run it: python examples/custom_loop.py"""

import torch

import bandpo

DIGITS, LENGTH = 16, 15


@torch.no_grad()
def sample(policy, prompts):
    """Each prompt with its LENGTH sampled digits, and a mask of those that count: up to the first 0."""
    digits = prompts
    for _ in range(LENGTH):
        drawn = torch.distributions.Categorical(logits=policy(digits)[:, -1]).sample()
        digits = torch.cat([digits, drawn.unsqueeze(1)], dim=1)
    zero = digits[:, 1:] == 0
    return digits, zero.cumsum(1) - zero.int() == 0  # (B, 1 + LENGTH), mask (B, LENGTH)


def log_probs(policy, digits):
    """Log-probs of the sampled digits, and the policy's entropy at each, both (B, LENGTH)."""
    logps = policy(digits[:, :-1]).log_softmax(-1)
    return logps.gather(-1, digits[:, 1:].unsqueeze(-1)).squeeze(-1), -(logps.exp() * logps).sum(-1)


def reward(digits, mask):
    """The share of a completion that counts down, (B,)."""
    right = (digits[:, 1:] == digits[:, :-1] - 1) & mask
    return right.sum(1) / torch.maximum(mask.sum(1), digits[:, 0])


def train(rule, rollouts=30, updates=16, prompts=32, group=8, seed=0):
    """Metrics of each rollout's last update, under a clip rule."""
    torch.manual_seed(seed)
    policy = torch.nn.Embedding(DIGITS, DIGITS)  # the smallest possible policy: logits given the previous digit
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.05)
    history = []
    for _ in range(rollouts):
        asked = torch.randint(1, DIGITS, (prompts, 1)).repeat_interleave(group, dim=0)
        digits, mask = sample(policy, asked)
        rewards = reward(digits, mask).view(prompts, group)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
        old_logps = log_probs(policy, digits)[0].detach()
        for _ in range(updates):  # in the first every ratio is 1; the rule acts from the second on
            logps, entropy = log_probs(policy, digits)
            result = bandpo.policy_loss(logps, old_logps, advantages.flatten(), mask, rule=rule, entropy=entropy)
            optimizer.zero_grad()
            result.loss.backward()
            optimizer.step()
        history.append({"reward": float(rewards.mean()), **{k: float(v) for k, v in result.metrics.items()}})
    return history


if __name__ == "__main__":
    for name, rule in {"GRPO clip": bandpo.Clip(0.2, 0.2), "Band": bandpo.Band(radius=0.05)}.items():
        for rollout, row in list(enumerate(train(rule), 1))[4::5]:
            shown = [f"{key} {row[key]:.3f}" for key in ("reward", "entropy", "clip_fraction", "divergence")]
            print(f"{name:9}  rollout {rollout:2}", *shown, sep="  ")
