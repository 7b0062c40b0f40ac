/** Joins the parts: snapshots of the server in, layers and panels out; clicks in the viewer and keys. */

import { follow } from "./api.js";
import { clickAt, clicksPanel, setMode, undo } from "./clicks.js";
import { pendingAdded, retryNow } from "./decisions.js";
import { $, fill, h, whenChanged } from "./dom.js";
import { exportPanel } from "./export.js";
import { findPanel } from "./find.js";
import { startGallery } from "./gallery.js";
import { startKinds } from "./kinds.js";
import { layersOf } from "./layers.js";
import { acts, clickInReview, reviewPanel, selectedIndex } from "./review.js";
import { kind, page, part, readTables, redraw, send, show } from "./state.js";
import { setLink, startStatus } from "./status.js";
import { startToolbar } from "./toolbar.js";
import { openViewer } from "./viewer.js";

const STEPS = [
  ["click", "Click", clicksPanel],
  ["find", "Find", findPanel],
  ["review", "Review", reviewPanel],
  ["export", "Export", exportPanel],
];

const REVIEW_KEYS = { a: acts.accept, r: acts.reject, s: acts.skip, b: acts.back, u: acts.takeBack };
const MODE_KEYS = { 1: "add", 2: "not", 3: "look" };

const HINTS = {
  add: (name) =>
    `Click on the middle of a ${name}. Drag moves, the wheel goes through slices, Ctrl and the wheel zoom.`,
  not: (name) => `Click on something that is no ${name}.`,
  missing: (name) => `Click on a ${name} that was missed.`,
};

function startSteps() {
  const tabs = STEPS.map(([step, words], i) =>
    h(
      "button",
      { type: "button", role: "tab", id: `step-${step}`, "aria-controls": "panel", onclick: () => show(step) },
      h("span", { class: "number" }, String(i + 1)),
      words,
    ),
  );
  $("#steps").append(...tabs);
  $("#steps").addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    const next = (STEPS.findIndex(([step]) => step === page.step) + by + STEPS.length) % STEPS.length;
    show(STEPS[next][0]);
    tabs[next].focus();
  });
  const panels = STEPS.map(([step, , make]) => {
    const element = h("div", { class: "step", id: `panel-${step}` });
    $("#panel").append(element);
    return [step, element, make(element, show)];
  });
  part(() => {
    STEPS.forEach(([step], i) => {
      tabs[i].setAttribute("aria-selected", String(step === page.step));
      tabs[i].tabIndex = step === page.step ? 0 : -1;
    });
    for (const [step, element, draw] of panels) {
      element.hidden = step !== page.step;
      if (!element.hidden && page.snapshot) draw();
    }
  });
}

function startRun() {
  const draw = whenChanged((run) => {
    const name = (run.tomogram || run.path).split(/[\\/]/).pop();
    const size = run.shape
      ? `${run.shape[2]} × ${run.shape[1]} × ${run.shape[0]} voxels of ${(run.voxel_size[2] / 10).toFixed(2)} nm`
      : "";
    fill(
      $("#run"),
      h("h1", { title: `${run.tomogram} → ${run.path}` }, name),
      h("p", { class: "faint" }, size),
      !run.ingested &&
        !page.snapshot.job &&
        h("button", { type: "button", class: "main", onclick: () => send("ingest", {}) }, "Read the tomogram"),
    );
    document.title = `${name} – cryosam`;
  });
  const hint = whenChanged((text) => ($("#hint").textContent = text));
  part(() => {
    if (!page.snapshot) return;
    draw(page.snapshot.run, Boolean(page.snapshot.job));
    const name = kind()?.name ?? "particle";
    const viewed = page.step === "click" || page.step === "review";
    hint(!page.snapshot.tomogram ? "The tomogram is being read." : viewed ? (HINTS[page.mode]?.(name) ?? "") : "");
  });
}

/** Keys work in the page and in the viewer; true if this one was ours. */
function onKey(event) {
  if (event.target.closest?.("input:not([type=range]):not([type=checkbox]), textarea, select") || event.altKey)
    return false;
  const key = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && key === "z" && page.step === "click") undo();
  else if (event.ctrlKey || event.metaKey) return false;
  else if (page.step === "review" && page.picks && REVIEW_KEYS[key]) event.repeat || REVIEW_KEYS[key]();
  else if (page.step === "click" && MODE_KEYS[key]) setMode(MODE_KEYS[key]);
  else return false;
  return true;
}

function onClick(click) {
  if (page.step === "review") clickInReview(click);
  else if (page.step === "click" && click.inSlice && page.mode !== "look")
    clickAt(click.position, page.mode === "add" && !click.shift);
}

/** Layers follow what the page shows. Many changes at once, as of a slider that is dragged, become one. */
function startLayers() {
  let due = false;
  const drawn = () => {
    due = false;
    const { run, tomogram } = page.snapshot ?? {};
    if (!page.viewer || !tomogram || !run.shape) return;
    page.view.window ??= [...tomogram.window];
    if (!page.viewer.shape) page.viewer.start(run.shape, run.voxel_size);
    const now = kind();
    const picks = page.picks?.kind === now?.name ? page.picks : null;
    const i = selectedIndex();
    const chosen = page.step === "review" && i >= 0 ? i : -1;
    page.viewer.setLayers(layersOf(page, now, picks, chosen, now ? pendingAdded(now.name) : []));
  };
  part(() => {
    if (due) return;
    due = true;
    setTimeout(drawn, 30);
  });
}

async function startViewer(showPosition) {
  const frame = $("#viewer");
  frame.src = "v/x/";
  page.viewer = await openViewer(frame);
  Object.assign(page.viewer, { onClick, onKey, onMove: showPosition });
  redraw();
}

startKinds();
startRun();
startSteps();
startGallery();
startStatus();
startLayers();
startViewer(startToolbar());
addEventListener("keydown", (event) => onKey(event) && event.preventDefault());
follow(
  (snapshot) => {
    page.snapshot = snapshot;
    readTables();
    redraw();
  },
  (up) => {
    if (up && page.linked === false) retryNow();
    setLink(up);
  },
);
part(readTables);

/** For tests, and for a curious person's console. */
globalThis.cryosam = page;
