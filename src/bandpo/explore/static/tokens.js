// The panel "Tokens": every token of a log in the color of a number or of a verdict, and where the rules disagree.
import { makeRule } from "./band.js";
import { byId, labelled, legendItem, numberRow, selectField, tableParts, twoColumns } from "./controls.js";
import { compareVerdicts, distancesOf, judgeTokens, LEVELS, levelsFor, nextDisagreement, placesOf, SCALES, scaleFor, stretchesOf, thresholdOf, tokensOf } from "./judging.js";
import { element, short } from "./plot.js";
import { load, sourcesOf } from "./sources.js";
import { choiceField, NUMBERS, numberOf, SIDES, textField } from "./state.js";

const VERDICT = "verdict";
const NUMBERED = { fits: (x) => Number.isInteger(x) && x >= 0, allowed: "an integer >= 0, or none", none: true };
export const TOKENS_FIELDS = {  // name -> field of state.tokens, which the address holds
  source: textField(""),
  color: choiceField(VERDICT, [VERDICT, ...Object.keys(SCALES)]),
  layout: choiceField("text", ["text", "aligned"]),
  prompt: numberOf(null, NUMBERED),
  at: numberOf(null, NUMBERED),
  places: choiceField("a", SIDES),
};
const MANY = 20_000;  // tokens; with more, only one prompt is shown at first
const STRETCH = 400;  // tokens of a completion that are laid out together
const THRESHOLDS = ["radius", "low", "high", "threshold"];
const WORDS = ["neither clips it", "freed: only B clips it", "held: only A clips it", "both clip it"];
const MARKS = { " ": "␣", "\n": "⏎", "\t": "⇥" };

/** A token without invisible characters, as bandpo.report.html.visible_token. */
export function visibleToken(text) {
  const code = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  return text.replace(/[\s\p{Cc}\p{Cf}\p{Cs}\p{Co}]/gu, (c) => MARKS[c] ?? code(c)) || "(empty)";
}

const isSpecial = (text) => /^(<[^<>\s]+>|\[[A-Z]+\])$/.test(text);
const percent = (x) => (x === null ? "–" : `${(100 * x).toPrecision(3)}%`);
const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

let listening = null;  // ends the listeners of a panel that is rebuilt
const opened = new Map();  // source's id -> its tokens

