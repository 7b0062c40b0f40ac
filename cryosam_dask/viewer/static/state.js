/**
 * What the page shows. The run is the server's: `snapshot` is what it last said. All else here is how a person looks
 * at it, and is gone with the page.
 */

import { Refused, act, remember } from "./api.js";

export const page = {
  snapshot: null,
  /** Whether the server answers; undefined before the first time. */
  linked: undefined,
  kindName: null,
  step: "click",
  /** What a click in the viewer does: "add", "not" (not this), "look"; "missing" in the review. */
  mode: "add",
  picks: null,
  candidates: null,
  /** Instance that is looked at, 0 for none. */
  selected: 0,
  /** Errors of this page's own, in the form of a snapshot's messages. */
  errors: [],
  dismissed: new Set(),
  viewer: null,
  view: {
    slab: 0,
    window: null,
    invert: false,
    compressed: false,
    showSimilarity: true,
    threshold: null,
    opacity: 0.6,
    showMasks: true,
    showPoints: true,
  },
};

export const kind = () => page.snapshot?.kinds.find(({ name }) => name === page.kindName);
export const job = () => page.snapshot?.job ?? null;

const parts = [];
let asked = false;

/** Have a function called whenever something may have changed. */
export const part = (draw) => parts.push(draw);

/** Draw all parts soon. What changes at once is drawn once. */
export function redraw() {
  if (asked) return;
  asked = true;
  setTimeout(() => {
    asked = false;
    for (const draw of parts) draw();
  });
}

export function complain(text) {
  page.errors.push({ id: `page ${page.errors.length}`, kind: "error", text });
  redraw();
}

/** Do an action of the server. An error is shown, and gives undefined. */
export async function send(action, body) {
  try {
    return await act(action, body);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    complain(error.message);
    return undefined;
  }
}

export function choose(name) {
  if (page.kindName !== name) Object.assign(page, { kindName: name, picks: null, candidates: null, selected: 0 });
  page.view.threshold = null;
  redraw();
}

export function show(step) {
  page.step = step;
  page.mode = step === "review" ? "look" : "add";
  // over the masks that are decided about, the map would only be in the way
  if (step === "find") page.view.showSimilarity = true;
  if (step === "review") page.view.showSimilarity = false;
  redraw();
}

const known = remember();
let verdictsSeen = "";

/** Read what the snapshot only names by its version. Verdicts have none: they are read again when their counts change. */
export async function readTables() {
  const now = kind();
  if (!now) return;
  const name = encodeURIComponent(now.name);
  const wanted = { candidates: now.candidates?.version, picks: now.picks?.version };
  for (const what of ["candidates", "picks"]) {
    if (!wanted[what]) page[what] = null;
  }
  const counts = JSON.stringify([now.name, now.picks, now.decided]);
  const path = (what) => `api/${what}/${name}/${encodeURIComponent(wanted[what])}`;
  try {
    if (wanted.candidates) {
      const candidates = await known(path("candidates"));
      if (kind()?.name === now.name && page.candidates !== candidates) {
        page.candidates = candidates;
        redraw();
      }
    }
    if (wanted.picks && counts !== verdictsSeen) {
      verdictsSeen = counts;
      const picks = await remember()(path("picks"));
      if (kind()?.name !== now.name) return;
      picks.kind = now.name;
      page.picks = picks;
      redraw();
    }
  } catch {
    verdictsSeen = ""; // a newer version has come meanwhile, or the link is down: the next snapshot asks again
  }
}
