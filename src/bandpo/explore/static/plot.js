// Small plots as SVG: axes, lines, areas, and a vertical line that follows the pointer.

const SIZE = { width: 440, height: 300, left: 52, right: 12, top: 12, bottom: 42 };

/** An element of HTML, or of SVG if the name is one of its. */
export function element(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "rect", "clipPath", "title"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** Four significant digits, without needless zeros. */
export function short(x) {
  if (x === null || Number.isNaN(x)) return "–";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  if (x !== 0 && (Math.abs(x) < 1e-4 || Math.abs(x) >= 1e6)) return x.toExponential(2);
  return String(Number(x.toPrecision(4)));
}

function ticksOf({ low, high, log }) {
  if (log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => Number(`1e${first + i}`));
  }
  const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((n) => n * unit >= rough) * unit, found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}

function scaleOf({ low, high, log }, from, to) {
  const map = log ? Math.log : (x) => x, start = map(low), span = map(high) - start;
  const scale = (x) => from + (map(Math.min(Math.max(x, log ? 1e-30 : -1e30), 1e30)) - start) / span * (to - from);
  scale.invert = (at) => {
    const value = start + (at - from) / (to - from) * span;
    return log ? Math.exp(value) : value;
  };
  return scale;
}

const pathOf = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

let made = 0;

/** A plot. x, y: {label, low, high, log}; follow(x) is told where the pointer is. */
export class Plot {
  constructor(title, x, y, follow = null) {
    const { width, height, left, right, top, bottom } = SIZE, clip = `clip-${made++}`;
    this.frame = { x, y };
    this.svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
    this.axes = element("g", { class: "axes" });
    this.layers = element("g", { "clip-path": `url(#${clip})` });
    this.cursor = element("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
    const box = { x: left, y: top, width: width - left - right, height: height - top - bottom };
    this.svg.append(element("clipPath", { id: clip }, element("rect", box)), this.axes, this.layers, this.cursor);
    this.figure = element("figure", { class: "panel" }, element("h3", {}, title), this.svg);
    if (follow) {
      this.svg.addEventListener("pointermove", (event) => {
        const area = this.svg.getBoundingClientRect();
        const at = this.toX.invert((event.clientX - area.left) / area.width * width);
        follow(Math.min(Math.max(at, this.frame.x.low), this.frame.x.high));
      });
    }
    this.drawAxes();
  }

  drawAxes() {
    const { width, height, left, right, top, bottom } = SIZE, { x, y } = this.frame;
    this.toX = scaleOf(x, left, width - right);
    this.toY = scaleOf(y, height - bottom, top);
    const text = (words, at, name = null) => element("text", { ...at, class: name }, words);
    this.axes.replaceChildren(
      ...ticksOf(x).flatMap((value) => [
        element("line", { x1: this.toX(value), x2: this.toX(value), y1: top, y2: height - bottom }),
        text(short(value), { x: this.toX(value), y: height - bottom + 15, "text-anchor": "middle" }),
      ]),
      ...ticksOf(y).flatMap((value) => [
        element("line", { x1: left, x2: width - right, y1: this.toY(value), y2: this.toY(value) }),
        text(short(value), { x: left - 6, y: this.toY(value) + 4, "text-anchor": "end" }),
      ]),
      text(x.label, { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, "label"),
      text(y.label, { transform: `translate(13 ${(top + height - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, "label"),
    );
  }

  /**
   * Layers from the back, name: the class: {kind: "line", points: [[x, y]]}, "dots" likewise, "area" with points
   * [[x, from, to]], or "marks" with [[x, text]], triangles at the top.
   */
  draw(layers) {
    this.layers.replaceChildren(...layers.map(({ kind, points, name }) => {
      if (kind === "dots") return element("path", { class: `dots ${name}`, d: points.map(([x, y]) => `M${this.toX(x).toFixed(1)} ${this.toY(y).toFixed(1)}h0`).join("") });
      if (kind === "marks") {
        const triangle = (x) => `M${(this.toX(x) - 5).toFixed(1)} ${SIZE.top}h10l-5 9z`;
        return element("g", {}, ...points.map(([x, text]) => element("path", { class: `mark ${name}`, d: triangle(x) }, element("title", {}, text))));
      }
      if (kind === "line") {
        return element("path", { class: `line ${name}`, d: pathOf(points.map(([x, y]) => [this.toX(x), this.toY(y)])) });
      }
      const there = points.map(([x, from]) => [this.toX(x), this.toY(from)]);
      const back = points.map(([x, , to]) => [this.toX(x), this.toY(to)]).reverse();
      return element("path", { class: `area ${name}`, d: there.length ? `${pathOf([...there, ...back])}Z` : "" });
    }));
  }

  point(x) {
    this.cursor.setAttribute("visibility", x >= this.frame.x.low && x <= this.frame.x.high ? "visible" : "hidden");
    this.cursor.setAttribute("x1", this.toX(x));
    this.cursor.setAttribute("x2", this.toX(x));
  }
}
