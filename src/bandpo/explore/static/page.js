// The page: controls, plots and the address, which holds the state.
import { bandBounds, binaryDivergence, getDivergence, makeRule } from "./band.js";
import { simulate } from "./sim.js";
import { FORMS } from "./copy.js";
import { element, Plot, short } from "./plot.js";
import { byId, labelled, legendItem, numberField, numberRow, selectField, tableParts, twoColumns } from "./controls.js";
import { sourcesOf } from "./sources.js";
import { RUN_FIELDS, runPanel } from "./run.js";
import { TOKENS_FIELDS, tokensPanel } from "./tokens.js";
import { SAVING_FIELDS, savingPanel } from "./saving.js";
import { NUMBERS, positive, PROBABILITY, SETTINGS, SIDES, stateOf, takesPair } from "./state.js";

const DATA = JSON.parse(document.getElementById("data").textContent);
const LETTERS = { a: "A", b: "B" };
const NAMED = ["kl", "reverse_kl", "tv", "chi2", "neyman_chi2", "hellinger2", "js", "jeffreys"];
const FIELDS = { run: RUN_FIELDS, tokens: TOKENS_FIELDS, saving: SAVING_FIELDS };
const PANELS = { run: runPanel, tokens: tokensPanel, saving: savingPanel };
const { freshRule, freshState, optionsInWords, address, readAddress } = stateOf(DATA, FIELDS);

let state = freshState();

// --- the rules ------------------------------------------------------------------------------------------------------

function divergenceRows(side, rule, rebuild, redraw) {
  const family = rule.divergence.startsWith("alpha:") ? "alpha" : rule.divergence;
  const choice = selectField(`${side}-divergence`, "divergence", [...NAMED, "alpha"], family, (name) => {
    rule.divergence = name === "alpha" ? "alpha:0.5" : name;
    rebuild();
  });
  const rows = [twoColumns(choice)];
  if (family === "alpha") {
    const spec = { label: "alpha", low: -3, high: 4, fits: (x) => Number.isFinite(x) && x !== 0 && x !== 1, allowed: "a number other than 0 (kl) and 1 (reverse_kl)" };
    const change = (a) => {
      if (spec.fits(a)) rule.divergence = `alpha:${a}`;
      redraw();
    };
    rows.push(numberRow(`${side}-alpha`, spec, Number(rule.divergence.slice(6)), change).row);
  }
  return rows;
}

function radiusRows(side, rule, rebuild, redraw) {
  const pair = Array.isArray(rule.radius), spec = (label) => ({ ...NUMBERS.radius, label });
  const set = (i) => (x) => {
    if (pair) rule.radius[i] = x;
    else rule.radius = x;
    redraw();
  };
  const rows = pair
    ? [0, 1].map((i) => numberRow(`${side}-radius-${i}`, spec(["radius below", "radius above"][i]), rule.radius[i], set(i)).row)
    : [numberRow(`${side}-radius`, NUMBERS.radius, rule.radius, set(0)).row];
  if (takesPair(rule)) {
    const box = element("input", { type: "checkbox", id: `${side}-pair`, checked: pair });
    box.addEventListener("change", () => {
      rule.radius = box.checked ? [rule.radius, rule.radius] : rule.radius[1];
      rebuild();
    });
    rows.push(element("div", {}, element("label", {}, box, " one radius per side")));
  }
  return rows;
}

function fillRule(side) {
  const rule = state[side], focused = document.activeElement?.id;
  const rebuild = () => {
    fillRule(side);
    redraw();
  };
  const title = { band: "band (BandPO)", clip: "clip (fixed; Clip-Higher: high .28)", none: "none (no clip)" };
  const names = Object.fromEntries(Object.keys(DATA.rules).map((name) => [name, title[name] ?? name]));
  const choice = selectField(`${side}-rule`, "rule", names, rule.name, (name) => {
    state[side] = freshRule(name);
    rebuild();
  });
  const rows = Object.keys(rule).filter((key) => key !== "name").flatMap((key) => {
    if (key === "divergence") return divergenceRows(side, rule, rebuild, redraw);
    if (key === "radius") return radiusRows(side, rule, rebuild, redraw);
    return [numberRow(`${side}-${key}`, NUMBERS[key], rule[key], (x) => {
      if (key === "smallest" && x > rule.largest) rule.largest = x;
      if (key === "largest" && x < rule.smallest) rule.smallest = x;
      rule[key] = x;
      redraw();
    }).row];
  });
  byId(`rule-${side}`).replaceChildren(element("legend", {}, `Rule ${LETTERS[side]}`), twoColumns(choice), ...rows);
  if (focused) byId(focused)?.focus();
}

