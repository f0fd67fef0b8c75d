// The exact softmax model of bandpo.lab.bandit: what a clip rule does to success and entropy.
// tests/explore/test_sim_js.py holds one update to bandpo.lab.bandit's. The random numbers differ from torch's.

const BETAS = [0.9, 0.999], EPSILON = 1e-8;

/** Uniform numbers of 53 bits from a seed (sfc32). */
export function randomOf(seed) {
  let a = seed | 0, b = 0x9e3779b9, c = 0x243f6a88, n = 1;
  const next = () => {
    const t = (a + b + n++) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return t >>> 0;
  };
  for (let i = 0; i < 15; i++) next();
  return () => ((next() >>> 5) * 67108864 + (next() >>> 6)) / 9007199254740992;
}

/** log-softmax of the V logits from `at` on, written to `out`. */
function logSoftmax(logits, at, V, out) {
  let most = -Infinity, sum = 0;
  for (let k = 0; k < V; k++) most = Math.max(most, logits[at + k]);
  for (let k = 0; k < V; k++) sum += Math.exp(logits[at + k] - most);
  const norm = most + Math.log(sum);
  for (let k = 0; k < V; k++) out[k] = logits[at + k] - norm;
}

function entropyOf(logPi) {
  let sum = 0;
  for (const x of logPi) sum -= Math.exp(x) * x;
  return sum;
}

/** GRPO's advantages of one group: R - mean, or that over (std + 1e-4) with n - 1. */
function groupAdvantages(rewards, kind) {
  const n = rewards.length, mean = rewards.reduce((a, b) => a + b, 0) / n;
  const centered = rewards.map((r) => r - mean);
  if (kind !== "mean/std") return centered;
  const std = Math.sqrt(centered.reduce((a, b) => a + b * b, 0) / (n - 1));
  return centered.map((x) => x / (std + 1e-4));
}

/** The change of the logits, shape (rows, V), by their gradient: gradient ascent, or Adam with a shared second moment. */
function optimizerStep(o, gradient, V) {
  if (o.name === "gradient") return gradient.map((g) => o.rate * g);
  const cells = { adam: gradient.length, "adam-token": V, "adam-shared": 1 }[o.name];
  o.first ??= new Float64Array(gradient.length);
  o.second ??= new Float64Array(cells);
  const square = new Float64Array(cells), share = cells / gradient.length;
  for (let i = 0; i < gradient.length; i++) square[i % cells] += gradient[i] * gradient[i] * share;
  o.updates += 1;
  const [one, two] = BETAS.map((beta) => 1 - beta ** o.updates);
  const rate = square.map((value, i) => {
    o.second[i] = BETAS[1] * o.second[i] + (1 - BETAS[1]) * value;
    const root = Math.sqrt(o.second[i] / two);
    return root > EPSILON ? o.rate / (root + EPSILON) : 0;
  });
  return gradient.map((g, i) => {
    o.first[i] = BETAS[0] * o.first[i] + (1 - BETAS[0]) * g;
    return rate[i % cells] * o.first[i] / one;
  });
}

/** The softmax policies of all prompts under one rule; `right`: prompt -> deciding position -> set of right tokens. */
export class Policies {
  constructor(settings, rule, right = null) {
    const s = (this.settings = settings);
    this.rule = rule;
    this.random = randomOf(s.seed);
    this.optimizer = { name: s.optimizer, rate: s.learning_rate, updates: 0 };
    this.rows = s.prompts * s.positions;
    this.logits = new Float64Array(this.rows * s.vocabulary);
    for (let i = 0; i < this.logits.length; i++) this.logits[i] = -s.exponent * Math.log1p(i % s.vocabulary);
    this.right = right ?? this.drawRight();
    this.logPi = new Float64Array(s.vocabulary);
  }

  drawRight() {
    const s = this.settings;
    return Array.from({ length: s.prompts }, () => Array.from({ length: s.deciding }, () => {
      const right = new Set();
      while (right.size < s.answers) right.add(s.first_rank + Math.floor(this.random() * (s.vocabulary - s.first_rank)));
      return right;
    }));
  }

