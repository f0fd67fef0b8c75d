// Only in a served page: data come from the server that sent it.
import { transport } from "./sources.js";

transport.get = async (url) => {
  const answer = await fetch(url), text = await answer.text();
  if (!answer.ok) throw new Error(text || `The server answered ${answer.status}.`);
  return JSON.parse(text);
};
