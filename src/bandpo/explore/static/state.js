// The state of the page, what its numbers may be, and the address that holds it.
import { getDivergence } from "./band.js";
import { FORMS } from "./copy.js";
import { short } from "./plot.js";

export const SIDES = ["a", "b"];
export const positive = (x) => Number.isFinite(x) && x > 0;
const finite = Number.isFinite;

// What a number may be, and its slider; none: the end of the slider that means "no such limit".
export const NUMBERS = {
  radius: { label: "radius", low: 1e-4, high: 2, log: true, fits: positive, allowed: "a number above 0" },
  cap: { label: "cap", low: 1, high: 100, log: true, none: "high", fits: (x) => finite(x) && x >= 1, allowed: "a number >= 1, or nothing" },
  floor: { label: "floor", low: 0, high: 1, none: "low", fits: (x) => x >= 0 && x <= 1, allowed: "a number from 0 to 1, or nothing" },
  low: { label: "low", low: 0, high: 1, fits: (x) => x >= 0 && x <= 1, allowed: "a number from 0 to 1" },
  high: { label: "high", low: 0, high: 2, fits: (x) => finite(x) && x >= 0, allowed: "a number >= 0" },
  threshold: { label: "threshold", low: 1e-3, high: 1, log: true, fits: positive, allowed: "a number above 0" },
  epsilon: { label: "epsilon", low: 1e-4, high: 1, log: true, fits: positive, allowed: "a number above 0" },
  reference: { label: "reference", low: 0.05, high: 10, log: true, fits: positive, allowed: "a number above 0" },
  smallest: { label: "smallest", low: 0.01, high: 1, log: true, fits: positive, allowed: "a number above 0" },
  largest: { label: "largest", low: 1, high: 10, log: true, fits: positive, allowed: "a number above 0" },
  p: { label: "old probability", low: 1e-4, high: 0.999, log: true, fits: (x) => x > 0 && x < 1, allowed: "a number above 0 and below 1" },
  entropy: { label: "entropy (nats)", low: 0, high: 8, fits: (x) => finite(x) && x >= 0, allowed: "a number >= 0" },
};
export const PROBABILITY = { fits: (x) => x > 0 && x <= 1, allowed: "a number above 0 and at most 1" };
const whole = (low, high) => ({ fits: (x) => Number.isInteger(x) && x >= low && x <= high, allowed: `an integer from ${low} to ${high}` });
export const SETTINGS = {
  prompts: { label: "prompts", ...whole(2, 2048) },
  rollouts: { label: "rollouts", ...whole(1, 2000) },
  updates: { label: "updates per rollout", ...whole(1, 256) },
  group: { label: "group", ...whole(2, 256) },
  learning_rate: { label: "learning rate", fits: positive, allowed: "a number above 0" },
  seed: { label: "seed", ...whole(0, 2 ** 31 - 1) },
  optimizer: { label: "optimizer", options: ["gradient", "adam", "adam-token", "adam-shared"] },
  advantage: { label: "advantages", options: ["mean", "mean/std"] },
};

export const takesPair = (rule) => "radius" in rule && "cap" in rule;

/** A number from the address, or an Error that names what is allowed. */
function readNumber(key, text, { fits, allowed, none }) {
  if (none && text === "none") return null;
  const value = text.trim() === "" ? NaN : Number(text);
  if (!fits(value)) throw new Error(`${key} is ${text || "empty"}; allowed: ${allowed}`);
  return value;
}

function oneOf(key, text, known) {
  if (!known.includes(text)) throw new Error(`${key} is ${text || "empty"}; allowed: ${known.join(", ")}`);
  return text;
}

// A field of a panel's state: {value: its default, read(text, key): the value in the address, or an Error}.
export const choiceField = (value, known) => ({ value, read: (text, key) => oneOf(key, text, known) });
export const numberOf = (value, spec) => ({ value, read: (text, key) => readNumber(key, text, spec) });
export const textField = (value = "") => ({ value, read: (text) => text });

