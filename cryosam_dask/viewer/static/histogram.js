/** Scores of candidates as bars, and a cut that is dragged. */

import { h } from "./dom.js";

const [WIDTH, HEIGHT, BASE] = [290, 110, 94];
const BARS = 48;
const NAMESPACE = "http://www.w3.org/2000/svg";

function s(tag, attributes, text) {
  const element = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * A histogram. `onDrag(cut)` while it moves, `onDrop(cut)` when it was let go.
 *
 * `show(scores, cut, automatic)` draws it; counts are drawn by their roots, since few good ones stand beside many others
 */
export function makeHistogram({ onDrag, onDrop }) {
  const svg = s("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
    class: "histogram",
    role: "slider",
    tabindex: "0",
    "aria-label": "Cut between kept and left out",
    "data-key": "cut",
  });
  const element = h("div", { id: "histogram" });
  element.append(svg);
  let range = [0, 1];
  let at;
  let drawn = [];
  let held = false;

  const toX = (score) => ((score - range[0]) / (range[1] - range[0])) * WIDTH;
  const toScore = (event) => {
    const box = svg.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    return range[0] + share * (range[1] - range[0]);
  };
  const move = (cut) => {
    at = Math.min(range[1], Math.max(range[0], cut));
    draw();
    onDrag(at);
  };

  svg.addEventListener("pointerdown", (event) => {
    held = true;
    svg.setPointerCapture(event.pointerId);
    move(toScore(event));
  });
  svg.addEventListener("pointermove", (event) => held && move(toScore(event)));
  svg.addEventListener("pointerup", () => {
    if (held) onDrop(at);
    held = false;
  });
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    move(at + (step * (range[1] - range[0])) / (event.shiftKey ? 20 : 200));
  });
  svg.addEventListener("keyup", (event) => event.key.startsWith("Arrow") && onDrop(at));

  function draw() {
    const [scores, automatic] = drawn;
    const counts = new Array(BARS).fill(0);
    for (const score of scores) counts[Math.min(BARS - 1, Math.floor((toX(score) / WIDTH) * BARS))] += 1;
    const most = Math.sqrt(Math.max(...counts, 1));
    const bars = counts.map((count, i) => {
      const middle = range[0] + ((i + 0.5) / BARS) * (range[1] - range[0]);
      const height = (BASE - 14) * (Math.sqrt(count) / most);
      return s("rect", {
        class: middle >= at ? "kept" : "left-out",
        x: (i * WIDTH) / BARS + 0.5,
        y: BASE - height,
        width: WIDTH / BARS - 1,
        height,
      });
    });
    const line = (score, name) => s("line", { class: name, x1: toX(score), x2: toX(score), y1: 4, y2: BASE });
    const marks = [line(at, "cut"), s("circle", { class: "cut", cx: toX(at), cy: 8, r: 6 })];
    if (automatic !== null && automatic !== undefined) {
      const end = toX(automatic) > WIDTH / 2 ? "end" : "start";
      marks.unshift(
        line(automatic, "automatic"),
        s("text", { x: toX(automatic) + (end === "end" ? -4 : 4), y: HEIGHT - 2, "text-anchor": end }, "automatic"),
      );
    }
    const axis = [
      s("text", { x: 0, y: HEIGHT - 2 }, range[0].toFixed(2)),
      s("text", { x: WIDTH, y: HEIGHT - 2, "text-anchor": "end" }, range[1].toFixed(2)),
    ];
    svg.replaceChildren(...bars, ...marks, ...axis);
    for (const [name, value] of [
      ["valuemin", range[0]],
      ["valuemax", range[1]],
      ["valuenow", at],
    ]) {
      svg.setAttribute(`aria-${name}`, value.toFixed(3));
    }
  }

  return {
    element,
    dragging: () => held,
    show(scores, cut, automatic) {
      drawn = [scores, automatic];
      let [low, high] = [Infinity, -Infinity];
      for (const value of [...scores, automatic ?? cut, cut]) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
      range = low < high ? [low, high] : [low - 0.5, high + 0.5];
      if (!held) at = cut;
      draw();
    },
  };
}
