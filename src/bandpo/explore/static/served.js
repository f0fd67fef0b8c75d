// Of a served page only: data come from the server that sent it.
import { transport } from "./sources.js";

transport.get = async (url) => {
  const answer = await fetch(url), text = await answer.text();
  if (!answer.ok) throw new Error(text || `The server answers ${answer.status}.`);
  return JSON.parse(text);
};
