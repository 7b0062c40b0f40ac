/** How the tomogram is shown: layout, average of slices, contrast, what lies over it; and where the mouse is. */

import { $, h } from "./dom.js";
import { kind, page, part, redraw } from "./state.js";

const SLABS = [
  [0, "One slice"],
  [2, "Mean of 5"],
  [5, "Mean of 11"],
];
const LAYOUTS = [
  ["4panel-alt", "Four panels"],
  ["xy", "Top (xy)"],
  ["xz", "Side (xz)"],
  ["yz", "Side (yz)"],
  ["xy-3d", "Top and 3D"],
  ["3d", "3D"],
];

const set = (key, value) => {
  page.view[key] = value;
  redraw();
};

function select(id, words, options, onchange) {
  const list = h(
    "select",
    { id, "aria-label": words, title: words, onchange: (event) => onchange(event.target.value) },
    options.map(([value, text]) => h("option", { value: String(value) }, text)),
  );
  return list;
}

const toggle = (key, words, title) =>
  h(
    "label",
    { class: "check", title },
    h("input", {
      type: "checkbox",
      checked: page.view[key],
      id: key,
      onchange: (event) => set(key, event.target.checked),
    }),
    words,
  );

/** Two sliders for the densities that are black and white. They can't cross. */
function contrast() {
  const ends = ["black", "white"].map((name, end) =>
    h("input", {
      type: "range",
      id: name,
      min: "0",
      max: "1",
      step: "0.002",
      "aria-label": `Density shown as ${name}`,
      title: `Density shown as ${name}`,
      oninput: (event) => {
        const [low, high] = page.snapshot.tomogram.range;
        const window = [...page.view.window];
        window[end] = low + Number(event.target.value) * (high - low);
        const least = 0.01 * (high - low);
        if (end === 0) window[0] = Math.min(window[0], window[1] - least);
        else window[1] = Math.max(window[1], window[0] + least);
        set("window", window);
      },
    }),
  );
  const place = () => {
    const { tomogram } = page.snapshot ?? {};
    if (!tomogram || !page.view.window) return;
    const [low, high] = tomogram.range;
    ends.forEach((input, end) => {
      const value = String((page.view.window[end] - low) / (high - low));
      if (input.value !== value) input.value = value;
    });
  };
  const reset = h(
    "button",
    {
      type: "button",
      class: "small",
      id: "reset-contrast",
      title: "Contrast as at the beginning",
      onclick: () => set("window", [...page.snapshot.tomogram.window]),
    },
    "Reset",
  );
  return [
    [h("span", { class: "group", title: "Contrast" }, h("span", { class: "faint" }, "Contrast"), ends, reset)],
    place,
  ];
}

export function startToolbar() {
  const [sliders, place] = contrast();
  const position = h("output", { id: "position", "aria-label": "Voxel under the mouse" });
  const similarity = toggle("showSimilarity", "Similarity", "The similarity map, where there is one");
  $("#toolbar").append(
    select("layout", "Panels", LAYOUTS, (value) => page.viewer?.setLayout(value)),
    select("slab", "Mean of slices along z, against noise", SLABS, (value) => set("slab", Number(value))),
    ...sliders,
    toggle("invert", "Invert", "Dark as bright: particles may be dark or bright"),
    toggle("showMasks", "Masks", "Masks of clicks and picks"),
    toggle("showPoints", "Points", "Points of clicks and picks"),
    similarity,
    toggle("compressed", "Slow link", "Slices as JPEG: less to send, and a little less exact"),
  );
  $("#stage").append(position);
  part(() => {
    place();
    similarity.hidden = !kind()?.similarity;
    similarity.firstChild.checked = page.view.showSimilarity;
  });
  return (voxel) => (position.textContent = voxel ? `z ${voxel[0]}   y ${voxel[1]}   x ${voxel[2]}` : "");
}
