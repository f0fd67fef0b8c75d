// Logged tokens under the clip rules, without the page; tests/explore/test_tokens_js.py holds it against
// bandpo.report.inspection. The data are those of bandpo.explore.tokens.token_data.
import { binaryDivergence, getDivergence, makeRule } from "./band.js";

const ARRAYS = { f4: Float32Array, u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
export const VERDICTS = ["neither", "freed", "held", "both"];  // by their codes
export const LEVELS = 12;  // steps of a color scale

function unpack({ type, base64 }) {
  return new ARRAYS[type](Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer);
}

/** The data with their arrays, and of each of the N tokens: row (its completion), now, old, logRatio, advantage, judged. */
export function tokensOf(data) {
  const columns = Object.fromEntries(Object.entries(data.columns).map(([name, packed]) => [name, packed && unpack(packed)]));
  const [kinds, positions, starts] = [data.kinds, data.positions, data.starts].map(unpack), size = kinds.length;
  const row = new Uint32Array(size), logRatio = new Float32Array(size), judged = new Uint8Array(size);
  for (let r = 0; r + 1 < starts.length; r++) row.fill(r, starts[r], starts[r + 1]);
  const old = data.edge ? columns[data.edge.anchor] : columns.old_logps ?? columns.logps ?? columns.sampling_logps;
  const now = data.edge ? columns[data.edge.new] : null, advantage = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    logRatio[i] = now ? now[i] - old[i] : NaN;
    const logged = columns.advantages ? columns.advantages[i] : NaN;
    advantage[i] = Number.isFinite(logged) ? logged : Math.sign(logRatio[i]);  // outside then counts as clipped
    judged[i] = Number.isFinite(logRatio[i]) && logged !== 0;
  }
  return { ...data, size, columns, kinds, positions, starts, row, old, now, logRatio, advantage, judged };
}

/** Which tokens a rule clips: 0 or 1 each; needs: what it reads beyond log-probs; skipped: why it cannot be applied. */
export function judgeTokens(tokens, stated, needs = []) {
  const { size, judged, now, old, advantage, columns } = tokens, clipped = new Uint8Array(size);
  const entropy = columns.old_entropy, reads = needs.includes("old_entropy");
  for (let i = 0; reads && i < size; i++) {
    if (judged[i] && !(entropy && Number.isFinite(entropy[i]))) {
      return { clipped, skipped: `${stated.name} needs old_entropy, which some of these tokens lack` };
    }
  }
  const rule = makeRule(stated, true);
  for (let i = 0; i < size; i++) {
    if (judged[i] && rule.clipped(now[i], old[i], advantage[i], reads ? entropy[i] : undefined)) clipped[i] = 1;
  }
  return { clipped, skipped: "" };
}

/** From rule B to rule A, by token and counted: freed (clipped only by B), held (only by A), both, neither. */
export function compareVerdicts({ size, judged }, a, b) {
  const codes = new Uint8Array(size), counts = [0, 0, 0, 0];
  for (let i = 0; i < size; i++) {
    codes[i] = b[i] + 2 * a[i];
    if (judged[i]) counts[codes[i]]++;
  }
  return { codes, ...Object.fromEntries(VERDICTS.map((name, code) => [name, counts[code]])) };
}

/** The next token, in the order of `order`, that one rule clips and the other does not; step 1 or -1; null: none. */
export function nextDisagreement(codes, order, from, step) {
  const { length } = order, start = from === null ? (step > 0 ? -1 : length) : order.indexOf(from);
  for (let k = 1; k <= length; k++) {
    const i = order[(((start + step * k) % length) + length) % length];
    if (codes[i] === 1 || codes[i] === 2) return i;
  }
  return null;
}

/** Where clipped tokens are, most first: {name, clipped, share, sharePositive, own} as bandpo.report.inspection.Place. */
export function placesOf(tokens, clipped, kinds, names, limit = Infinity) {
  const { judged, advantage } = tokens, count = () => new Uint32Array(names.length), [hit, up, all] = [count(), count(), count()];
  let hits = 0, ups = 0;
  for (let i = 0; i < tokens.size; i++) {
    if (!judged[i]) continue;
    all[kinds[i]]++;
    if (!clipped[i]) continue;
    hits++;
    hit[kinds[i]]++;
    if (advantage[i] > 0) {
      ups++;
      up[kinds[i]]++;
    }
  }
  const found = names.map((name, k) => k).filter((k) => hit[k]).sort((a, b) => hit[b] - hit[a] || a - b).slice(0, limit);
  return found.map((k) => ({ name: names[k], clipped: hit[k], share: hit[k] / hits, sharePositive: ups ? up[k] / ups : null, own: hit[k] / all[k] }));
}