/** Builds the panel from data.sources and state.tokens; returns a function that redraws it after a change of rule A or B. */
export function tokensPanel(data, state, { remember, nameOf, changed }) {
  const sources = sourcesOf(data, "tokens"), own = state.tokens, seen = {};
  let tokens = null, view = null, codes = null, scale = null, source = null;
  listening?.abort();
  listening = new AbortController();
  const { signal } = listening;
  const on = (target, kind, act) => target.addEventListener(kind, act, { signal });

  async function open(id) {
    source = sources.find((one) => one.id === id) ?? sources[0];
    const wanted = source;
    byId("tokens-bad").textContent = id && source.id !== id ? `tokens.source is ${id}; allowed: ${sources.map((one) => one.id).join(", ")}.` : "";
    try {
      if (!opened.has(wanted.id)) opened.set(wanted.id, tokensOf(await load(wanted)));
    } catch (error) {
      byId("tokens-bad").textContent = `${wanted.name} cannot be shown: ${error.message}`;
      byId("tokens-body").hidden = true;
      return;
    }
    if (signal.aborted || wanted !== source) return;
    tokens = opened.get(source.id);
    SIDES.forEach((side) => delete seen[side]);
    byId("tokens-body").hidden = false;
    describe();
    choose();
    build();
    draw();
  }

  /** What was read, and what could not be. */
  function describe() {
    const { files, problems, more_problems: more, notes, edge, left_out: left } = tokens;
    const numbers = [counted(tokens.tokens, "token"), counted(tokens.completions, "completion"), ...(tokens.prompts ? [counted(tokens.prompts, "prompt")] : [])];
    byId("tokens-what").textContent = `${numbers.join(", ")} of ${counted(files.length, "file")}; ${edge ? edge.text : "one log-prob per token, so no ratio: rules cannot be applied"}.`;
    byId("tokens-left-out").textContent = left;
    byId("tokens-left-out").hidden = !left;
    const said = [
      ...problems.map(({ file, line, text }) => [`${file}${line === null ? "" : `:${line}`}: ${text}.`, "problem"]),
      ...(more ? [[`and ${counted(more, "more problem")}; bandpo inspect --json lists them all.`, "problem"]] : []),
      ...notes.map(({ file, text }) => [`${file} ${text}.`, null]),
      ...files.map((file) => [`${file.file}: ${file.format || "nothing was recognized"}, ${counted(file.tokens, "token")} of ${counted(file.completions, "completion")}${file.masked ? `, ${file.masked.toLocaleString("en")} masked` : ""}${file.left_out ? `, ${file.left_out.toLocaleString("en")} skipped as damaged` : ""}.`, null]),
    ];
    const [summary, list] = byId("tokens-files").children, bad = problems.length + more;
    summary.textContent = bad ? `${counted(bad, "problem")} while reading: what could not be read, and the files` : "The files";
    list.replaceChildren(...said.map(([text, name]) => element("li", { class: name }, text)));
    byId("tokens-files").open = bad > 0 && bad <= 5;
  }

  /** The controls that depend on the log. */
  function choose() {
    const options = { [VERDICT]: "freed, held or both", ...Object.fromEntries(Object.entries(SCALES).map(([name, { label }]) => [name, label])) };
    const lacking = Object.keys(SCALES).filter((name) => !scaleFor(tokens, name));
    if (lacking.includes(own.color)) byId("tokens-bad").textContent = `${options[own.color]}: not logged here, and not computable from what was.`;
    if (lacking.includes(own.color) || (own.color === VERDICT && !tokens.edge)) own.color = tokens.edge || lacking.includes("p") ? VERDICT : "p";
    const color = selectField("tokens-color", "color", options, own.color, (name) => {
      own.color = name;
      recolor();
      remember();
    });
    [...color.select.options].forEach((option) => {
      option.disabled = lacking.includes(option.value);
      if (option.disabled) option.textContent += " (not logged)";
    });
    const many = tokens.size > MANY, last = tokens.names.length - 1;
    if (own.prompt !== null && own.prompt > last) own.prompt = null;
    if (own.prompt === null && many && last >= 0) own.prompt = 0;
    const names = tokens.names.map((name, k) => [`prompt${k}`, `${k + 1}${name ? `: ${visibleToken(name.trim().slice(-60)).replaceAll("␣", " ")}` : ""}`]);
    const prompt = selectField("tokens-prompt", "prompt", { all: "all", ...Object.fromEntries(names) }, own.prompt === null ? "all" : `prompt${own.prompt}`, (key) => {
      own.prompt = key === "all" ? null : Number(key.slice(6));
      own.at = null;
      build();
      draw();
      remember();
    });
    const layout = selectField("tokens-layout", "layout", { text: "running text", aligned: "aligned by position" }, own.layout, (name) => {
      own.layout = name;
      build();
      recolor();
      remember();
    });
    byId("tokens-shown").replaceChildren(...[color, ...(last > 0 ? [prompt] : []), layout].map(labelled));
    const places = selectField("tokens-side", "where tokens are clipped by", { a: "rule A", b: "rule B" }, own.places, (side) => {
      own.places = side;
      tables();
      remember();
    });
    byId("tokens-of").replaceChildren(labelled(places));
  }

  const judge = (side) => {
    const key = JSON.stringify(state[side]);
    if (seen[side]?.key !== key) seen[side] = { key, ...judgeTokens(tokens, state[side], data.rules[state[side].name].needs) };
    return seen[side];
  };

  function draw() {
    thresholds();
    if (!tokens) return;
    const [a, b] = SIDES.map(judge), skipped = [a, b].map((one) => one.skipped).filter(Boolean), where = shownOf();
    const found = compareVerdicts(tokens, a.clipped, b.clipped), all = tokens.judged.reduce((x, y) => x + y, 0);
    codes = found.codes;
    const name = (side) => `${side.toUpperCase()} (${nameOf(state[side])})`, sum = (clipped) => clipped.reduce((x, y) => x + y, 0);
    const counts = [["freed", "only B clips it"], ["held", "only A clips it"], ["both"], ["neither"]];
    const line = counts.flatMap(([key, what], i) => [i ? ", " : "", element("strong", { "data-count": key }, found[key].toLocaleString("en")), ` ${key}${what ? ` (${what})` : ""}`]);
    byId("tokens-counts").replaceChildren(
      element("div", {}, `From rule ${name("b")} to rule ${name("a")}, `, `${counted(all, "token")} with a ratio and an advantage other than 0:`),
      element("div", {}, ...line),
      element("div", {}, `Rule A clips ${percent(all ? sum(a.clipped) / all : null)}, rule B ${percent(all ? sum(b.clipped) / all : null)}.${where.length < tokens.size ? " Counts are of all prompts." : ""}`),
      ...skipped.map((text) => element("div", { class: "bad" }, `${text}.`)),
    );
    recolor();
    tables();
    sameShare(sum(a.clipped), all);
    if (own.at !== null) read(own.at);
  }

  /** The main numbers of both rules, as in the section on the band, so that tokens stay in sight. */
  let rows = {};
  function thresholds() {
    for (const side of SIDES) {
      const rule = state[side], keys = THRESHOLDS.filter((key) => key in rule && !Array.isArray(rule[key]));
      const shape = `${rule.name} ${keys}`;
      if (rows[side]?.shape !== shape) {
        const names = Object.fromEntries(Object.keys(data.rules).map((name) => [name, name]));
        const choice = selectField(`tokens-${side}-rule`, "rule", names, rule.name, (name) => {
          state[side] = { name, ...structuredClone(data.rules[name].options) };
          changed(side);
          byId(`tokens-${side}-rule`).focus();
        });
        const made = Object.fromEntries(keys.map((key) => [key, numberRow(`tokens-${side}-${key}`, NUMBERS[key], rule[key], (x) => {
          state[side][key] = x;
          changed(side);
        })]));
        const box = element("fieldset", { class: side }, element("legend", {}, `Rule ${side.toUpperCase()}`), twoColumns(choice), ...Object.values(made).map(({ row }) => row));
        rows[side] = { shape, made, box };
        byId("tokens-rules").replaceChildren(...SIDES.map((one) => rows[one]?.box ?? ""));
      }
      for (const [key, { row, show }] of Object.entries(rows[side].made)) if (!row.contains(document.activeElement)) show(rule[key]);
    }
  }

  // --- the tokens --------------------------------------------------------------------------------------------------

  /** Completions of the chosen prompt, or all, those of one prompt together: [[prompt, [completion]]]. */
  function promptsOf() {
    const found = new Map();
    tokens.groups.forEach((group, row) => {
      if (own.prompt !== null && group !== own.prompt) return;
      const key = group < 0 ? "none" : group;
      found.set(key, [...(found.get(key) ?? []), row]);
    });
    return [...found].sort(([a], [b]) => (a === "none") - (b === "none") || a - b);
  }

  const shownOf = () => view?.order ?? [];

  function facts(row) {
    const [file, line] = tokens.places[row], name = tokens.files[file].file.split(/[\\/]/).at(-1), start = tokens.starts[row];
    const length = tokens.starts[row + 1] - start, advantage = tokens.columns.advantages?.[start];
    return { title: `${name}, ${line}`, text: `${name}, ${line}: ${counted(length, "token")}${Number.isFinite(advantage) ? `, A ${short(advantage)}` : ""}` };
  }

  /** Headings, and a box for each stretch of tokens; its tokens are created when it comes close to the viewport. */
  function build() {
    const shown = tokens.texts.map(visibleToken), special = tokens.texts.map(isSpecial), newline = tokens.texts.map((text) => text.includes("\n"));
    const spans = [], drawn = new Array(tokens.size), box = byId("tokens-view"), chunks = [], chunkOf = new Uint32Array(tokens.size);
    const make = (i) => {
      const span = document.createElement("span"), kind = tokens.kinds[i];
      span.textContent = shown[kind];
      span.token = i;
      span.plain = special[kind] ? "t special" : "t";
      return (spans[i] = span);
    };
    /** fill(): the contents of the box; height: roughly their height in pixels. */
    const chunk = (name, members, height, fill) => {
      const made = element("div", { class: name });
      made.style.minHeight = `${height}px`;
      members.forEach((i) => (chunkOf[i] = chunks.length));
      chunks.push({ box: made, members, fill, near: false, stale: true });
      return made;
    };
    const layout = own.layout === "aligned" ? aligned : running;
    box.className = own.layout;
    const blocks = promptsOf().map(([group, members]) => {
      const text = group === "none" ? "" : tokens.names[group], title = group === "none" ? "Completions without a known prompt" : `Prompt ${group + 1}, ${counted(members.length, "completion")}`;
      return element("div", {}, element("h3", {}, title), ...(text ? [element("p", { class: "asked" }, text)] : []), ...layout(members, { chunk, make, newline, shown }));
    });
    view?.observer.disconnect();
    const byBox = new Map(chunks.map((one) => [one.box, one]));
    const observer = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => {
      const one = byBox.get(target);
      one.near = isIntersecting;
      if (isIntersecting) paint(one);
    }), { root: box, rootMargin: "600px" });
    view = { order: chunks.flatMap(({ members }) => [...members]).sort((x, y) => x - y), spans, drawn, chunks, chunkOf, observer, levels: null };
    box.replaceChildren(...blocks);
    chunks.forEach((one) => observer.observe(one.box));
    if (own.at !== null && !view.order.includes(own.at)) own.at = null;
    byId("tokens-found").textContent = "";
    if (view.order.length) mark(own.at ?? view.order[0]);
    if (own.at !== null) box.scrollTop = view.spans[own.at].getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 2;
    byId("tokens-readout").textContent = view.order.length ? "Point at a token, or move to it with the keys below." : "No token with a log-prob was found.";
  }

  function running(members, { chunk, make, newline, shown }) {
    const width = Math.max(20, byId("tokens-view").clientWidth / 8.2);  // characters
    return members.flatMap((row) => {
      const [from, to] = [tokens.starts[row], tokens.starts[row + 1]], parts = [];
      for (let start = from; start < to; start += STRETCH) {
        const inside = Array.from({ length: Math.min(STRETCH, to - start) }, (_, k) => start + k);
        const characters = inside.reduce((sum, i) => sum + shown[tokens.kinds[i]].length, 0);
        parts.push(chunk("run", inside, 24 * Math.ceil(characters / width), () => inside.flatMap((i) => (newline[tokens.kinds[i]] ? [make(i), document.createElement("br")] : [make(i)]))));
      }
      return [element("div", { class: "facts" }, facts(row).text), ...parts];
    });
  }

  /** Completions under each other, a cell for each position; as many per line as fit, then the next stretch. */
  function aligned(all, { chunk, make }) {
    const width = Math.max(2, Math.floor((byId("tokens-view").clientWidth - 62) / 68)), blocks = new Map();
    for (const row of all) {
      for (let i = tokens.starts[row]; i < tokens.starts[row + 1]; i++) {
        const block = Math.floor(tokens.positions[i] / width), lines = blocks.get(block) ?? new Map();
        blocks.set(block, lines);
        if (lines.has(row)) lines.get(row).push(i);
        else lines.set(row, [i]);
      }
    }
    const lineOf = (row, members, first) => {
      const sign = Math.sign(tokens.columns.advantages?.[tokens.starts[row]] ?? 0);
      const line = element("div", { class: "cells", title: facts(row).text }, element("span", { class: "who" }, `${all.indexOf(row) + 1}${sign > 0 ? "+" : sign < 0 ? "−" : ""}`));
      let at = first;
      for (const i of members) {
        for (; at < tokens.positions[i]; at++) line.append(element("i", {}));
        line.append(make(i));
        at++;
      }
      return line;
    };
    return [...blocks].sort(([a], [b]) => a - b).map(([block, lines]) => {
      const first = block * width, title = element("div", { class: "facts" }, `positions ${first} to ${first + width - 1}; the completions by number, with the sign of A`);
      return chunk("block", [...lines.values()].flat(), 24 * (lines.size + 1), () => [title, ...[...lines].map(([row, members]) => lineOf(row, members, first))]);
    });
  }

  /** Only classes change, and only where needed. */
  function paint(one) {
    if (one.fill) {
      one.box.append(...one.fill());
      one.box.style.minHeight = "";
      one.fill = null;
    }
    if (!one.stale || !codes) return;
    one.stale = false;
    const { spans, drawn, levels } = view;
    for (const i of one.members) {
      const level = levels ? levels[i] : 255, key = level * 8 + codes[i] * 2 + tokens.judged[i], span = spans[i];
      if (drawn[i] === key) continue;
      drawn[i] = key;
      span.className = `${span.plain} v${codes[i]}${level === 255 ? "" : level >= 128 ? ` l${level - 128} less` : ` l${level}`}${tokens.judged[i] ? "" : " aside"}`;
    }
  }

  function recolor() {
    const plain = own.color === VERDICT;
    if (view.colored !== own.color) {
      scale = plain ? null : scaleFor(tokens, own.color);
      Object.assign(view, { colored: own.color, levels: scale ? levelsFor(scale) : null });
      byId("tokens-view").classList.toggle("verdicts", plain);
      legend();
    }
    for (const one of view.chunks) {
      one.stale = true;
      if (one.near) paint(one);
    }
  }

  function legend() {
    const sample = (name, text) => element("li", {}, element("span", { class: `t ${name}` }, "token"), text);
    const marks = tokens.edge ? [sample("v1", WORDS[1]), sample("v2", WORDS[2]), sample("v3", WORDS[3]), ...(scale ? [] : [sample("aside", "advantage 0, or no ratio")])] : [];
    byId("tokens-legend").className = `legend ${own.color === VERDICT ? "verdicts" : ""}`;
    byId("tokens-legend").replaceChildren(...marks);
    const place = byId("tokens-scale");
    if (!scale) {
      place.replaceChildren();
      return;
    }
    const steps = scale.sign ? Array.from({ length: 2 * LEVELS + 1 }, (_, k) => k - LEVELS) : Array.from({ length: LEVELS + 1 }, (_, k) => k);
    const cells = steps.map((k) => element("span", { class: `t l${Math.abs(k)}${k < 0 ? " less" : ""}` }));
    const ticks = scale.ticks.map((text) => element("span", {}, text));
    place.replaceChildren(element("figure", { class: "scale" }, element("figcaption", {}, SCALES[own.color].label, scale.sign ? "; dotted above: below the middle" : ""), element("div", { class: "steps" }, ...cells), element("div", { class: "ticks" }, ...ticks)));
  }

  function read(i) {
    const { columns, positions, kinds, row, texts } = tokens, value = (name) => (columns[name] ? columns[name][i] : NaN), number = (x) => (Number.isFinite(x) ? short(x) : "not logged");
    const p = (x) => (Number.isFinite(x) ? short(Math.exp(x)) : "not logged");
    const parts = [
      `p of anchor ${p(value("old_logps"))}, current ${p(value("logps"))}, sampler ${p(value("sampling_logps"))}`,
      `ratio ${Number.isFinite(tokens.logRatio[i]) ? short(Math.exp(tokens.logRatio[i])) : "not known"}, advantage ${number(value("advantages"))}, entropy ${number(columns.entropy ? value("entropy") : value("old_entropy"))}, entropy effect ${number(value("effect"))}`,
    ];
    if (tokens.edge && Number.isFinite(tokens.old[i])) {
      const bounds = SIDES.map((side) => {
        if (seen[side].skipped) return `${side.toUpperCase()} cannot be applied`;
        const [low, high] = makeRule(state[side]).bounds(tokens.old[i], columns.old_entropy?.[i]);
        return `${side.toUpperCase()} allows ratios ${short(low)} to ${short(high)}`;
      });
      parts.push(`${bounds.join("; ")}: ${tokens.judged[i] ? WORDS[codes[i]] : "not judged: no ratio, or an advantage of 0"}`);
    }
    byId("tokens-readout").replaceChildren(
      element("div", {}, element("code", {}, visibleToken(texts[kinds[i]])), ` at position ${positions[i]} of ${facts(row[i]).title}`),
      ...parts.map((text) => element("div", {}, text)),
    );
  }

  /** Makes a token the one that the keys start from. */
  function mark(i) {
    const before = view.spans[view.marked];
    before?.setAttribute("tabindex", -1);
    before?.removeAttribute("aria-current");
    view.marked = i;
    paint(view.chunks[view.chunkOf[i]]);
    view.spans[i].tabIndex = 0;
    if (own.at === i) view.spans[i].setAttribute("aria-current", "true");
  }

  function go(i) {
    own.at = i;
    mark(i);
    view.spans[i].focus();
    view.spans[i].scrollIntoView({ block: "nearest" });
    read(i);
    remember();
  }

  function disagree(step) {
    if (!view?.order.length || !codes) return;
    const found = nextDisagreement(codes, view.order, own.at, step);
    byId("tokens-found").textContent = found === null ? "The rules agree on every token shown." : "";
    if (found !== null) go(found);
  }

  function move(key) {
    const { order } = view, i = own.at ?? order[0], row = tokens.row[i], [from, to] = [tokens.starts[row], tokens.starts[row + 1]];
    const inside = (j) => Math.min(Math.max(j, from), to - 1);
    if (key === "Home" || key === "End") return key === "Home" ? from : to - 1;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      const at = order.indexOf(i) + (key === "ArrowLeft" ? -1 : 1);
      return order[at] ?? inside(i);
    }
    const rows = promptsOf().flatMap(([, members]) => members), next = rows[rows.indexOf(row) + (key === "ArrowUp" ? -1 : 1)];
    if (next === undefined) return i;
    return Math.min(tokens.starts[next] + i - from, tokens.starts[next + 1] - 1);
  }

  const tokenAt = ({ target }) => target.closest?.("#tokens-view .t")?.token;
  on(byId("tokens-view"), "pointerover", (event) => {
    const i = tokenAt(event);
    if (i !== undefined) read(i);
  });
  on(byId("tokens-view"), "click", (event) => {
    const i = tokenAt(event);
    if (i !== undefined) go(i);
  });
  on(byId("tokens-view"), "focusin", (event) => {
    const i = tokenAt(event);
    if (i !== undefined && i !== own.at) go(i);
    else if (i !== undefined) read(i);
  });
  on(byId("tokens-next"), "click", () => disagree(1));
  on(byId("tokens-previous"), "click", () => disagree(-1));
  on(document, "keydown", (event) => {
    const { key, target } = event, idle = target === document.body, inside = byId("tokens").contains(target);
    if (event.ctrlKey || event.altKey || event.metaKey || target.closest?.("input, select, textarea, [contenteditable]")) return;
    if ((idle || inside) && (key === "n" || key === "p")) disagree(key === "n" ? 1 : -1);
    else if (tokenAt(event) !== undefined && /^(Arrow|Home$|End$)/.test(key)) go(move(key));
    else return;
    event.preventDefault();
  });

  // --- tables, and the section on radius and epsilon -----------------------------------------------------------------

  /** What a rule's slider does not change, for the five latest requests. */
  function once(key, make) {
    const kept = (tokens.kept ??= new Map()), value = kept.get(key) ?? make();
    kept.delete(key);
    kept.set(key, value);
    if (kept.size > 5) kept.delete(kept.keys().next().value);
    return value;
  }

  function tables() {
    const { clipped } = judge(own.places), stretches = once("stretches", () => stretchesOf(tokens)), rule = `rule ${own.places.toUpperCase()}`;
    const found = [placesOf(tokens, clipped, tokens.kinds, tokens.texts, 12), placesOf(tokens, clipped, stretches.kinds, stretches.names)];
    const order = (one) => stretches.names.indexOf(one.name);
    found[1].sort((x, y) => order(x) - order(y));
    [...byId("tokens-places").querySelectorAll("table")].forEach((table, k) => {
      const head = [k ? "positions" : "token", "clipped", "of all clipped", "of clipped A > 0", "share clipped"];
      const cells = ({ name, clipped: n, share, sharePositive, own: mine }) => [k ? name : element("code", { title: visibleToken(name) }, visibleToken(name)), n.toLocaleString("en"), percent(share), percent(sharePositive), percent(mine)];
      const caption = found[k].length ? `Where ${rule} clips, by ${k ? "position" : "text"}` : `${rule[0].toUpperCase()}${rule.slice(1)} clips none of these tokens`;
      table.replaceChildren(...tableParts(found[k].length ? head : [], found[k].map(cells), caption));
    });
  }

  const share = byId("match-share");
  share.hidden = false;

  /** Which radius clips as many of these tokens as epsilon does, and the reverse. */
  function sameShare(clipped, all) {
    if (!tokens.edge || !all) {
      share.textContent = "The tokens shown have no ratio to match.";
      return;
    }
    const { epsilon } = state.match, name = state.a.divergence ?? "kl";
    const count = once(`1 ± ${epsilon}`, () => judgeTokens(tokens, { name: "clip", low: epsilon, high: epsilon }).clipped.reduce((x, y) => x + y, 0));
    const radius = thresholdOf(once(name, () => distancesOf(tokens, name)), count), back = thresholdOf(once("ratio", () => distancesOf(tokens, null)), clipped);
    const of = (n) => `${n.toLocaleString("en")} (${percent(n / all)})`;
    share.replaceChildren(
      element("div", {}, `Of the ${counted(all, "token")} above, 1 ± ${short(epsilon)} clips ${of(count)}; ${radius === null ? "no radius clips as many" : `so does a Band of radius ${short(radius)} (${name})`}.`),
      element("div", {}, `The reverse: rule A clips ${of(clipped)}; ${back === null ? "no epsilon clips as many" : `so does 1 ± ${short(back)}`}.`),
    );
  }

  if (sources.length > 1) {
    const names = Object.fromEntries(sources.map(({ id, name }) => [id, name]));
    byId("tokens-choice").replaceChildren(labelled(selectField("tokens-source", "tokens of", names, own.source || sources[0].id, (id) => {
      Object.assign(own, { source: id, prompt: null, at: null });
      remember();
      open(id);
    })));
  } else byId("tokens-choice").replaceChildren();
  open(own.source);
  return draw;
}
