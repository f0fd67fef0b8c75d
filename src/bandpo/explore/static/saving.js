// What a method would save: a study's ratios of compute to the reference's reward, times GPU hours and their price.
import { element, short } from "./plot.js";
import { byId, labelled, numberField, selectField, tableParts } from "./controls.js";
import { load, sourcesOf } from "./sources.js";
import { choiceField, numberOf, textField } from "./state.js";

const COMPUTE = ["updates", "tokens", "seconds"];
const AMOUNT = { fits: (x) => Number.isFinite(x) && x >= 0, allowed: "a number >= 0" };
export const SAVING_FIELDS = { study: textField(), point: textField(), by: choiceField("updates", COMPUTE), hours: numberOf(100, AMOUNT), price: numberOf(2, AMOUNT) };

/** The part of `hours` that is saved: [mean, low, high], or why none is shown. ratio: {mean, low, high} or null; above 1 it costs more. */
export function savedOf({ ratio, reached, runs }, hours) {
  if (ratio === null) return { why: `no difference shown: ${runs - reached} of ${runs} runs never reached the target, so they have no ratio` };
  if (ratio.low === null) return { why: "no difference shown: one seed has no interval" };
  if (ratio.low <= 1 && ratio.high >= 1) return { why: "no difference shown" };
  return { hours: [ratio.mean, ratio.high, ratio.low].map((x) => (1 - x) * hours) };
}

/** Builds the panel from data.sources and state.saving; returns a function that redraws it after a change of rule A or B. */
export function savingPanel(data, state, { remember }) {
  const sources = sourcesOf(data, "saving"), mine = state.saving;
  const source = sources.find(({ id }) => id === mine.study) ?? sources[0];

  function build({ saving, reference }) {
    const points = [...new Set(saving.map(({ point }) => point))];
    const choose = (key) => (value) => {
      mine[key] = value;
      remember();
      if (key === "study") savingPanel(data, state, { remember });
      else draw();
    };
    const point = () => (points.includes(mine.point) ? mine.point : points[0]);
    const amount = (key, label) => {
      const { input, bad } = numberField(`saving-${key}`, { label, ...AMOUNT }, mine[key], choose(key));
      return [element("label", {}, label, input), bad];
    };

    function draw() {
      const range = ([mean, low, high]) => `${short(mean)} [${short(low)}, ${short(high)}]`;
      const rows = saving.filter((one) => one.point === point()).map((one) => {
        const ratio = one.ratios[mine.by], { why, hours } = savedOf({ ...one, ratio }, mine.hours);
        const shown = ratio === null ? "–" : ratio.low === null ? short(ratio.mean) : range([ratio.mean, ratio.low, ratio.high]);
        const cells = why ? [element("td", { colspan: 2, class: "why" }, why)] : [range(hours), range(hours.map((x) => x * mine.price))];
        return [one.method, ...cells, shown, `${one.reached} of ${one.runs}`];
      });
      const head = ["method", "GPU hours saved", "money saved", `${mine.by}, ratio to ${reference}`, "target reached"];
      byId("saving-table").replaceChildren(...tableParts(head, rows, `Of ${short(mine.hours)} GPU hours of ${reference} at ${short(mine.price)} per hour; below 0 it costs more`));
    }

    const selects = [
      ...(sources.length > 1 ? [selectField("saving-study", "study", Object.fromEntries(sources.map(({ id, name }) => [id, name])), source.id, choose("study"))] : []),
      ...(points.length > 1 ? [selectField("saving-point", "point in the sweep", points, point(), choose("point"))] : []),
      selectField("saving-by", "compute in", COMPUTE, mine.by, choose("by")),
    ];
    const focused = document.activeElement?.id;
    byId("saving-fields").replaceChildren(...selects.map(labelled), ...amount("hours", `GPU hours of ${reference}`), ...amount("price", "price of a GPU hour"));
    if (focused) byId(focused)?.focus();
    byId("saving-note").textContent = `Geometric mean over seeds, paired with ${reference} by seed, with its 95% interval (Student's t over the logarithms), not corrected for the number of methods. It applies to the model, task and machine of study ${source.name}; yours may differ.`;
    draw();
  }

  byId("saving-bad").textContent = "";
  load(source).then(build).catch((error) => (byId("saving-bad").textContent = `${source.name}: ${error.message}`));
  return () => {};
}
