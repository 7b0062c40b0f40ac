/** Step 1: clicks on particles and on what is none, each with the mask it gives. */

import { address } from "./api.js";
import { choice, fill, h, plural, whenChanged } from "./dom.js";
import { addKind } from "./kinds.js";
import { kind, page, redraw, send } from "./state.js";

const MODES = [
  ["add", "Click adds", "A click in the tomogram adds a particle (key 1)"],
  ["not", "Not this", "A click says that this is no such particle (key 2, or Shift and click)"],
  ["look", "Look", "A click does nothing (key 3)"],
];

export function setMode(mode) {
  page.mode = mode;
  redraw();
}

/** A click in the viewer. Without a kind yet, one is made, since the first thing that a person does is click. */
export async function clickAt(position, positive) {
  const name = kind()?.name ?? page.kindName ?? (await addKind("particle"));
  if (name) await send("click/add", { kind: name, position, positive });
}

export function undo() {
  if (kind()?.clicks.length) send("click/undo", { kind: page.kindName });
}

function facts(click) {
  if (click.state === "pending") return h("span", { class: "faint busy" }, "finding its mask…");
  if (click.state === "failed") return h("span", { class: "warn" }, click.doubts[0] ?? "No mask was found here.");
  if (!click.positive) return h("span", {}, "not this");
  if (!click.diameter_nm) return h("span", { class: "faint" }, "no mask");
  return h("span", { title: plural(click.voxels ?? 0, "voxel") }, h("b", {}, `${click.diameter_nm.toFixed(1)} nm`));
}

const THUMB = 32; // pixels of a plane's side; three are in a picture, of which the first is seen

function thumbnail({ preview }) {
  if (!preview) return null;
  const src = address(`click/${encodeURIComponent(preview)}.png?size=${2 * THUMB}`);
  return h("img", { class: "thumbnail", src, alt: "", onerror: (event) => event.target.remove() });
}

function row(click, color) {
  const [z, y, x] = click.position.map(Math.round);
  const dot = h("span", {
    class: click.positive ? "dot" : "dot not",
    style: click.positive ? { background: color } : {},
  });
  const doubts = click.state === "failed" ? click.doubts.slice(1) : click.doubts;
  return h(
    "li",
    {},
    h(
      "button",
      {
        class: "row",
        type: "button",
        title: `Go there: z ${z}, y ${y}, x ${x}`,
        data: { key: `go ${click.id}` },
        onclick: () => page.viewer.goTo(click.position),
      },
      dot,
      thumbnail(click),
      facts(click),
      h("span", { class: "faint place" }, `${z}, ${y}, ${x}`),
    ),
    h(
      "button",
      {
        class: "tool",
        type: "button",
        title: "Remove this click",
        "aria-label": "Remove this click",
        data: { key: `remove ${click.id}` },
        onclick: () => send("click/remove", { kind: page.kindName, id: click.id }),
      },
      "✕",
    ),
    doubts.map((words) => h("p", { class: "warn doubt" }, words)),
  );
}

/** The button of the next step, which says why it can't be pressed. */
function next(now, working) {
  const ready = now.clicks.some(({ positive, state }) => positive && state !== "failed");
  const features = page.snapshot.run.features;
  const why = !ready ? "Click on a particle first." : working ? "Something is being computed." : "";
  return [
    h(
      "button",
      {
        class: "main",
        type: "button",
        id: "like",
        disabled: Boolean(why),
        title: why,
        data: { key: "like" },
        onclick: () => send("like", { kind: now.name }).then((done) => done && show("find")),
      },
      "Where is its like?",
    ),
    h(
      "p",
      { class: "faint" },
      features
        ? "Compares every place of the tomogram with your clicks."
        : "The first time, features of the whole tomogram are computed. That takes a while; you can go on clicking.",
    ),
  ];
}

let show = () => {};

/** The panel of the step. `goOn(step)` shows another one. */
export function clicksPanel(panel, goOn) {
  show = goOn;
  const draw = whenChanged((now, mode, working) => {
    if (!now) {
      fill(
        panel,
        h("p", {}, "Find a particle in the tomogram and click on its middle. Or give it a name above first."),
      );
      return;
    }
    const clicks = [...now.clicks].reverse();
    fill(
      panel,
      h(
        "div",
        { class: "line" },
        choice("mode", MODES, mode, setMode),
        h(
          "button",
          {
            type: "button",
            id: "undo",
            title: "Take the last click back (Ctrl Z)",
            disabled: !clicks.length,
            data: { key: "undo" },
            onclick: undo,
          },
          "Undo",
        ),
      ),
      clicks.length
        ? h(
            "ul",
            { class: "rows", id: "clicks" },
            clicks.map((click) => row(click, now.color)),
          )
        : h("p", { class: "empty" }, `Click on the middle of a ${now.name} in the tomogram.`),
      next(now, working),
    );
  });
  return () => {
    const now = kind();
    draw(
      now && { name: now.name, color: now.color, clicks: now.clicks },
      page.mode,
      Boolean(page.snapshot?.job),
      page.snapshot?.run.features,
    );
  };
}
