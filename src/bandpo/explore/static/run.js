// Runs and studies: curves over the updates, seeds as bands, alarms, clipped shares by probability, entropy ledger.
import { element, Plot, short } from "./plot.js";
import { byId, labelled, legendItem, numberRow, selectField, tableParts } from "./controls.js";
import { load, sourcesOf } from "./sources.js";
import { textField } from "./state.js";

const MOST = 200;  // points of a curve; more are averaged
const AT_FIRST = 12;  // runs shown by default
const EVERY = 2000;  // ms between polls of a run in progress
const COLORS = 8, DASHES = 9;  // without a common factor: a pair repeats only after all combinations
const CROWDED = 6;  // methods; the shadings of more would hide each other
const USUAL = "reward,entropy,clip_fraction_high,clip_fraction_low,divergence";

// Lists of ids and labels are separated by |.
export const RUN_FIELDS = { shown: textField(), hidden: textField(), metrics: textField(USUAL), point: textField(), at: textField(), detail: textField() };

const listed = (text, by = "|") => text.split(by).filter(Boolean);
const styleOf = (i) => `c${i % COLORS} d${i % DASHES}`;
const meanOf = (xs) => xs.reduce((sum, x) => sum + x, 0) / xs.length;

// --- numbers -------------------------------------------------------------------------------------------------------

/** At most `most` points [step, value, smallest, largest] of equally many neighbors, and their number. */
export function thinned(steps, values, name, most = MOST) {
  const there = steps.map((step, i) => [step, values[i]]).filter(([, value]) => value !== null && value !== undefined);
  const width = Math.max(1, Math.ceil(there.length / most)), points = [];
  for (let i = 0; i < there.length; i += width) {
    const part = there.slice(i, i + width), ys = part.map(([, y]) => y), low = Math.min(...ys), high = Math.max(...ys);
    const value = { ratio_max: high, ratio_min: low }[name] ?? meanOf(ys);  // extremes stay extremes
    points.push([meanOf(part.map(([x]) => x)), value, low, high]);
  }
  return { points, width };
}

function interpolated(points, x) {
  const i = points.findIndex(([at]) => at >= x);
  if (i <= 0) return points.at(i)[1];
  const [[x0, y0], [x1, y1]] = [points[i - 1], points[i]];
  return y0 + (y1 - y0) * (x - x0) / (x1 - x0);
}

/** [step, mean, smallest, largest] over curves, at the steps of the first, up to where all of them got. */
export function bandOf(curves, log = false) {
  if (curves.length === 1) return curves[0];
  const last = Math.min(...curves.map((points) => points.at(-1)[0]));
  return curves[0].filter(([x]) => x <= last).map(([x]) => {
    const ys = curves.map((points) => interpolated(points, x));
    const mean = log ? Math.exp(meanOf(ys.map((y) => Math.log(Math.max(y, 1e-300))))) : meanOf(ys);
    return [x, mean, Math.min(...ys), Math.max(...ys)];
  });
}

/** A run's data merged with what the server sent since; metrics: the page's, which know each series' grid. */
export function grown(old, fresh, metrics) {
  if (fresh.whole) return fresh;
  const [before] = old.runs, [after] = fresh.runs, steps = {}, series = {};
  for (const grid of Object.keys(after.steps)) steps[grid] = [...before.steps[grid], ...after.steps[grid]];
  for (const { name, grid } of metrics) {
    const part = (run) => run.series[name] ?? run.steps[grid].map(() => null);
    if (before.series[name] || after.series[name]) series[name] = [...part(before), ...part(after)];
  }
  return { ...fresh, runs: [{ ...after, steps, series }] };
}

/** What the names of runs have in common, by the parts of their paths. */
function commonPlace(names) {
  const parts = names.map((name) => name.split("/")), [first] = parts;
  const end = first.findIndex((part, i) => parts.some((other) => other[i] !== part));
  return (end < 0 ? first : first.slice(0, end)).join("/");
}