// --- the band ------------------------------------------------------------------------------------------------------

const P_LOG = { label: "old probability p", low: 1e-4, high: 1, log: true };
const RATIO = { label: "ratio, new / old", low: 1e-2, high: 1e3, log: true };
const GRID = Array.from({ length: 241 }, (_, i) => 1 / (1 + Math.exp(9.3 - 18.6 * i / 240)));  // uniform in log-odds
let plots, pointer, entropyRow;

const nameOf = (rule) => [rule.name, ...optionsInWords(rule).map(([key, text]) => `${key} ${text}`)].join(", ");
const boundsOf = (rule, p) => rule.bounds(Math.log(p), state.entropy);

function buildBand() {
  byId("rules").replaceChildren(...SIDES.map((side) => element("fieldset", { id: `rule-${side}`, class: side })));
  plots = [
    new Plot("Ratio bounds", P_LOG, RATIO, point),
    new Plot("New probability", { label: P_LOG.label, low: 0, high: 1 }, { label: "new probability", low: 0, high: 1 }, point),
    new Plot("No gradient for A > 0", P_LOG, RATIO, point),
    new Plot("No gradient for A < 0", P_LOG, RATIO, point),
  ];
  byId("plots").replaceChildren(...plots.map((plot) => plot.figure));
  pointer = numberRow("p", NUMBERS.p, state.p, point);
  byId("pointer").replaceChildren(pointer.row);
  entropyRow = numberRow("entropy", NUMBERS.entropy, state.entropy, (x) => {
    state.entropy = x;
    redraw();
  });
  byId("entropy-row").replaceWith(Object.assign(entropyRow.row, { id: "entropy-row" }));
}

function redrawBand() {
  const rules = SIDES.map((side) => makeRule(state[side]));
  const curves = rules.map((rule) => GRID.map((p) => [p, ...boundsOf(rule, p)]));
  const edge = GRID.map((p) => [p, 1 / p]), beyond = { kind: "area", points: GRID.map((p) => [p, 1 / p, 1e6]), name: "out" };
  const both = (make) => curves.flatMap((points, i) => make(points, `c${i} d${i}`, rules[i]));
  const line = (points, name) => ({ kind: "line", points, name });
  const edgeLine = line(edge, "edge");
  const lines = (points, name) => [line(points.map(([p, low]) => [p, low]), name), line(points.map(([p, , high]) => [p, high]), name)];
  plots[0].draw([beyond, edgeLine, ...both(lines)]);
  plots[1].draw([line([[0, 0], [1, 1]], "edge"), ...both((points, name) => lines(points.map(([p, low, high]) => [p, p * low, p * high]), name))]);
  const above = (points, name) => ({ kind: "area", name, points: points.map(([p, , high]) => [p, Math.min(high, 1 / p), 1 / p]) });
  const below = (points, name) => ({ kind: "area", name, points: points.map(([p, low]) => [p, 1e-9, low]) });
  for (const [plot, rising] of [[plots[2], true], [plots[3], false]]) {
    const regions = both((points, name, rule) => [
      ...(rising || rule.twoSided ? [above(points, name), line(points.map(([p, , high]) => [p, high]), name)] : []),
      ...(!rising || rule.twoSided ? [below(points, name), line(points.map(([p, low]) => [p, low]), name)] : []),
    ]);
    plot.draw([beyond, edgeLine, ...regions]);
  }
  const needsEntropy = SIDES.some((side) => DATA.rules[state[side].name].needs.length > 0);
  byId("entropy-row").hidden = !needsEntropy;
  const entries = [...SIDES.map((side, i) => [`line c${i} d${i}`, `${LETTERS[side]}: ${nameOf(state[side])}`]), ["line edge", "edge of the simplex, 1 / p, and no change"]];
  byId("legend").replaceChildren(...entries.map(([name, text]) => legendItem(name, text)));
  fillTable(rules);
}

function fillTable(rules) {
  const head = ["p", ...SIDES.flatMap((side) => ["lower", "upper", "p × lower", "p × upper"].map((name) => `${LETTERS[side]}: ${name}`))];
  const rows = state.chosen.map((p) => {
    const cells = rules.flatMap((rule) => {
      const [low, high] = boundsOf(rule, p);
      return [low, high, p * low, p * high];
    });
    return [p, ...cells].map(short);
  });
  byId("table").replaceChildren(...tableParts(head, rows));
}

