/** Step 3: which pick is looked at, and in which order they come; what keys and buttons do with it. */

import { choice, fill, h, plural, whenChanged } from "./dom.js";
import { add, decideAbout, keyOf, pending, retryNow, unsaved } from "./decisions.js";
import { job, kind, page, redraw, send } from "./state.js";

export const review = {
  by: "doubt",
  onlyOpen: false,
  follow: true,
  /** Indices of picks as they are gone through. It stays while one decides: what is seen doesn't jump away. */
  order: [],
};
let ordered = "";
let keys = [];
let visited = [];

export const verdictOf = (i) => pending(page.kindName, keyOf(page.picks, i)) ?? page.picks.verdicts[i];
export const selectedIndex = () =>
  page.picks && page.selected ? page.picks.instances.findIndex((_, i) => keyOf(page.picks, i) === page.selected) : -1;

/** Put picks in order, unless they are the same as before. */
export function sort(again = false) {
  const { picks } = page;
  if (!picks) {
    review.order = [];
    ordered = "";
    return;
  }
  const all = [page.kindName, picks.complete === false || kind()?.picks?.version, review.by, review.onlyOpen].join(" ");
  const now = `${all} ${picks.instances.length}`;
  if (now === ordered && !again) return;
  // those that were segmented meanwhile come after the others, which stay where they are
  const more = picks.complete === false && ordered.startsWith(`${all} `);
  const before = more && new Map(keys.map((key, at) => [key, at]));
  ordered = now;
  const worth = review.by === "doubt" ? picks.doubts : picks.scores;
  review.order = picks.instances
    .map((_, i) => i)
    .filter(
      (i) => picks.instances[i] && picks.verdicts[i] !== "added" && (!review.onlyOpen || verdictOf(i) === "undecided"),
    )
    .sort((a, b) => worth[b] - worth[a]);
  if (before) {
    const place = (i) => before.get(keyOf(picks, i)) ?? Infinity;
    review.order.sort((a, b) => (place(a) === place(b) ? 0 : place(a) - place(b)));
  }
  keys = review.order.map((i) => keyOf(picks, i));
  if (selectedIndex() < 0) select(review.order.find((i) => verdictOf(i) === "undecided") ?? review.order[0]);
}

/** Look at a pick. */
export function select(i, follow = review.follow) {
  if (i === undefined || i < 0) return;
  const last = selectedIndex();
  if (last >= 0 && last !== i) visited.push(page.selected);
  page.selected = keyOf(page.picks, i);
  if (follow) page.viewer.goTo(page.picks.positions[i]);
  redraw();
}

/** The next pick that waits for a decision, round from the end to the beginning. */
function advance() {
  const { order } = review;
  const at = order.indexOf(selectedIndex());
  const round = [...order.slice(at + 1), ...order.slice(0, Math.max(at, 0))];
  select(round.find((i) => verdictOf(i) === "undecided") ?? round[0]);
}

export const acts = {
  accept: () => judge("accepted"),
  reject: () => judge("rejected"),
  skip: advance,
  back() {
    const last = visited.pop();
    const i = page.picks ? page.picks.instances.findIndex((_, index) => keyOf(page.picks, index) === last) : -1;
    if (i < 0) return;
    page.selected = last;
    if (review.follow) page.viewer.goTo(page.picks.positions[i]);
    redraw();
  },
  takeBack: () => judge("undecided", false),
};

function judge(verdict, goOn = true) {
  const i = selectedIndex();
  if (i < 0) return;
  decideAbout(page.kindName, page.picks, i, verdict);
  if (goOn) advance();
}

/** A click in the viewer: on a mask or a point it selects that one; else, if missing ones are added, it adds one. */
export function clickInReview({ position, instance, inSlice }) {
  const i = pickAt(position, instance);
  if (i >= 0) {
    select(i, false);
    return;
  }
  if (page.mode === "missing" && inSlice && kind()) add(page.kindName, position);
}

