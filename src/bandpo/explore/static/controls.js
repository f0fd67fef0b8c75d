// Controls that all panels share.
import { element, short } from "./plot.js";

export const byId = (id) => document.getElementById(id);

/** The label of an input, the input, and the line for its error. */
export function numberField(id, spec, value, change) {
  const input = element("input", { type: "number", id, step: "any", value: value === null ? null : short(value), placeholder: spec.none ? "none" : null });
  const bad = element("p", { class: "bad", id: `${id}-bad`, role: "alert" });
  input.setAttribute("aria-describedby", bad.id);
  input.addEventListener("input", () => {
    const empty = input.value === "" && !input.validity.badInput;
    const found = empty ? NaN : Number(input.value), fits = (empty && spec.none) || (!input.validity.badInput && spec.fits(found));
    input.setAttribute("aria-invalid", !fits);
    bad.textContent = fits ? "" : `${spec.label} is ${input.value || "empty"}; allowed: ${spec.allowed}. The last good value is kept.`;
    if (fits) change(empty ? null : found);
  });
  return { input, bad };
}

/** The parts of a table. head: its titles, none without; rows: [title or element, ...cells], a cell is a text or a td. */
export function tableParts(head, rows, caption = null) {
  const titles = element("tr", {}, ...head.map((title) => element("th", { scope: "col" }, title)));
  const cell = (one) => (one instanceof Element ? one : element("td", {}, one));
  const row = ([title, ...cells]) => element("tr", {}, element("th", { scope: "row" }, title), ...cells.map(cell));
  return [
    ...(caption === null ? [] : [element("caption", {}, caption)]),
    ...(head.length ? [element("thead", {}, titles)] : []),
    element("tbody", {}, ...rows.map(row)),
  ];
}

/** A slider and a number, in step. */
export function numberRow(id, spec, value, change) {
  const steps = 1000, { low, high, log, none } = spec;
  const toValue = (at) => short(log ? low * (high / low) ** (at / steps) : low + (high - low) * at / steps);
  const toSlider = (x) => {
    if (x === null) return none === "high" ? steps : 0;
    const share = log ? Math.log(Math.max(x, low) / low) / Math.log(high / low) : (x - low) / (high - low);
    return Math.round(Math.min(Math.max(share, 0), 1) * steps);
  };
  const slider = element("input", { type: "range", min: 0, max: steps, "aria-label": `${spec.label}, slider`, id: `${id}-slider` });
  const say = (x) => slider.setAttribute("aria-valuetext", x === null ? "none" : short(x));
  const { input, bad } = numberField(id, spec, value, (x) => {
    slider.value = toSlider(x);
    say(x);
    change(x);
  });
  const show = (x) => {
    slider.value = toSlider(x);
    input.value = x === null ? "" : short(x);
    input.setAttribute("aria-invalid", false);
    bad.textContent = "";
    say(x);
  };
  slider.addEventListener("input", () => {
    const at = Number(slider.value), x = none && at === (none === "high" ? steps : 0) ? null : Number(toValue(at));
    show(x);
    slider.value = at;
    change(x);
  });
  show(value);
  const row = element("div", { class: "row" }, element("label", { for: id }, spec.label), slider, input, bad);
  return { row, show };
}

export function selectField(id, label, options, value, change) {
  const entries = Array.isArray(options) ? options.map((one) => [one, one]) : Object.entries(options);
  const select = element("select", { id }, ...entries.map(([key, text]) => element("option", { value: key, selected: key === value }, text)));
  select.addEventListener("change", () => change(select.value));
  return { select, label: element("label", { for: id }, label) };
}

export const twoColumns = ({ select, label }) => element("div", { class: "row two" }, label, select);
export const labelled = ({ select, label }) => {
  label.append(select);
  return label;
};

/** An entry of a legend: a line of that class, and its text. */
export const legendItem = (name, text) => element("li", {}, element("svg", { class: "swatch", viewBox: "0 0 35 12", "aria-hidden": "true" }, element("path", { class: name, d: "M0 6H35" })), text);
