/** Step 2: the similarity map and its threshold; candidates, the cut between them, and all picks. */

import { h, fill, plural, whenChanged } from "./dom.js";
import { makeHistogram } from "./histogram.js";
import { thresholdOf } from "./layers.js";
import { job, kind, page, redraw, send } from "./state.js";

/** The last cut on its way to the run: what is searched for next goes by it. */
let saving = Promise.resolve();

/** Scores come with five digits. */
const ROUNDING = 1e-5;

function slider(id, words, value, set, format = (v) => v.toFixed(2)) {
  const output = h("output", {}, format(value));
  const input = h("input", {
    type: "range",
    id,
    min: "0",
    max: "1",
    step: "0.005",
    value: String(value),
    data: { key: id },
    oninput: () => {
      output.textContent = format(Number(input.value));
      set(Number(input.value));
      redraw();
    },
  });
  return h("label", { class: "slider" }, h("span", {}, words), input, output);
}

function similarity(now) {
  if (!now.similarity) return [];
  const { view } = page;
  return [
    h("h2", {}, "Similarity"),
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: view.showSimilarity,
        data: { key: "map" },
        onchange: (event) => {
          view.showSimilarity = event.target.checked;
          redraw();
        },
      }),
      "Show the map over the tomogram",
    ),
    slider("threshold", "From", thresholdOf(now, view), (v) => (view.threshold = v)),
    slider(
      "opacity",
      "Opacity",
      view.opacity,
      (v) => (view.opacity = v),
      (v) => `${Math.round(100 * v)} %`,
    ),
  ];
}

function findButtons(now) {
  const words = now.picks?.complete ? "Find all again" : "Find all";
  return h(
    "div",
    { class: "line" },
    h(
      "button",
      {
        class: "main",
        type: "button",
        id: "find",
        disabled: Boolean(job()),
        data: { key: "find" },
        onclick: () => saving.then(() => send("find", { kind: now.name })),
      },
      words,
    ),
  );
}

/** The panel of the step. */
export function findPanel(panel, goOn) {
  let cut; // where the cut is dragged to, before the server knows
  let of = "";
  const saved = h("p", { class: "faint", id: "kept" });
  const histogram = makeHistogram({
    onDrag: (value) => {
      cut = value;
      tell();
    },
    onDrop: keep,
  });

  function keep(value) {
    saving = send("cut", { kind: page.kindName, cut: value });
  }

  function tell() {
    const count = page.candidates?.scores.filter((score) => score >= cut - ROUNDING).length ?? 0;
    saved.textContent = `${plural(count, "candidate")} of ${page.candidates?.scores.length ?? 0} kept, from a score of ${cut?.toFixed(3)}`;
  }

  const draw = whenChanged((now) => {
    if (!now) return fill(panel, h("p", { class: "empty" }, "Click on a particle first."));
    if (!now.similarity && !now.candidates) {
      return fill(
        panel,
        h("p", { class: "empty" }, "Nothing was compared with your clicks yet."),
        h(
          "button",
          {
            class: "main",
            type: "button",
            id: "like",
            data: { key: "like" },
            disabled: Boolean(job()) || !now.clicks.some(({ positive }) => positive),
            onclick: () => send("like", { kind: now.name }),
          },
          "Where is its like?",
        ),
        findButtons(now),
      );
    }
    const scores = now.candidates && [
      h("h2", {}, "Candidates by score"),
      histogram.element,
      saved,
      h(
        "p",
        { class: "faint" },
        "Drag the cut, or move it with the arrow keys. ",
        now.candidates.cut.automatic !== null &&
          h(
            "button",
            {
              type: "button",
              class: "link",
              id: "automatic",
              title: now.candidates.cut.words,
              data: { key: "automatic" },
              onclick: () => keep("auto"),
            },
            "Back to the automatic one",
          ),
      ),
      now.candidates.cut.words && h("p", { class: "faint" }, now.candidates.cut.words),
    ];
    return fill(
      panel,
      now.query === "stale" &&
        h(
          "p",
          { class: "warn" },
          "Clicks have changed since. Look for its like again.",
          h(
            "button",
            {
              type: "button",
              disabled: Boolean(job()),
              data: { key: "again" },
              onclick: () => send("like", { kind: now.name }),
            },
            "Again",
          ),
        ),
      similarity(now),
      scores,
      findButtons(now),
      now.picks &&
        h(
          "p",
          {},
          `${plural(now.picks.count, "pick")}${now.picks.complete ? "" : " so far"}. `,
          h(
            "button",
            { type: "button", class: "link", data: { key: "to review" }, onclick: () => goOn("review") },
            "Review them →",
          ),
        ),
    );
  });

  return () => {
    const now = kind();
    const key = now?.candidates && `${now.name} ${now.candidates.version} ${now.candidates.cut.chosen}`;
    if (key !== of && !histogram.dragging()) {
      of = key;
      cut = now?.candidates?.cut.chosen ?? now?.candidates?.cut.automatic;
    }
    draw(
      now && { ...now, clicks: now.clicks.map(({ positive }) => ({ positive })) },
      Boolean(job()),
      page.view.showSimilarity,
    );
    if (now?.candidates && page.candidates) {
      histogram.show(page.candidates.scores, cut, now.candidates.cut.automatic);
      tell();
    }
  };
}
