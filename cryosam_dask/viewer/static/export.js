/** Step 4: files of the picks, the commands that do the same without the page, the report. */

import { address } from "./api.js";
import { fill, h, whenChanged } from "./dom.js";
import { job, kind, page, redraw, send } from "./state.js";

/** Formats of the command line by what a person does with them. */
const FORMATS = [
  [
    "Picks",
    [
      ["star", "RELION star"],
      ["relion5", "RELION 5 star"],
      ["relion4", "RELION 4 star"],
      ["warp", "Warp / M star"],
      ["csv", "CSV table"],
      ["imod", "IMOD model"],
      ["dynamo", "Dynamo table"],
      ["em", "EM motive list"],
      ["stopgap", "STOPGAP star"],
      ["pytom", "PyTom XML"],
      ["eman2", "EMAN2 JSON"],
      ["cryolo", "crYOLO cbox"],
      ["copick", "copick JSON"],
      ["ndjson", "CryoET Data Portal ndjson"],
      ["xyz", "Coordinates, plain text"],
      ["parquet", "Parquet table"],
    ],
  ],
  [
    "Masks",
    [
      ["mrc", "Labels as MRC"],
      ["tiff", "Labels as TIFF"],
      ["ome-zarr", "Labels as OME-Zarr"],
    ],
  ],
  [
    "Surfaces",
    [
      ["glb", "Surfaces as glTF (glb)"],
      ["ply", "Surfaces as PLY"],
    ],
  ],
];

const choice = { format: "star", reviewed: false, all: false };
let files = [];
let folder = "";
let exported = [];
let asked = false;

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // without leave to use the clipboard, the text is selected for the keyboard's copy
    getSelection().selectAllChildren(button.parentElement.querySelector("code"));
    button.textContent = "Press Ctrl C";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function commands(lines) {
  if (!lines.length) return [];
  const rows = lines.map((line, i) =>
    h(
      "li",
      {},
      h("code", {}, line),
      h(
        "button",
        {
          type: "button",
          class: "small",
          "aria-label": `Copy command ${i + 1}`,
          data: { key: `copy ${i}` },
          onclick: (event) => copy(line, event.target),
        },
        "Copy",
      ),
    ),
  );
  const all = h(
    "button",
    {
      type: "button",
      class: "small",
      data: { key: "copy all" },
      onclick: (event) => copy(lines.join("\n"), event.target),
    },
    "Copy",
  );
  return [
    h("h2", {}, "The same without this page"),
    h("ul", { class: "commands", id: "commands" }, rows),
    h("p", { class: "faint" }, "All of them: ", all),
  ];
}

async function write(now) {
  asked = true;
  redraw();
  const done = await send("export", {
    kind: choice.all ? null : now.name,
    format: choice.format,
    reviewed: choice.reviewed,
  });
  asked = false;
  if (done) ({ files = [], folder = "", commands: exported = [] } = done);
  redraw();
}

function form(now, several) {
  const select = h(
    "select",
    {
      id: "format",
      "aria-label": "Format",
      data: { key: "format" },
      onchange: (event) => (choice.format = event.target.value),
    },
    FORMATS.map(([group, formats]) =>
      h(
        "optgroup",
        { label: group },
        formats.map(([value, words]) => h("option", { value, selected: value === choice.format }, words)),
      ),
    ),
  );
  const check = (key, words) =>
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        id: key,
        checked: choice[key],
        data: { key },
        onchange: (event) => (choice[key] = event.target.checked),
      }),
      words,
    );
  return [
    h("label", { class: "field" }, "Format", select),
    check("reviewed", "Accepted and added ones only"),
    several && check("all", "All kinds"),
    h(
      "button",
      {
        class: "main",
        type: "button",
        id: "export",
        disabled: asked || Boolean(job()),
        data: { key: "export" },
        onclick: () => write(now),
      },
      asked ? "Writing…" : "Export",
    ),
  ];
}

/** A file as the server names it: a name, or {name, path}. */
function file(entry) {
  const name = entry.name ?? entry;
  return h(
    "li",
    {},
    h("a", { href: address(`download/${encodeURIComponent(name)}`), download: name }, name),
    entry.path && h("span", { class: "faint" }, ` ${entry.path}`),
  );
}

function report(run, busy) {
  return [
    h("h2", {}, "Report"),
    run.report
      ? h(
          "p",
          {},
          h("a", { href: address("report"), target: "_blank", rel: "noopener", id: "report" }, "Open the report"),
          " ",
          h(
            "button",
            {
              type: "button",
              class: "small",
              disabled: busy,
              data: { key: "report again" },
              onclick: () => send("report", {}),
            },
            "Make anew",
          ),
        )
      : h(
          "button",
          { type: "button", id: "report", disabled: busy, data: { key: "report" }, onclick: () => send("report", {}) },
          "Make the report",
        ),
  ];
}

/** The panel of the step. */
export function exportPanel(panel) {
  const draw = whenChanged((now, several, lines, run, busy) => {
    fill(
      panel,
      now ? form(now, several) : h("p", { class: "empty" }, "There are no picks to export yet."),
      files.length > 0 && h("ul", { class: "files", id: "files" }, files.map(file)),
      folder && h("p", { class: "faint" }, `In ${folder}`),
      report(run, busy),
      commands([...lines, ...exported]),
    );
  });
  return () => {
    const now = kind();
    const { kinds, commands: lines, run } = page.snapshot;
    draw(
      now?.picks ? { name: now.name } : null,
      kinds.filter(({ picks }) => picks).length > 1,
      lines,
      run,
      Boolean(job()),
      files,
      asked,
    );
  };
}
