// What was opened: data.sources is a list of {id, kind: "run" | "study" | "tokens", name, data or url}.

const KINDS = { run: ["run", "study"], tokens: ["tokens"], saving: ["study"] };  // panel -> what it shows
export const transport = { get: null };  // of a served page: URL -> promise of its JSON

/** The sources that a panel shows. */
export const sourcesOf = (data, panel) => data.sources.filter(({ kind }) => KINDS[panel].includes(kind));

/** A promise of a source's data: embedded, or requested from the server that sent the page; query: "?key=value". */
export async function load(source, query = "") {
  return source.url === undefined ? source.data : transport.get(source.url + query);
}