function point(p) {
  state.p = p;
  plots.forEach((plot) => plot.point(p));
  if (document.activeElement?.id !== "p" && document.activeElement?.id !== "p-slider") pointer.show(p);
  const words = SIDES.map((side) => {
    const [low, high] = boundsOf(makeRule(state[side]), p);
    return `${LETTERS[side]}: ratio ${short(low)} to ${short(high)}, new probability ${short(p * low)} to ${short(p * high)}`;
  });
  byId("readout").replaceChildren(`p = ${short(p)}. `, ...words.map((text) => element("div", {}, text)), element("div", {}, `Edge of the simplex: ratio ${short(1 / p)}`));
  remember();
}

// --- radius and epsilon --------------------------------------------------------------------------------------------

/** The radius whose bound at p is 1 + epsilon (above) or 1 - epsilon (below), or why there is none. */
function matchRadius({ p, epsilon, side }, f) {
  const ratio = side === "upper" ? 1 + epsilon : 1 - epsilon;
  if (ratio < 0) throw new Error(`1 − ${short(epsilon)} is below 0, but ratios are not.`);
  if (ratio * p > 1) throw new Error(`At p = ${short(p)} the ratio cannot exceed 1 / p = ${short(1 / p)}: no radius has the bound ${short(ratio)}.`);
  const radius = binaryDivergence(Math.log(p) + Math.log(ratio), Math.log(p), f);
  if (!positive(radius)) throw new Error(`No finite radius has the bound ${short(ratio)}.`);
  return radius;
}

let matched = null;  // the matching radius, if there is one
const matchDivergence = () => state.a.divergence ?? "kl";

function buildMatch() {
  const field = (id, spec, key) => {
    const { input, bad } = numberField(id, spec, state.match[key], (x) => {
      state.match[key] = x;
      redrawMatch();
      remember();
    });
    return [element("label", {}, spec.label, input), bad];
  };
  const side = selectField("match-side", "bound", { upper: "upper, 1 + epsilon", lower: "lower, 1 − epsilon" }, state.match.side, (value) => {
    state.match.side = value;
    redrawMatch();
    remember();
  });
  const epsilon = { ...NUMBERS.epsilon, label: "epsilon" };
  byId("match-fields").replaceChildren(labelled(side), ...field("match-p", NUMBERS.p, "p"), ...field("match-epsilon", epsilon, "epsilon"));
}

function redrawMatch() {
  const name = matchDivergence(), f = getDivergence(name), { p, side, epsilon } = state.match, answer = [];
  matched = null;
  try {
    matched = matchRadius(state.match, f);
    answer.push(`Radius ${short(matched)} (${name}) has the ${side} bound ${short(side === "upper" ? 1 + epsilon : 1 - epsilon)} at p = ${short(p)}.`);
  } catch (error) {
    answer.push(error.message);
  }
  const radius = state.a.radius ?? 0.05, pair = Array.isArray(radius) ? radius : [radius, radius];
  const [low, high] = bandBounds(Math.log(p), pair, f).map(Math.exp);
  answer.push(`The reverse: radius ${pair[0] === pair[1] ? short(pair[0]) : pair.map(short).join(" and ")} (${name}) has the bounds 1 − ${short(1 - low)} and 1 + ${short(high - 1)} there.`);
  byId("match-answer").replaceChildren(...answer.map((text) => element("div", {}, text)));
  byId("match-use").disabled = matched === null || !("divergence" in state.a);
}

// --- copy as -------------------------------------------------------------------------------------------------------

function buildCopy() {
  const choose = (key) => (value) => {
    state.copy[key] = value;
    redrawCopy();
    remember();
  };
  const form = selectField("copy-form", "form", Object.keys(FORMS), state.copy.form, choose("form"));
  const rule = selectField("copy-rule", "rule", { a: "A", b: "B" }, state.copy.rule, choose("rule"));
  byId("copy-fields").replaceChildren(labelled(form), labelled(rule));
}

function redrawCopy() {
  const rule = state[state.copy.rule], known = DATA.rules[rule.name];
  byId("copy-text").textContent = FORMS[state.copy.form](rule, known);
  const needs = [...known.needs, ...(known.twoSided ? ["the current log-probs at the clamp"] : [])];
  byId("copy-note").textContent = needs.length ? `This rule reads ${needs.join(" and ")}, which not every framework supplies; docs/rules.md has the table.` : "";
  byId("copy-done").textContent = "";
}

