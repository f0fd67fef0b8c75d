// The Band operator and the other clip rules, as in bandpo.core; tests/explore/test_band_js.py checks that they agree.
// Letters as in bandpo/core/coins.py: p, c = 1 - p before, q, d = 1 - q after; u, w = 1 - u the old probability of the
// outcome that grows and of the one that shrinks, x the log-ratio of the first; the second loses the share E = 1 - e^-D.

const TINY = 1e-300, HUGE = 1e290, FAR = 1e280, ULP = 2 ** -53;
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** weight (e^t - 1 - t) without its cancellation at small t, if moved = weight (e^t - 1) is known. */
function excess(weight, t, moved) {
  if (Math.abs(t) >= 0.5) return moved - weight * t;
  let series = 1;
  for (let k = 15; k > 2; k--) series = 1 + series * t / k;
  return 0.5 * weight * t * t * series;
}

function jensenShannon(p, q, s, moved) {
  const z = clamp(moved / (p + q + TINY), ULP - 1, 1 - ULP);
  return 0.5 * (excess(q, -Math.log1p(z), -0.5 * moved) + excess(p, -Math.log1p(-z), 0.5 * moved));
}

function alphaPart(a) {
  const b = a - 1, above = a > 0.5, n = above ? b : a;  // the power nearer 0 divides out without a loss
  return (p, q, s, moved) => {
    const power = (above ? q : p) * Math.expm1(Math.min(n * s, 700));
    if (Math.abs(s) >= 1) return (power - n * moved) / (a * b);
    const other = above ? b * excess(q, -s, -moved) : -a * excess(p, s, moved);
    return (excess(above ? q : p, n * s, power) + other) / (a * b);
  };
}

const fromShare = (E) => [Math.min(E, 1), -Math.log1p(-Math.min(E, 1))];

// part(p, q, s, moved) = p f(q / p) >= 0 with s = log(q / p), moved = q - p; solve: the closed form of (E, D), if any;
// steep: f has an infinite slope at infinity; barrier: f(0) is infinite; logTail: D may be as large as radius / w.
const DIVERGENCES = {
  kl: { part: (p, q, s, moved) => excess(p, s, moved), barrier: true, logTail: true },
  reverse_kl: { part: (p, q, s, moved) => excess(q, -s, -moved), steep: true },
  tv: { part: (p, q, s, moved) => 0.5 * Math.abs(moved), solve: (u, w, logU, radius) => fromShare(radius / w) },
  chi2: {
    part: (p, q, s, moved) => moved * (moved / (p + TINY)), steep: true,
    solve: (u, w, logU, radius) => fromShare(Math.sqrt(radius / w) * Math.exp(0.5 * logU)),
  },
  neyman_chi2: {
    part: (p, q, s, moved) => moved * (moved / (q + TINY)), barrier: true,
    solve(u, w, logU, radius) {
      const odds = (radius + Math.sqrt(radius * (radius + 4 * u * w))) / (2 * w), finite = Math.min(odds, 1e30);
      return [finite / (1 + finite), Math.log1p(odds)];
    },
  },
  hellinger2: {
    part: (p, q, s, moved) => (moved / (Math.sqrt(p) + Math.sqrt(q) + TINY)) ** 2,
    solve(u, w, logU, radius) {
      const sine = Math.sqrt(Math.max(radius * (1 - 0.25 * radius), 1e-30));
      const lost = Math.min(0.5 * radius + Math.sqrt(u / w) * sine, 1);
      return [lost * (2 - lost), -2 * Math.log1p(-lost)];
    },
  },
  js: { part: jensenShannon },
  jeffreys: { part: (p, q, s, moved) => moved * s, steep: true, barrier: true, logTail: true },
};

/** A divergence by its name; alpha:a for the family. Throws an Error that names what is allowed. */
export function getDivergence(name) {
  if (Object.hasOwn(DIVERGENCES, name)) return DIVERGENCES[name];
  const a = name.startsWith("alpha:") && name.length > 6 ? Number(name.slice(6)) : NaN;
  if (!Number.isFinite(a) || a === 0 || a === 1) {
    const allowed = `${Object.keys(DIVERGENCES).join(", ")}, or alpha:a with a number a other than 0 and 1`;
    throw new Error(`the divergence is ${name}; allowed: ${allowed}`);
  }
  return (DIVERGENCES[name] = { part: alphaPart(a), steep: a > 1, barrier: a < 0 });
}