/** Index of each token's range of positions, and the names of the ranges. */
export function stretchesOf({ positions, stretches }) {
  const kinds = Uint8Array.from(positions, (at) => stretches.findLastIndex((start) => start <= at));
  const end = (k) => stretches[k + 1], names = stretches.map((start, k) => (k === stretches.length - 1 ? `from ${start}` : end(k) === start + 1 ? `${start}` : `${start} to ${end(k) - 1}`));
  return { kinds, names };
}

/** Of the tokens that their advantage pushes outward: the divergence g, or |r - 1| for null; the largest first. */
export function distancesOf({ size, judged, old, logRatio, advantage }, divergence) {
  const f = divergence === null ? null : getDivergence(divergence), found = [];
  for (let i = 0; i < size; i++) {
    if (!judged[i] || !(advantage[i] * logRatio[i] > 0)) continue;
    found.push(f ? binaryDivergence(Math.min(Math.fround(old[i] + logRatio[i]), 0), old[i], f) : Math.abs(Math.expm1(logRatio[i])));
  }
  return Float64Array.from(found).sort().reverse();
}

/** A number that `count` of these falling values exceed, or null: as bandpo.report.inspection has it. */
export function thresholdOf(falling, count) {
  if (!falling.length || count > falling.length) return null;
  const low = count === falling.length ? 0 : falling[count];
  if (count === 0) return Number.isFinite(low) && low > 0 ? low * (1 + 1e-6) : null;
  const middle = (low + falling[count - 1]) / 2;
  return low < middle && middle < Infinity ? middle : null;
}

// --- colors --------------------------------------------------------------------------------------------------------

const LN10 = Math.log(10);
const perToken = ({ size }, make) => Float64Array.from({ length: size }, (_, i) => make(i));
const measured = (column) => (tokens) => (tokens.columns[column] ? perToken(tokens, (i) => tokens.columns[column][i]) : null);

// Name -> label; values(tokens): N numbers, NaN unknown, or null; sign: whether there is a middle, with ticks for a given
// top, from the left end to the right; text(value) of a tick. top: a fixed end, or none: the 99th percentile of |value|.
export const SCALES = {
  p: { label: "p of the anchor", values: ({ size, old }) => perToken({ size }, (i) => Math.min(-old[i] / LN10, 4)), top: 4, text: (x) => (x >= 4 ? "≤ 0.0001" : String(Number((10 ** -x).toPrecision(2)))) },
  ratio: { label: "ratio", values: (t) => (t.now ? Float64Array.from(t.logRatio) : null), top: Math.log(2), sign: true, text: (x) => `${x >= 0.69 ? "≥ " : x <= -0.69 ? "≤ " : ""}${Number(Math.exp(x).toPrecision(3))}` },
  advantage: { label: "advantage", values: measured("advantages"), sign: true },
  entropy: { label: "entropy (nats)", values: (t) => measured("entropy")(t) ?? measured("old_entropy")(t) },
  gap: {
    label: "gap: anchor / sampler", sign: true, text: (x) => String(Number(Math.exp(x).toPrecision(4))),
    values({ size, columns: { old_logps: anchor, sampling_logps: sampler } }) {
      return anchor && sampler ? perToken({ size }, (i) => anchor[i] - sampler[i]) : null;
    },
  },
  effect: { label: "entropy effect (nats per unit of learning rate)", values: measured("effect"), sign: true },
};

/** The numbers that a color stands for, and its scale from low to top; null if they were not logged. */
export function scaleFor(tokens, name) {
  const { values: read, top: end, sign = false, text = (x) => String(Number(x.toPrecision(3))) } = SCALES[name], values = read(tokens);
  if (!values) return null;
  const sizes = values.filter(Number.isFinite).map(Math.abs).sort();
  if (!sizes.length) return null;
  const top = end ?? (sizes[Math.ceil(0.99 * (sizes.length - 1))] || sizes.at(-1) || 1);
  const ticks = (sign ? [-1, -0.5, 0, 0.5, 1] : [0, 0.25, 0.5, 0.75, 1]).map((share) => text(share * top));
  return { values, top, sign, ticks };
}

/** The step of a color scale, from 0 to LEVELS, of each token; 255: no number. Below the middle: 128 and more. */
export function levelsFor({ values, top }) {
  return Uint8Array.from(values, (x) => {
    if (!Number.isFinite(x)) return 255;
    const level = Math.round(Math.min(Math.abs(x) / top, 1) * LEVELS);
    return x < 0 && level ? 128 + level : level;
  });
}
