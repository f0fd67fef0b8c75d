// The panel "Tokens".
import { byId } from "./controls.js";
import { load, sourcesOf } from "./sources.js";

export const TOKENS_FIELDS = {};  // name -> field of state.tokens, which the address holds

/** Builds the panel from data.sources and state.tokens; returns what draws it anew after a change of rule A or B. */
export function tokensPanel(data, state, { remember, nameOf }) {
  const sources = sourcesOf(data, "tokens");
  byId("tokens-body").textContent = sources.map(({ name }) => name).join(", ");
  return () => {};
}