/** g_f(p, r) of log-probs: the divergence of the two coins. */
export function binaryDivergence(now, old, f) {
  const [after, before] = [Math.max(now, -HUGE), Math.max(old, -HUGE)];
  const p = Math.exp(before), q = Math.exp(after), c = 0 - Math.expm1(before), d = 0 - Math.expm1(after);
  const s = after - before, moved = Math.sign(s) * Math.max(p, q) * -Math.expm1(-Math.abs(s));
  const share = -moved / c;
  const t = moved === 0 ? 0 : Math.abs(share) < 0.5 ? Math.log1p(share) : clamp(Math.log(d / c), -HUGE, HUGE);
  if ((f.barrier && Math.min(s, t) < -FAR) || (f.steep && Math.max(s, t) > FAR)) return Infinity;
  return f.part(p, q, s, moved) + f.part(c, d, t, -moved);
}

/** Chandrupatla's method: the root of an increasing h between a and b. */
function findRoot(h, b, a) {
  let fb = h(b), fa = h(a), c = a, fc = fa, t = 0.5;
  for (let trip = 0; trip < 120; trip++) {
    const x = a + t * (b - a), fx = h(x);
    if ((fx < 0) === (fa < 0)) [c, fc] = [a, fa];
    else [c, fc, b, fb] = [b, fb, a, fa];
    [a, fa] = [x, fx];
    const width = 2 ** -51 * Math.max(Math.abs(a), 1e-3) / Math.abs(b - a);
    if (fa === 0 || width > 0.5) break;
    const xi = (a - b) / (c - b), phi = (fa - fb) / (fc - fb);
    const safe = phi * phi < xi && (1 - phi) ** 2 < 1 - xi;
    t = safe ? fa / (fb - fa) * fc / (fb - fc) + (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb) : 0.5;
    t = clamp(t, width, 1 - width);
  }
  return Math.abs(fa) < Math.abs(fb) ? a : b;
}

function solve(f, u, w, logU, radius, growth) {
  if (w === 0) return [1, Infinity];
  if (f.steep && u === 0) return [0, 0];
  if (f.solve) return f.solve(u, w, logU, radius);
  const at = (D, E) => f.part(u, u + w * E, growth(E), w * E) + f.part(w, w * Math.exp(-D), -D, -w * E);
  if (radius >= at(HUGE, 1)) return [1, Infinity];
  const excessOf = (y) => {
    const D = Math.exp(y);
    return clamp(Math.log(Math.max(at(D, -Math.expm1(-D)), TINY) / radius), -1e3, 1e3);
  };
  const top = f.logTail ? 690 : Math.log(690);
  if (excessOf(top) <= 0) return [1, Infinity];
  const D = Math.exp(findRoot(excessOf, -690, top));
  return [-Math.expm1(-D), D];
}

/** [log lower, log upper] of the ratios r with g_f(p, r) <= radius, p = e^old; -Infinity and -old at the edges. */
export function bandBounds(old, [low, high], f) {
  if (old === -Infinity) return [-Infinity, Infinity];
  const p = Math.exp(old), c = 0 - Math.expm1(old);
  const side = (u, w, logU, radius) => {
    const far = Math.min(-logU, HUGE), m = Math.min(far, 600), odds = w * Math.exp(m);
    const growth = (E) => Math.log1p(odds * E) + (far - m);
    const [E, D] = solve(f, u, w, logU, radius, growth);
    return [growth(E), D];
  };
  const [x, D] = side(p, c, old, high);
  const [, lost] = side(c, p, p < 0.5 ? Math.log1p(-p) : Math.log(c), low);
  return [0 - lost, D === Infinity ? 0 - old : Math.min(x, 0 - old)];
}

// --- rules ---------------------------------------------------------------------------------------------------------

const pairOf = (radius) => (Array.isArray(radius) ? radius : [radius, radius]);