/** The pick whose mask is at a position; else the nearest whose radius reaches that far. */
function pickAt(position, instance) {
  const { picks } = page;
  if (!picks) return -1;
  if (instance) return picks.instances.indexOf(instance);
  const size = page.snapshot.run.voxel_size;
  let [best, nearest] = [-1, Infinity];
  picks.positions.forEach((place, i) => {
    const nm = Math.hypot(...place.map((v, axis) => ((v - position[axis]) * size[axis]) / 10));
    if (nm <= (picks.diameter_nm[i] || 10) / 2 && nm < nearest) [best, nearest] = [i, nm];
  });
  return best;
}

export function counts() {
  const total = { undecided: 0, accepted: 0, rejected: 0, added: 0 };
  page.picks?.verdicts.forEach((verdict) => (total[verdict] += 1));
  return total;
}

function saving({ count, failing }) {
  if (!count) return h("p", { class: "faint", id: "saved" }, "All decisions are saved.");
  return h(
    "p",
    { class: failing ? "warn" : "faint", id: "saved" },
    `${plural(count, "decision")} not saved yet${failing ? "; trying again. Keep this page open. " : "…"}`,
    failing && h("button", { type: "button", class: "small", data: { key: "retry" }, onclick: retryNow }, "Try now"),
  );
}

function learning(now, total) {
  const enough = total.accepted > 0 && total.rejected > 0;
  return [
    h(
      "button",
      {
        class: "main",
        type: "button",
        id: "learn",
        disabled: !enough || Boolean(job()),
        data: { key: "learn" },
        title: enough ? "" : "Accept some and reject some first.",
        onclick: () => send("learn", { kind: now.name }),
      },
      "Learn from this",
    ),
    h(
      "p",
      { class: "faint" },
      now.refined
        ? "The search has learned from your decisions. More decisions make it better."
        : "Searches again with what you accepted and rejected. Decisions stay as they are.",
    ),
  ];
}

/** The panel of the step. */
export function reviewPanel(panel, goOn) {
  const draw = whenChanged((now, total, state, mode) => {
    if (!now)
      return fill(
        panel,
        h("p", { class: "empty" }, "Find all first, then review them."),
        h("button", { type: "button", data: { key: "to find" }, onclick: () => goOn("find") }, "← To Find"),
      );
    const set = (key, value) => {
      review[key] = value;
      redraw();
    };
    const check = (key, words) =>
      h(
        "label",
        { class: "check" },
        h("input", {
          type: "checkbox",
          checked: review[key],
          data: { key },
          onchange: (event) => set(key, event.target.checked),
        }),
        words,
      );
    const all = now.picks.count;
    const judged = total.accepted + total.rejected;
    return fill(
      panel,
      !now.picks.complete &&
        h("p", { class: "faint", id: "so-far" }, `${plural(all, "pick")} so far; more are being segmented.`),
      h(
        "div",
        { class: "tally" },
        h("span", { class: "accepted" }, `✓ ${total.accepted} accepted`),
        h("span", { class: "rejected" }, `✗ ${total.rejected} rejected`),
        total.added > 0 && h("span", { class: "added" }, `+ ${total.added} added`),
        h("span", { class: "faint" }, `${total.undecided} open`),
      ),
      h("progress", { max: all || 1, value: judged, "aria-label": "Reviewed" }),
      saving(state),
      h(
        "div",
        { class: "line" },
        h("span", {}, "Order by"),
        choice(
          "order",
          [
            ["doubt", "Doubt", "Most doubtful first: your decisions teach most there"],
            ["score", "Score", "Best first"],
          ],
          review.by,
          (by) => set("by", by),
        ),
      ),
      check("onlyOpen", "Only those without a decision"),
      check("follow", "The viewer follows"),
      h(
        "div",
        { class: "line" },
        choice(
          "click in review",
          [
            ["look", "Click selects", "A click on a mask or point selects it"],
            ["missing", "Add missing", "A click where no pick is adds a particle"],
          ],
          mode,
          (m) => {
            page.mode = m;
            redraw();
          },
        ),
      ),
      now.picks.complete && learning(now, total),
    );
  });
  return () => {
    const now = kind();
    sort();
    draw(
      now?.picks ? { name: now.name, picks: now.picks, refined: now.refined, working: Boolean(job()) } : null,
      counts(),
      unsaved(),
      page.mode,
      review,
    );
  };
}
