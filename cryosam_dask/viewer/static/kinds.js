/** Kinds of particles: name, colour, what there is of each; add, rename, remove. */

import { $, fill, h, plural, whenChanged } from "./dom.js";
import { choose, kind, page, part, redraw, send } from "./state.js";

const COLORS = ["#f94144", "#43aa8b", "#f9c74f", "#4d96ff", "#f3722c", "#b388eb", "#2ec4b6", "#ff8fab", "#90be6d"];
let renaming = null;
let removing = null;
let coloring = false;

export function nextColor() {
  const used = new Set((page.snapshot?.kinds ?? []).map(({ color }) => color));
  return COLORS.find((color) => !used.has(color)) ?? COLORS[used.size % COLORS.length];
}

/** Add a kind and choose it; gives its name, or undefined if the server refused. */
export async function addKind(name, color = nextColor()) {
  const added = await send("kind/add", { name, color });
  if (!added) return undefined;
  page.kindName = name; // the snapshot that has it may come a moment later
  redraw();
  return name;
}

function summary({ clicks, picks, decided }) {
  const words = [];
  if (picks) words.push(plural(picks.count, "pick"));
  else if (clicks.length) words.push(plural(clicks.length, "click"));
  const judged = decided.accepted + decided.rejected;
  if (judged) words.push(`${judged} reviewed`);
  return words.join(", ") || "no click yet";
}

async function rename(from, field) {
  const to = field.value.trim();
  renaming = null;
  if (to && to !== from && (await send("kind/rename", { name: from, to })) && page.kindName === from)
    page.kindName = to;
  redraw();
}

function nameOf(entry) {
  if (renaming !== entry.name) return h("span", { class: "name" }, entry.name);
  const field = h("input", { type: "text", value: entry.name, "aria-label": "New name", data: { key: "rename" } });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") rename(entry.name, field);
    if (event.key === "Escape") cancelEdits();
  });
  setTimeout(() => field.focus());
  return field;
}

function cancelEdits() {
  renaming = removing = null;
  redraw();
}

/** The colour, to be changed. While the browser's own panel of colours is open, the list stays as it is. */
function colorOf({ name, color }) {
  const done = () => {
    coloring = false;
    redraw();
  };
  const set = (event) => {
    const chosen = event.target.value;
    done();
    if (chosen !== color) send("kind/color", { name, color: chosen });
  };
  return h("input", {
    type: "color",
    class: "swatch",
    value: color,
    title: "Change the colour",
    "aria-label": `Colour of ${name}`,
    data: { key: `color ${name}` },
    onclick: () => (coloring = true),
    onchange: set,
    onblur: done,
  });
}

function row(entry) {
  const { name } = entry;
  const chosen = name === page.kindName;
  const editable = entry.query === "none" && !entry.picks;
  const swatch = !chosen && h("span", { class: "swatch", style: { background: entry.color } });
  const label =
    renaming === name
      ? h("span", { class: "pick-kind" }, swatch, nameOf(entry))
      : h(
          "button",
          {
            class: "pick-kind",
            type: "button",
            "aria-pressed": String(chosen),
            data: { key: `kind ${name}` },
            onclick: () => choose(name),
          },
          swatch,
          nameOf(entry),
          h("span", { class: "faint" }, summary(entry)),
        );
  const tool = (key, title, text, onclick) =>
    h(
      "button",
      { class: "tool", type: "button", title, "aria-label": title, data: { key: `${key} ${name}` }, onclick },
      text,
    );
  const tools = !chosen
    ? []
    : removing === name
      ? [
          h(
            "button",
            {
              class: "danger small",
              type: "button",
              data: { key: `remove ${name}` },
              onclick: () => {
                removing = null;
                send("kind/remove", { name });
              },
            },
            "Remove?",
          ),
          tool("keep", "Keep it", "✕", cancelEdits),
        ]
      : [
          editable &&
            tool("rename", "Rename", "✎", () => {
              renaming = name;
              redraw();
            }),
          tool("remove", "Remove this kind", "✕", () => {
            removing = name;
            redraw();
          }),
        ];
  return h("li", { class: chosen ? "chosen" : null }, chosen && colorOf(entry), label, tools);
}

function draw(kinds) {
  fill($("#kind-list"), kinds.map(row));
}

export function startKinds() {
  const name = h("input", {
    type: "text",
    placeholder: "Add a kind, e.g. ribosome",
    "aria-label": "Name of a kind",
    maxlength: "64",
    autocomplete: "off",
    spellcheck: "false",
    id: "kind-name",
  });
  const color = h("input", { type: "color", "aria-label": "Colour", id: "kind-color" });
  const form = h(
    "form",
    {
      onsubmit: async (event) => {
        event.preventDefault();
        if (!name.value.trim()) return;
        if (await addKind(name.value.trim(), color.value)) name.value = "";
        color.value = nextColor();
      },
    },
    color,
    name,
    h("button", { type: "submit" }, "Add"),
  );
  $("#kinds").append(h("ul", { id: "kind-list" }), form);
  const changed = whenChanged(draw);
  part(() => {
    const kinds = page.snapshot?.kinds ?? [];
    if (kinds.length && !kind()) choose(kinds.at(-1).name);
    if (document.activeElement !== color && !name.value) color.value = nextColor();
    if (!coloring) changed(kinds, page.kindName, renaming, removing);
  });
}