/** A ball of a divergence; factor(old) multiplies its radii. Membership is one evaluation of g_f and no root. */
function ball(o, round, twoSided = false, factor = () => 1) {
  const f = getDivergence(o.divergence), [low, high] = pairOf(o.radius);
  const cap = o.cap ?? Infinity, floor = o.floor ?? 0, logCap = Math.log(cap), logFloor = Math.log(floor);
  return {
    twoSided,
    bounds(old) {
      const [lower, upper] = bandBounds(old, [low * factor(old), high * factor(old)], f);
      return [Math.max(Math.exp(lower), floor), Math.min(Math.exp(upper), cap)];
    },
    inside(now, old) {
      const within = binaryDivergence(now, old, f) <= round((now > old ? high : low) * factor(old)), x = round(now - old);
      return within && x >= round(logFloor) && x <= round(logCap);
    },
  };
}

/** Any interval of ratios: bounds(old, entropy) -> [lower, upper]. */
function interval(bounds, round, twoSided = false) {
  return {
    twoSided, bounds,
    inside(now, old, entropy) {
      const [lower, upper] = bounds(old, entropy), ratio = round(Math.exp(round(now - old)));
      return ratio >= round(lower) && ratio <= round(upper);
    },
  };
}

const RULES = {
  band: (o, round) => ball(o, round),
  "dppo-tv": (o, round) => ball(o, round),
  "dppo-kl": (o, round) => ball(o, round),
  ipo: (o, round) => ball(o, round, true),
  "adaptive-band": (o, round) => ball(o, round, false, (old) => clamp(-old / o.reference, o.smallest, o.largest)),
  "relaxed-band": (o, round) => {
    const f = getDivergence(o.divergence), logLow = Math.log(1 - o.low), logHigh = Math.log1p(o.high);
    const inner = ball(o, round), outer = RULES.clip(o, round);
    return {
      twoSided: false,
      bounds(old) {
        const [lower, upper] = bandBounds(old, pairOf(o.radius), f);
        return [Math.exp(Math.min(lower, logLow)), Math.exp(Math.max(upper, logHigh))];
      },
      inside: (now, old) => outer.inside(now, old) || inner.inside(now, old),
    };
  },
  clip: (o, round) => interval(() => [1 - o.low, 1 + o.high], round),
  dcpo: (o, round) => interval((old) => {
    const inverse = Math.exp(-old), upper = 0.5 + 0.5 * Math.sqrt(1 + 4 * o.high * inverse);
    return [0.5 + 0.5 * Math.sqrt(Math.max(1 - 4 * o.low * inverse, 0)), Math.min(upper, o.cap ?? Infinity)];
  }, round),
  ripo: (o, round) => interval((old) => {
    const reach = Math.sqrt(o.radius) * Math.exp(-0.5 * old);
    return [Math.max(1 - reach, 0), 1 + reach];
  }, round),
  estr: (o, round) => interval((old, entropy) => {
    const reach = Math.sqrt(o.threshold * (Math.max(entropy, 0) + o.epsilon));
    return [Math.exp(-reach), Math.exp(reach)];
  }, round, true),
  none: (o, round) => interval(() => [0, Infinity], round),
};

/** The rule of a mapping {name, ...options} that states every option; single: rounds as the package does for float32. */
export function makeRule(stated, single = false) {
  const rule = RULES[stated.name](stated, single ? Math.fround : (x) => x), inside = rule.inside;
  const unit = single ? 2 ** -24 : ULP;
  // A log-prob of 0 is a p rounded to 1: the smallest change that agrees with it (bandpo.core.coins.settle).
  rule.inside = (now, old, entropy) => inside(
    now === 0 ? clamp(old, -unit, 0) : now, old === 0 ? clamp(now, -unit, 0) : old, entropy);
  /** Whether a token loses its gradient: outside, and pushed further out unless the rule is a two-sided mask. */
  rule.clipped = (now, old, advantage, entropy) => {
    if (advantage === 0 || !(rule.twoSided || (advantage > 0 ? now > old : now < old))) return false;
    return !rule.inside(now, old, entropy);
  };
  return rule;
}