async function copyText() {
  const text = byId("copy-text");
  try {
    await navigator.clipboard.writeText(text.textContent);
    byId("copy-done").textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(text);
    byId("copy-done").textContent = "The browser does not allow copying here. The text is selected.";
  }
}

// --- the simulator -------------------------------------------------------------------------------------------------

const CURVES = {
  entropy_neutral: "Entropy of neutral tokens (nats)", entropy_deciding: "Entropy of deciding tokens (nats)",
  success: "Success", clip_fraction_low: "Clipped share, ratio < 1", clip_fraction_high: "Clipped share, ratio > 1",
};
let running = null;

const simSettings = () => ({ ...DATA.presets[state.sim.preset].settings, ...state.sim.settings });

function simRules() {
  if (state.sim.rules === "ab") return SIDES.map((side) => [`${LETTERS[side]}: ${nameOf(state[side])}`, structuredClone(state[side])]);
  return Object.entries(DATA.presets[state.sim.preset].rules).map(([label, rule]) => [label, { ...freshRule(rule.name), ...rule }]);
}

function buildSimulator() {
  const titles = Object.fromEntries(Object.entries(DATA.presets).map(([key, preset]) => [key, preset.title]));
  const preset = selectField("sim-preset", "setting", titles, state.sim.preset, (key) => {
    state.sim.preset = key;
    state.sim.settings = {};
    stop("");
    buildSimulator();
    remember();
  });
  const rules = selectField("sim-rules", "rules", { preset: "of the setting", ab: "A and B above" }, state.sim.rules, (value) => {
    state.sim.rules = value;
    remember();
  });
  const focused = document.activeElement?.id;
  byId("sim-choice").replaceChildren(labelled(preset), labelled(rules));
  byId("sim-text").textContent = DATA.presets[state.sim.preset].text;
  const settings = simSettings(), change = (key) => (x) => {
    state.sim.settings[key] = x;
    remember();
  };
  byId("sim-fields").replaceChildren(...Object.entries(SETTINGS).flatMap(([key, spec]) => {
    if (spec.options) return [labelled(selectField(`sim-${key}`, spec.label, spec.options, settings[key], change(key)))];
    const { input, bad } = numberField(`sim-${key}`, spec, settings[key], change(key));
    return [element("label", {}, spec.label, input), bad];
  }));
  if (focused) byId(focused)?.focus();
}

function stop(words) {
  running?.stop();
  running = null;
  byId("sim-run").textContent = "Run";
  byId("sim-status").textContent = words;
}

/** Calls back with each state of the run; in a worker, else in slices between the browser's own work. */
function runSimulation(settings, rules, tell, fail) {
  let worker = null, over = false;
  const inPieces = () => {
    const states = simulate(settings, rules);
    const piece = () => {
      if (over) return;
      try {
        const { value, done } = states.next();
        if (!done) tell(value);
        if (!done) setTimeout(piece);
      } catch (error) {
        fail(error.message);
      }
    };
    piece();
  };
  try {
    const url = URL.createObjectURL(new Blob([byId("engine").textContent, "\nserve(self);"], { type: "text/javascript" }));
    worker = new Worker(url);
    worker.onmessage = ({ data }) => (data.error ? fail(data.error) : tell(data));
    worker.onerror = () => {
      worker = null;
      inPieces();
    };
    worker.postMessage({ settings, rules });
  } catch {
    inPieces();
  }
  return {
    stop() {
      over = true;
      worker?.terminate();
    },
  };
}

function run() {
  const settings = simSettings(), rules = simRules(), states = [], started = performance.now();
  const show = curvesOf(settings, rules.map(([label]) => label), states);
  let due = false;
  const tell = (seen) => {
    states.push(seen);
    const done = seen.rollout >= settings.rollouts;
    byId("sim-progress").value = seen.rollout / settings.rollouts;
    if (!due) {
      due = true;
      requestAnimationFrame(() => {
        due = false;
        show();
      });
    }
    if (done) stop(`${settings.rollouts} rollouts in ${short((performance.now() - started) / 1000)} s`);
  };
  Object.entries({ bad: "", run: "Stop", status: "Running" }).forEach(([id, text]) => (byId(`sim-${id}`).textContent = text));
  running = runSimulation(settings, rules.map(([, rule]) => rule), tell, (message) => {
    stop("");
    byId("sim-bad").textContent = message;
  });
}