/** The functions on the state, given what the page knows of rules and presets, and panel -> name -> field. */
export function stateOf(known, panels = {}) {
  const freshPanels = () => Object.fromEntries(Object.entries(panels).map(([panel, fields]) => [panel, Object.fromEntries(Object.entries(fields).map(([key, field]) => [key, structuredClone(field.value)]))]));

  const freshRule = (name) => ({ name, ...structuredClone(known.rules[name].options) });

  function freshState() {
    const state = { a: freshRule("band"), b: freshRule("clip"), p: 0.05, entropy: 1, chosen: [0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.99] };
    return { ...freshPanels(), ...state, match: { p: 0.1, epsilon: 0.2, side: "upper" }, copy: { form: "Python", rule: "a" }, sim: { preset: "bleeds", rules: "preset", settings: {} } };
  }

  /** The options of a rule that are not defaults, as [key, text]. */
  function optionsInWords(rule) {
    const defaults = freshRule(rule.name), text = (value) => (value === null ? "none" : String(value));
    return Object.entries(rule).filter(([key, value]) => text(value) !== text(defaults[key])).map(([key, value]) => [key, text(value)]);
  }

  function address(state) {
    const found = new URLSearchParams(), { sim } = state;
    for (const side of SIDES) {
      found.set(side, state[side].name);
      optionsInWords(state[side]).forEach(([key, text]) => found.set(`${side}.${key}`, text));
    }
    found.set("p", short(state.p));
    if (SIDES.some((side) => known.rules[state[side].name].needs.length)) found.set("entropy", state.entropy);
    found.set("sim", sim.preset);
    if (sim.rules !== "preset") found.set("sim.rules", sim.rules);
    Object.entries(sim.settings).forEach(([key, value]) => found.set(`sim.${key}`, value));
    const usual = freshState();
    if (String(state.chosen) !== String(usual.chosen)) found.set("table", state.chosen);
    for (const part of ["match", "copy", ...Object.keys(panels)]) {
      for (const [key, value] of Object.entries(usual[part])) if (String(state[part][key]) !== String(value)) found.set(`${part}.${key}`, state[part][key] ?? "none");
    }
    return String(found).replace(/%(3A|2C|2F)/g, decodeURIComponent);  // : , / may stand in a fragment
  }

  function readOption(rule, key, option, text) {
    if (!(option in rule) || option === "name") throw new Error(`${key}: ${rule.name} has no such option`);
    if (option === "divergence") {
      getDivergence(text);
      return text;
    }
    const parts = text.split(",");
    if (option === "radius" && parts.length === 2 && takesPair(rule)) return parts.map((part) => readNumber(key, part, NUMBERS.radius));
    return readNumber(key, text, NUMBERS[option]);
  }

  /** The state that a hash describes, and a sentence for each part of it that was ignored. */
  function readAddress(hash) {
    const state = freshState(), ignored = [], entries = [...new URLSearchParams(hash)];
    const attempt = (read) => {
      try {
        read();
      } catch (error) {
        ignored.push(error.message);
      }
    };
    const { sim } = state;
    const readers = {
      p: (text) => (state.p = readNumber("p", text, NUMBERS.p)),
      entropy: (text) => (state.entropy = readNumber("entropy", text, NUMBERS.entropy)),
      sim: (text) => (sim.preset = oneOf("sim", text, Object.keys(known.presets))),
      table: (text) => (state.chosen = text.split(",").map((part) => readNumber("table", part, PROBABILITY))),
      "match.p": (text) => (state.match.p = readNumber("match.p", text, NUMBERS.p)),
      "match.epsilon": (text) => (state.match.epsilon = readNumber("match.epsilon", text, NUMBERS.epsilon)),
      "match.side": (text) => (state.match.side = oneOf("match.side", text, ["upper", "lower"])),
      "copy.form": (text) => (state.copy.form = oneOf("copy.form", text, Object.keys(FORMS))),
      "copy.rule": (text) => (state.copy.rule = oneOf("copy.rule", text, SIDES)),
      "sim.rules": (text) => (sim.rules = oneOf("sim.rules", text, ["preset", "ab"])),
    };
    for (const side of SIDES) readers[side] = (text) => (state[side] = freshRule(oneOf(side, text, Object.keys(known.rules))));
    for (const [key, spec] of Object.entries(SETTINGS)) {
      const name = `sim.${key}`;
      readers[name] = (text) => (sim.settings[key] = spec.options ? oneOf(name, text, spec.options) : readNumber(name, text, spec));
    }
    for (const [panel, fields] of Object.entries(panels)) {
      for (const [key, field] of Object.entries(fields)) {
        const name = `${panel}.${key}`;
        readers[name] = (text) => (state[panel][key] = field.read(text, name));
      }
    }
    const isOption = ([key]) => /^[ab]\./.test(key);
    for (const [key, text] of entries.filter((entry) => !isOption(entry))) {
      attempt(() => {
        if (!Object.hasOwn(readers, key)) throw new Error(`${key} is not known`);
        readers[key](text);
      });
    }
    for (const [key, text] of entries.filter(isOption)) attempt(() => (state[key[0]][key.slice(2)] = readOption(state[key[0]], key, key.slice(2), text)));
    for (const side of SIDES) {
      if (state[side].smallest > state[side].largest) {
        ignored.push(`${side}.smallest is above ${side}.largest`);
        state[side] = freshRule(state[side].name);
      }
    }
    return { state, ignored };
  }

  return { freshRule, freshState, optionsInWords, address, readAddress };
}
