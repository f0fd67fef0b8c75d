// The panel "Runs".
import { byId } from "./controls.js";
import { load, sourcesOf } from "./sources.js";

export const RUN_FIELDS = {};  // name -> field of state.run, which the address holds

/** Builds the panel from data.sources and state.run; returns what draws it anew after a change of rule A or B. */
export function runPanel(data, state, { remember, nameOf }) {
  const sources = sourcesOf(data, "run");
  byId("run-body").textContent = sources.map(({ name }) => name).join(", ");
  return () => {};
}