/** Empty plots of what this model has; the returned function draws the states so far. */
function curvesOf(settings, labels, states) {
  const names = Object.keys(CURVES).filter((name) => (settings.deciding || !/success|deciding/.test(name)) && (settings.deciding < settings.positions || name !== "entropy_neutral"));
  const x = { label: "rollouts", low: 0, high: settings.rollouts };
  const drawn = names.map((name) => new Plot(CURVES[name], x, { label: "", low: 0, high: 1 }));
  byId("sim-plots").replaceChildren(...drawn.map((plot) => plot.figure));
  byId("sim-legend").replaceChildren(...labels.map((label, i) => legendItem(`line c${i} d${i}`, label)));
  return () => {
    drawn.forEach((plot, k) => {
      const series = labels.map((_, i) => states.map((seen) => [seen.rollout, seen.states[i][names[k]]]).filter(([, y]) => y !== undefined));
      const top = Math.max(1e-3, ...series.flat().map(([, y]) => y));
      plot.frame.y.high = names[k] === "success" ? 1 : top * 1.08;
      plot.drawAxes();
      plot.draw(series.map((points, i) => ({ kind: "line", points, name: `c${i} d${i}` })));
    });
    const last = states.at(-1), rows = labels.map((label, i) => [label, ...names.map((name) => short(last.states[i][name] ?? null))]);
    byId("sim-table").replaceChildren(...tableParts(["rule", ...names.map((name) => CURVES[name])], rows, `After ${last.rollout} rollouts`));
  };
}

// --- all of it -----------------------------------------------------------------------------------------------------

const PAUSE = 200;  // ms; browsers refuse an address that changes with every step of a slider
let written = null, writing = null;

function remember() {
  written = `#${address(state)}`;
  writing ??= setTimeout(() => {
    writing = null;
    history.replaceState(null, "", written);
  }, PAUSE);
}

let panels = [];  // of what was opened; each is a function that redraws after a change of rule A or B

function redraw() {
  redrawBand();
  redrawMatch();
  redrawCopy();
  panels.forEach((draw) => draw());
  point(state.p);
}

/** The panels of what was opened; a section without a source of its kind is hidden. */
function buildPanels() {
  const there = Object.keys(PANELS).filter((name) => sourcesOf(DATA, name).length > 0);
  Object.keys(PANELS).forEach((name) => {
    byId(name).hidden = !there.includes(name);
    document.querySelector(`nav a[href="#${name}"]`).parentElement.hidden = !there.includes(name);
  });
  const changed = (side) => {
    fillRule(side);
    redraw();
  };
  panels = there.map((name) => PANELS[name](DATA, state, { remember, nameOf, changed }));
}

function readState() {
  const hash = location.hash.slice(1), read = readAddress(hash.includes("=") ? hash : "");
  state = read.state;
  byId("ignored").textContent = read.ignored.length ? `Ignored in the address: ${read.ignored.join("; ")}.` : "";
  stop("");
  buildBand();
  SIDES.forEach(fillRule);
  buildMatch();
  buildCopy();
  buildSimulator();
  byId("chosen").value = state.chosen.join(", ");
  buildPanels();
  redraw();
}

byId("chosen").addEventListener("input", ({ target }) => {
  const parts = target.value.split(/[\s,;]+/).filter(Boolean), numbers = parts.map(Number);
  const wrong = parts.find((_, i) => !PROBABILITY.fits(numbers[i])), fits = parts.length > 0 && wrong === undefined;
  target.setAttribute("aria-invalid", !fits);
  byId("chosen-bad").textContent = fits ? "" : `${wrong ?? "nothing"} is not allowed here; allowed: ${PROBABILITY.allowed}.`;
  if (!fits) return;
  state.chosen = numbers;
  fillTable(SIDES.map((side) => makeRule(state[side])));
  remember();
});
byId("match-use").addEventListener("click", () => {
  const old = state.a.radius;
  if (Array.isArray(old)) state.a.radius = state.match.side === "upper" ? [old[0], matched] : [matched, old[1]];
  else state.a.radius = matched;
  fillRule("a");
  redraw();
});
byId("copy-button").addEventListener("click", copyText);
byId("sim-run").addEventListener("click", () => (running ? stop("Stopped") : run()));
// The hash is the state's: links to sections scroll without writing to it.
document.querySelectorAll("nav a").forEach((link) => link.addEventListener("click", (event) => {
  event.preventDefault();
  const target = document.querySelector(link.getAttribute("href"));
  target.tabIndex = -1;
  target.focus();
  target.scrollIntoView();
}));
addEventListener("hashchange", () => {
  if (location.hash !== written) readState();
});
readState();
