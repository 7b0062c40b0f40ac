/** Close views of picks: the one that is decided about, large, and all in their order, of which only those in sight are made. */

import { $, fill, h, whenChanged } from "./dom.js";
import { address } from "./api.js";
import { keyOf, pending } from "./decisions.js";
import { acts, review, select, selectedIndex, verdictOf } from "./review.js";
import { kind, page, part } from "./state.js";

const CARD = 176; // pixels of a plane's side; three planes lie side by side
const THUMB = 52;
const CELL = { width: 3 * THUMB + 12, height: THUMB + 26 };
const AHEAD = 4;

const WORDS = { accepted: "accepted", rejected: "rejected", added: "added", undecided: "" };

/** While picks are segmented, the version that each was in first, so that its picture is read once. */
const since = new Map();

function picture(instance, size) {
  const { name, picks } = kind();
  let { version } = picks;
  if (!picks.complete) {
    const id = `${name} ${version.split(".")[0]} ${instance}`;
    if (!since.has(id)) since.set(id, version);
    version = since.get(id);
  }
  return address(`gallery/${encodeURIComponent(name)}/${encodeURIComponent(version)}/${instance}.png?size=${size}`);
}

const image = (instance, size) =>
  h("img", {
    src: picture(instance, size),
    width: 3 * size,
    height: size,
    alt: `Pick ${instance} in three planes`,
    onerror: (event) => event.target.classList.add("missing"),
  });

function keyButton(key, words, name, act) {
  return h(
    "button",
    { type: "button", class: name, id: `${name}-button`, data: { key: name }, onclick: act },
    words,
    h("kbd", {}, key),
  );
}

function card(i) {
  const { picks } = page;
  const instance = picks.instances[i];
  const verdict = verdictOf(i);
  const waits = pending(page.kindName, keyOf(picks, i)) !== undefined;
  const [z, y, x] = picks.positions[i].map(Math.round);
  const place = review.order.indexOf(i);
  const facts = [
    place >= 0 && `${place + 1} of ${review.order.length}`,
    instance ? `score ${picks.scores[i].toFixed(3)}` : "added by hand",
    picks.diameter_nm[i] && `${picks.diameter_nm[i].toFixed(1)} nm`,
    `z ${z}, y ${y}, x ${x}`,
  ];
  return [
    h(
      "div",
      { class: `view ${verdict}${waits ? " waits" : ""}` },
      instance ? image(instance, CARD) : h("div", { class: "no-picture" }, "No mask here: it was added by hand."),
      verdict !== "undecided" && h("span", { class: "stamp" }, waits ? "not saved yet" : WORDS[verdict]),
    ),
    h("p", { class: "facts" }, facts.filter(Boolean).join(" · ")),
    h(
      "div",
      { class: "line" },
      instance
        ? [
            keyButton("A", "Accept", "accept", acts.accept),
            keyButton("R", "Reject", "reject", acts.reject),
            keyButton("S", "Skip", "skip", acts.skip),
          ]
        : keyButton("U", "Delete", "delete", acts.takeBack),
      keyButton("B", "Back", "back", acts.back),
      instance && verdict !== "undecided" && keyButton("U", "Undecided", "undecide", acts.takeBack),
    ),
  ];
}

function cell(i, place, columns) {
  const { picks } = page;
  const verdict = verdictOf(i);
  const waits = pending(page.kindName, keyOf(picks, i)) !== undefined;
  const style = { left: `${(place % columns) * CELL.width}px`, top: `${Math.floor(place / columns) * CELL.height}px` };
  return h(
    "button",
    {
      type: "button",
      style,
      title: `Score ${picks.scores[i].toFixed(3)} ${WORDS[verdict]}`,
      class: `thumb ${verdict}${waits ? " waits" : ""}${i === selectedIndex() ? " chosen" : ""}`,
      data: { key: `thumb ${picks.instances[i]}` },
      onclick: () => select(i),
    },
    image(picks.instances[i], THUMB),
    h("span", {}, picks.scores[i].toFixed(2)),
  );
}

export function startGallery() {
  const large = h("div", { id: "card" });
  const sheet = h("div", { id: "sheet" });
  const scroll = h("div", { id: "thumbs", tabindex: "-1" }, sheet);
  $("#gallery").append(large, scroll);
  let shown = "";

  const thumbs = () => {
    const { order } = review;
    const columns = Math.max(1, Math.floor((scroll.clientWidth - 14) / CELL.width));
    const first = Math.max(0, Math.floor(scroll.scrollTop / CELL.height) - 1) * columns;
    const last = Math.ceil((scroll.scrollTop + scroll.clientHeight) / CELL.height + 1) * columns;
    sheet.style.height = `${Math.ceil(order.length / columns) * CELL.height}px`;
    fill(
      sheet,
      order.slice(first, last).map((i, n) => cell(i, first + n, columns)),
    );
    return columns;
  };

  const draw = whenChanged(() => {
    const i = selectedIndex();
    const place = review.order.indexOf(i);
    fill(large, i >= 0 ? card(i) : h("p", { class: "empty" }, "Choose one to look at."));
    for (const next of review.order.slice(place + 1, place + 1 + AHEAD))
      new Image().src = picture(page.picks.instances[next], CARD);
    const columns = thumbs();
    if (page.selected !== shown && place >= 0) {
      shown = page.selected; // bring it into sight, once
      const top = Math.floor(place / columns) * CELL.height;
      if (top < scroll.scrollTop || top + CELL.height > scroll.scrollTop + scroll.clientHeight) {
        scroll.scrollTop = top - (scroll.clientHeight - CELL.height) / 2;
        thumbs();
      }
    }
  });

  scroll.addEventListener("scroll", () => page.picks && kind()?.picks && thumbs());
  new ResizeObserver(() => page.picks && kind()?.picks && thumbs()).observe(scroll);
  part(() => {
    const picks = kind()?.picks;
    // numbers and pictures must be of the same picks: those so far, or all of them
    const same = picks && page.picks?.kind === page.kindName && picks.complete === (page.picks.complete !== false);
    const open = page.step === "review" && Boolean(same);
    $("#gallery").hidden = !open;
    if (!open) return;
    const waits = page.picks.instances.map((_, i) => pending(page.kindName, keyOf(page.picks, i)) ?? "");
    draw(page.selected, page.kindName, picks.complete && picks.version, review.order, page.picks.verdicts, waits);
  });
}