/** Runs of equal settings as {label, runs}; a label that several groups share gets the path of the group's runs. */
export function groupsOf(runs) {
  const groups = new Map();
  runs.forEach((run) => groups.set(run.group, [...(groups.get(run.group) ?? []), run]));
  const members = [...groups.values()], labels = members.map(([{ label }]) => label);
  return members.map((of, i) => {
    const several = labels.indexOf(labels[i]) !== labels.lastIndexOf(labels[i]);
    return { label: several ? `${labels[i]}, ${commonPlace(of.map(({ name }) => name))}` : labels[i], runs: of };
  });
}

// --- the panel -----------------------------------------------------------------------------------------------------

let runTimer = null;

/** Builds the panel from data.sources and state.run; returns a function that redraws it after a change of rule A or B. */
export function runPanel(data, state, { remember }) {
  const sources = sourcesOf(data, "run"), mine = state.run, opened = new Map();  // id -> its data
  const known = new Set(sources.map(({ id }) => id)), names = data.metrics.map(({ name }) => name);
  const studies = sources.filter(({ kind }) => kind === "study"), usual = (studies.length ? studies.slice(0, 1) : sources.slice(0, AT_FIRST)).map(({ id }) => id);
  const asked = () => (mine.shown === "none" ? [] : listed(mine.shown).filter((id) => known.has(id)));
  const shown = () => (asked().length || mine.shown === "none" ? asked() : usual);
  const metrics = () => data.metrics.filter(({ name }) => listed(mine.metrics, ",").includes(name));
  const say = (id, text) => (byId(`run-${id}`).textContent = text);
  let drawn = [], plots = [], pointer = null, failed = new Map();

  const change = (key, value, then) => {
    mine[key] = value;
    remember();
    then();
  };

  // What is shown.
  const box = (label, checked, toggle, name = null) => {
    const input = element("input", { type: "checkbox", checked });
    input.addEventListener("change", () => toggle(input.checked));
    return element("label", {}, input, ...(name ? [swatch(name)] : []), ` ${label}`);
  };
  const swatch = (name) => element("svg", { class: "swatch", viewBox: "0 0 35 12", "aria-hidden": "true" }, element("path", { class: `line ${name}`, d: "M0 6H35" }));
  const toggled = (list, one, on) => (on ? [...list, one] : list.filter((other) => other !== one));
  const setShown = (ids) => change("shown", ids.join("|") || "none", refresh);

  function buildChoice() {
    byId("run-choice").replaceChildren(...sources.map(({ id, kind, name }) => box(kind === "study" ? `study ${name}` : name, shown().includes(id), (on) => setShown(toggled(shown(), id, on)))));
    byId("run-all").onclick = () => {
      setShown(sources.map(({ id }) => id));
      buildChoice();
    };
    byId("run-none").onclick = () => {
      setShown([]);
      buildChoice();
    };
    byId("run-metrics").replaceChildren(...data.metrics.map(({ name, title }) => box(title, metrics().some((one) => one.name === name), (on) => {
      const next = toggled(metrics().map((one) => one.name), name, on);
      change("metrics", names.filter((one) => next.includes(one)).join(","), draw);
    })));
  }

  /** Loads what is shown and not loaded yet, then draws. */
  async function refresh() {
    say("summary", `Runs and studies: ${shown().length} of ${sources.length} shown`);
    const missing = sources.filter(({ id }) => shown().includes(id) && !opened.has(id) && !failed.has(id));
    if (missing.length) say("status", `Loading ${missing.length} of ${shown().length}`);
    await Promise.all(missing.map(async (source) => {
      try {
        opened.set(source.id, await load(source));
      } catch (error) {
        failed.set(source.id, `${source.name}: ${error.message}`);
      }
    }));
    draw();
  }

  const present = () => shown().filter((id) => opened.has(id)).map((id) => ({ id, ...opened.get(id) }));

  function draw() {
    const all = present().flatMap(({ runs }) => runs), points = [...new Set(all.map(({ point }) => point))];
    const point = points.includes(mine.point) ? mine.point : points[0], groups = groupsOf(all.filter((run) => run.point === point));
    const hidden = listed(mine.hidden);
    drawn = groups.map((group, i) => ({ ...group, style: styleOf(i) })).filter(({ label }) => !hidden.includes(label));
    byId("run-fields").replaceChildren(...(points.length > 1 ? [labelled(selectField("run-point", "point in the sweep", points, point, (value) => change("point", value, draw)))] : []));
    byId("run-legend").replaceChildren(...groups.map(({ label, runs }, i) => element("li", {}, box(runs.length > 1 ? `${label} (${runs.length} seeds)` : label, !hidden.includes(label), (on) => change("hidden", toggled(hidden, label, !on).join("|"), draw), styleOf(i)))));
    drawCurves();
    listAlarms();
    drawRecorded();
    const problems = [...failed.values(), ...present().flatMap((one) => one.problems)];
    byId("run-bad").replaceChildren(...problems.map((text) => element("div", {}, text)));
    const going = all.filter((run) => run.state === "running").length, here = `${all.length} ${all.length === 1 ? "run" : "runs"}`;
    say("status", all.length ? `${here}${going ? `, ${going} in progress` : ""}; updates ${Math.max(0, ...all.map(lastStep))}` : "Nothing is shown.");
  }

  const lastStep = (run) => Math.max(run.steps.rollouts.at(-1) ?? 0, run.steps.updates.at(-1) ?? 0);

  /** The curve of each group that has this metric. */
  function curvesOfMetric({ name, grid, log }) {
    return drawn.map(({ label, runs, style }) => {
      const curves = runs.filter((run) => run.series[name]).map((run) => thinned(run.steps[grid], run.series[name], name));
      return { label, style, width: Math.max(0, ...curves.map(({ width }) => width)), points: curves.length ? bandOf(curves.map(({ points }) => points), log) : [] };
    }).filter(({ points }) => points.length);
  }

  function drawCurves() {
    const runs = drawn.flatMap((group) => group.runs), last = Math.max(1, ...runs.map(lastStep));
    const chosen = metrics().map((metric) => ({ metric, curves: curvesOfMetric(metric) })).filter(({ curves }) => curves.length);
    plots = chosen.map(({ metric, curves }) => {
      const plot = new Plot(metric.title, { label: "update", low: 0, high: last }, yAxis(metric, curves), point);
      plot.figure.append(element("figcaption", { class: "note" }, metric.text));
      const area = ({ points, style }) => ({ kind: "area", name: style, points: points.map(([x, , low, high]) => [x, low, high]) });
      const line = ({ points, style }) => ({ kind: points.length > 1 ? "line" : "dots", name: style, points: points.map(([x, y]) => [x, y]) });
      const alarms = drawn.map(({ runs, style }) => ({ kind: "marks", name: style, points: runs.flatMap((run) => firedOf(run).map(([x, text]) => [x, text])) }));
      const shaded = curves.length > CROWDED ? [] : curves.filter(({ points }) => points.some(([, , low, high]) => high > low));
      plot.draw([...shaded.map(area), ...curves.map(line), ...alarms]);
      return { metric, curves, plot };
    });
    byId("run-plots").replaceChildren(...plots.map(({ plot }) => plot.figure));
    const width = Math.max(1, ...plots.flatMap(({ curves }) => curves.map((curve) => curve.width))), seeds = drawn.some((group) => group.runs.length > 1);
    const bins = Math.max(1, ...runs.map(({ bin }) => bin)), single = drawn.some((group) => group.runs.length === 1);
    say("note", [
      seeds ? `Lines: mean over seeds (of ratios the geometric mean) up to where all seeds got; ${drawn.length > CROWDED ? `no shading for more than ${CROWDED} methods: uncheck some` : "shading: from the smallest to the largest seed"}.` : "",
      width > 1 ? `Points were thinned: each is the mean of up to ${width} neighboring updates${single ? "; the shading of a single run spans the smallest and the largest of them" : ""}.` : "",
      bins > 1 ? `The study keeps means over ${bins} updates.` : "",
      runs.some((run) => run.alarms.length) ? "Triangles at the top: alarms." : "",
    ].filter(Boolean).join(" "));
    byId("run-pointer").hidden = byId("run-table").hidden = !plots.length;
    if (!plots.length) return;
    const fits = (x) => Number.isFinite(x) && x >= 0 && x <= last, at = mine.at !== "" && fits(Number(mine.at)) ? Number(mine.at) : last;
    const focused = document.activeElement?.id;
    pointer = numberRow("run-at", { label: "update", low: 0, high: last, fits, allowed: `a number from 0 to ${last}` }, at, point);
    byId("run-pointer").replaceChildren(pointer.row);
    if (focused) byId(focused)?.focus();
    readOut(at);
  }

  function yAxis({ share, log }, curves) {
    const values = curves.flatMap(({ points }) => points.flatMap(([, ...ys]) => ys)), low = Math.min(...values), high = Math.max(...values);
    if (log && low > 0 && high / low > 10) return { label: "", low: low / 1.2, high: high * 1.2, log: true };
    const from = Math.min(0, low), room = (high - from || 1) * 0.05;
    return { label: share ? "share" : "", low: from < 0 ? from - room : 0, high: high + room };
  }

  function point(x) {
    const at = Math.round(x);
    change("at", String(at), () => readOut(at));
    if (!["run-at", "run-at-slider"].includes(document.activeElement?.id)) pointer.show(at);
  }

  /** The table of values at an update: the last point of each curve up to there. */
  function readOut(at) {
    plots.forEach(({ plot }) => plot.point(at));
    const cell = (curve) => {
      const found = curve?.points.findLast(([x]) => x <= at) ?? null;
      if (!found) return "–";
      const [, y, low, high] = found;
      return high > low ? `${short(y)} (${short(low)} to ${short(high)})` : short(y);
    };
    const rows = drawn.map(({ label, style }) => [label, ...plots.map(({ curves }) => cell(curves.find((curve) => curve.style === style && curve.label === label)))]);
    byId("run-table").replaceChildren(...tableParts(["", ...plots.map(({ metric }) => metric.title)], rows, `Up to update ${at}`));
  }

  /** [update, sentence] of each alarm that fired. */
  function firedOf(run) {
    return run.alarms.filter(([, , event]) => event === "fired").map(([step, alarm]) => {
      const cleared = run.alarms.find(([later, other, event]) => other === alarm && event === "cleared" && later > step);
      return [step, `update ${step}: ${alarm} fired${cleared ? `, cleared at ${cleared[0]}` : ""} (${run.label}, seed ${run.seed})`];
    });
  }

  function listAlarms() {
    const fired = drawn.flatMap(({ runs }) => runs.flatMap(firedOf)).sort(([a], [b]) => a - b);
    byId("run-alarms-box").hidden = !fired.length;
    say("alarms-title", `Alarms: ${fired.length}`);
    byId("run-alarms").replaceChildren(...fired.map(([, text]) => element("li", {}, text)));
  }

  // What the recorded batches of one run show.
  function drawRecorded() {
    const having = present().filter(({ recorded }) => recorded), one = having.find(({ id }) => id === mine.detail) ?? having[0];
    byId("run-recorded").hidden = !one;
    if (!one) return;
    const options = Object.fromEntries(having.map(({ id, runs: [run] }) => [id, run.name]));
    byId("run-recorded-fields").replaceChildren(labelled(selectField("run-detail", "run", options, one.id, (id) => change("detail", id, drawRecorded))));
    const { rule, clipped, ledger } = one.recorded, { steps, bins, tokens } = clipped;
    say("recorded-note", `One micro-batch at each of ${steps.length} updates, under ${rule}. Shares are of the tokens of that old probability with an advantage.`);
    const some = bins.map((_, j) => tokens.some((row) => row[j] > 0)), kept = bins.map((_, j) => j).filter((j) => some[j]);
    const x = { label: "update", low: 0, high: Math.max(...steps) * 1.02 };
    const panelOf = (title, side) => {
      const series = kept.map((j) => steps.map((step, i) => [step, tokens[i][j] ? clipped[side][i][j] / tokens[i][j] : null]).filter(([, y]) => y !== null));
      return panelWith(title, x, { label: "share", low: 0, high: Math.max(0.01, ...series.flat().map(([, y]) => y)) * 1.08 }, series, kept.map(styleOf));
    };
    byId("run-clipped").replaceChildren(panelOf("Clipped above the upper bound, by old probability", "above"), panelOf("Clipped below the lower bound, by old probability", "below"));
    byId("run-bins").replaceChildren(...kept.map((j) => legendItem(`line ${styleOf(j)}`, bins[j])));
    const head = ["old probability", ...steps.map((step) => `update ${step}`)];
    const rows = kept.map((j) => [bins[j], ...steps.map((_, i) => `${clipped.above[i][j]} / ${clipped.below[i][j]} of ${tokens[i][j]}`)]);
    byId("run-clipped-table").replaceChildren(...tableParts(head, rows, "Tokens clipped above / below, of those with an advantage"));
    byId("run-ledger").replaceChildren();
    byId("run-columns").replaceChildren();
    if (!ledger) return;
    const series = ledger.columns.map((_, k) => ledger.steps.map((step, i) => [step, ledger.rows[i][k]])), values = [0, ...series.flat().map(([, y]) => y)];
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || 1) * 0.06;
    const figure = panelWith("Entropy ledger", x, { label: "", low: low - room, high: high + room }, series, series.map((_, k) => styleOf(k)), [{ kind: "line", name: "edge", points: [[0, 0], [x.high, 0]] }]);
    figure.append(element("figcaption", { class: "note" }, `In ${ledger.unit}; above 0 the entropy rises. docs/report.md explains the columns.`));
    byId("run-ledger").replaceChildren(figure);
    byId("run-columns").replaceChildren(...ledger.columns.map((name, k) => legendItem(`line ${styleOf(k)}`, name)));
  }

  function panelWith(title, x, y, series, styles, behind = []) {
    const plot = new Plot(title, x, y);
    plot.draw([...behind, ...series.flatMap((points, k) => [{ kind: "line", name: styles[k], points }, { kind: "dots", name: styles[k], points }])]);
    return plot.figure;
  }

  // A run in progress is polled for what is new.
  async function follow() {
    const going = sources.filter(({ id, kind, url }) => url && kind === "run" && shown().includes(id) && opened.get(id)?.runs[0].state === "running");
    if (document.visibilityState === "visible") {
      const news = await Promise.all(going.map(async (source) => {
        const old = opened.get(source.id);
        try {
          const fresh = await load(source, `?since=${encodeURIComponent(old.version)}`);
          opened.set(source.id, grown(old, fresh, data.metrics));
          failed.delete(source.id);
          return fresh.version !== old.version || fresh.runs[0].state !== old.runs[0].state;
        } catch (error) {
          failed.set(source.id, `${source.name}: ${error.message}`);
          return true;
        }
      }));
      if (news.some(Boolean)) draw();
    }
    runTimer = setTimeout(follow, EVERY);
  }

  clearTimeout(runTimer);
  buildChoice();
  refresh();
  if (sources.some(({ url }) => url)) runTimer = setTimeout(follow, EVERY);
  return () => {};
}
