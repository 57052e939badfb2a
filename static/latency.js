/** The latency of this tab's own publications, from the request to the arrival of the event, as a bar each. */
import { byId } from "./element.js";

const SAMPLES = 60; // bars drawn, and echoes that the percentiles are of
const PENDING = 200;
const [WIDTH, HEIGHT, GAP] = [300, 34, 1.5];
const SVG = "http://www.w3.org/2000/svg";

export class Latency {
  #samples = [];
  #sent = new Map(); // id -> ms, of publications whose event has not come yet
  #received = new Map(); // id -> ms, of events that may be this tab's own: their answer may still come
  #total = 0;

  /** Notes the arrival of an event, now. */
  received(id) {
    const now = performance.now();
    if (this.#sent.has(id)) return this.#add(now - take(this.#sent, id));
    put(this.#received, id, now);
  }

  /** Notes that the publication `id` was requested at `start` (performance.now()). */
  sent(id, start) {
    if (this.#received.has(id)) return this.#add(take(this.#received, id) - start);
    put(this.#sent, id, start);
  }

  #add(ms) {
    this.#total += 1;
    this.#samples.push(ms);
    if (this.#samples.length > SAMPLES) this.#samples.shift();
    this.#draw();
  }

  #draw() {
    const sorted = this.#samples.toSorted((a, b) => a - b);
    const [p50, p99, latest] = [percentile(sorted, 50), percentile(sorted, 99), this.#samples.at(-1)];
    byId("p50").textContent = format(p50);
    byId("latency-note").textContent = `p50 · p99 ${format(p99)} · last ${format(latest)} · ${this.#total.toLocaleString()} ${this.#total === 1 ? "echo" : "echoes"}`;
    const chart = byId("chart");
    const top = sorted.at(-1);
    const step = WIDTH / SAMPLES;
    const offset = WIDTH - this.#samples.length * step;
    const bars = this.#samples.map((ms, i) => {
      const height = Math.max(2, (ms / top) * HEIGHT);
      return shape("rect", { x: offset + i * step + GAP / 2, y: HEIGHT - height, width: step - GAP, height, rx: 1 });
    });
    const line = HEIGHT - (p50 / top) * HEIGHT;
    chart.replaceChildren(...bars, shape("line", { x1: offset, x2: WIDTH, y1: line, y2: line }));
    const echoes = this.#samples.length === 1 ? "1 echo" : `${this.#samples.length} echoes`;
    chart.setAttribute("aria-label", `Bar chart of the last ${echoes}: median ${format(p50)}, 99th percentile ${format(p99)}, slowest ${format(top)}, latest ${format(latest)}.`);
  }
}

/** Nearest rank. */
function percentile(sorted, percent) {
  return sorted[Math.ceil((percent / 100) * sorted.length) - 1];
}

function format(ms) {
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)} s`;
  return `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
}

function shape(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function take(map, id) {
  const value = map.get(id);
  map.delete(id);
  return value;
}

function put(map, id, value) {
  map.set(id, value);
  if (map.size > PENDING) map.delete(map.keys().next().value);
}