  /** actions and old of shape (P, T, K), advantages (P, K), entropy (P, T); flat. */
  sample() {
    const { prompts: P, positions: T, vocabulary: V, group: K, deciding, advantage } = this.settings;
    const actions = new Int32Array(this.rows * K), old = new Float64Array(this.rows * K);
    const entropy = new Float64Array(this.rows), advantages = new Float64Array(P * K);
    for (let row = 0; row < this.rows; row++) {
      logSoftmax(this.logits, row * V, V, this.logPi);
      entropy[row] = entropyOf(this.logPi);
      for (let i = 0; i < K; i++) {
        let rest = this.random(), token = 0;
        while (token < V - 1 && (rest -= Math.exp(this.logPi[token])) >= 0) token++;
        actions[row * K + i] = token;
        old[row * K + i] = this.logPi[token];
      }
    }
    for (let prompt = 0; prompt < P; prompt++) {
      const rewards = Array.from({ length: K }, (_, i) => {
        const coin = this.random() < 0.5;  // always drawn, so that all models draw alike
        if (!deciding) return coin ? 1 : 0;
        return this.right[prompt].every((right, t) => right.has(actions[(prompt * T + t) * K + i])) ? 1 : 0;
      });
      advantages.set(groupAdvantages(rewards, advantage), prompt * K);
    }
    return { actions, old, entropy, advantages };
  }

  /** One step on sum_i min(r_i A_i, clip(r_i) A_i) / group of each prompt; the counts of tokens clipped below, above. */
  update({ actions, old, entropy, advantages }) {
    const { positions: T, vocabulary: V, group: K } = this.settings;
    const gradient = new Float64Array(this.logits.length), clipped = [0, 0];
    for (let row = 0; row < this.rows; row++) {
      logSoftmax(this.logits, row * V, V, this.logPi);
      let sum = 0;
      for (let i = 0; i < K; i++) {
        const at = row * K + i, now = this.logPi[actions[at]];
        const A = advantages[Math.floor(row / T) * K + i];
        if (A === 0) continue;
        if (this.rule.clipped(now, old[at], A, entropy[row])) {
          clipped[now > old[at] ? 1 : 0]++;
          continue;
        }
        const slope = A * Math.exp(now - old[at]) / K;
        gradient[row * V + actions[at]] += slope;
        sum += slope;
      }
      if (sum !== 0) for (let k = 0; k < V; k++) gradient[row * V + k] -= sum * Math.exp(this.logPi[k]);
    }
    const change = optimizerStep(this.optimizer, gradient, V);
    for (let i = 0; i < change.length; i++) this.logits[i] += change[i];
    return clipped;
  }

  /** One rollout and the updates on it; returns the state afterwards. */
  rollout() {
    const samples = this.sample(), clipped = [0, 0], { updates } = this.settings;
    for (let i = 0; i < updates; i++) this.update(samples).forEach((count, side) => (clipped[side] += count));
    const [low, high] = clipped.map((count) => count / (updates * samples.actions.length));
    return { ...this.state(), clip_fraction_low: low, clip_fraction_high: high };
  }

  /** Means over prompts; null if there are none. */
  state() {
    const { prompts: P, positions: T, vocabulary: V, deciding } = this.settings;
    const sums = { success: 0, entropy_deciding: 0, entropy_neutral: 0 };
    for (let prompt = 0; prompt < P; prompt++) {
      let success = 1;
      for (let t = 0; t < T; t++) {
        logSoftmax(this.logits, (prompt * T + t) * V, V, this.logPi);
        sums[t < deciding ? "entropy_deciding" : "entropy_neutral"] += entropyOf(this.logPi);
        if (t < deciding) success *= [...this.right[prompt][t]].reduce((sum, k) => sum + Math.exp(this.logPi[k]), 0);
      }
      sums.success += success;
    }
    if (Number.isNaN(sums.entropy_neutral + sums.entropy_deciding)) {
      throw new Error(`The learning rate is ${this.settings.learning_rate}; allowed: a smaller one, because the logits overflow.`);
    }
    return {
      success: deciding ? sums.success / P : null,
      entropy_deciding: deciding ? sums.entropy_deciding / (P * deciding) : null,
      entropy_neutral: deciding < T ? sums.entropy_neutral / (P * (T - deciding)) : null,
    };
  }
}

/** All rules with common random numbers: yields {rollout, states} before the first rollout and after each. */
export function* simulate(settings, rules) {
  const all = rules.map((stated) => new Policies(settings, makeRule(stated)));
  yield { rollout: 0, states: all.map((one) => one.state()) };
  for (let rollout = 1; rollout <= settings.rollouts; rollout++) {
    yield { rollout, states: all.map((one) => one.rollout()) };
  }
}

/** What a worker does with the message {settings, rules}. */
export function serve(port) {
  port.onmessage = ({ data }) => {
    try {
      for (const state of simulate(data.settings, data.rules)) port.postMessage(state);
    } catch (error) {
      port.postMessage({ error: error.message });
    }
  };
}
