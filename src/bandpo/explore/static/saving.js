// The panel "What it would save".
import { byId } from "./controls.js";
import { load, sourcesOf } from "./sources.js";

export const SAVING_FIELDS = {};  // name -> field of state.saving, which the address holds

/** Builds the panel from data.sources and state.saving; returns what draws it anew after a change of rule A or B. */
export function savingPanel(data, state, { remember, nameOf }) {
  const sources = sourcesOf(data, "saving");
  byId("saving-body").textContent = sources.map(({ name }) => name).join(", ");
  return () => {};
}
