/** What is going on: the job with its progress, messages of the server and of the page, and the link to the server. */

import { $, duration, fill, h, whenChanged } from "./dom.js";
import { page, part, redraw, send } from "./state.js";

const MOST_MESSAGES = 3;
const NOTE_STAYS = 12_000;
const timed = new Set();

function dismiss(id) {
  page.dismissed.add(id);
  redraw();
}

function progress(job) {
  if (!job) return null;
  const share = job.total ? `${job.done} of ${job.total}` : "starting";
  const left = typeof job.seconds_left === "number" ? `, about ${duration(job.seconds_left)} left` : "";
  return h(
    "div",
    { id: "job" },
    h(
      "div",
      { class: "line" },
      h("span", { class: "grow" }, job.words),
      h(
        "button",
        {
          type: "button",
          class: "small",
          id: "cancel",
          disabled: job.cancelling,
          data: { key: "cancel" },
          onclick: () => send("cancel", {}),
        },
        job.cancelling ? "Stopping…" : "Cancel",
      ),
    ),
    h(
      "progress",
      job.total ? { max: job.total, value: job.done, "aria-label": job.words } : { "aria-label": job.words },
    ),
    h("span", { class: "faint" }, `${share}${left}`),
  );
}

/** What was cancelled or broken off, and goes on from there. */
function stopped(words) {
  if (!words) return null;
  return h(
    "div",
    { class: "line", id: "stopped" },
    h("span", { class: "grow" }, `Not finished: ${words}`),
    h(
      "button",
      { type: "button", class: "small", id: "resume", data: { key: "resume" }, onclick: () => send("resume", {}) },
      "Go on",
    ),
  );
}

function message({ id, kind, text }) {
  // notes go by themselves, errors stay until they were seen
  if (kind !== "error" && !timed.has(id)) {
    timed.add(id);
    setTimeout(() => dismiss(id), NOTE_STAYS);
  }
  return h(
    "p",
    { class: kind === "error" ? "message error" : "message", role: kind === "error" ? "alert" : "status" },
    h("span", { class: "grow" }, text),
    h(
      "button",
      {
        type: "button",
        class: "tool",
        "aria-label": "Dismiss",
        data: { key: `dismiss ${id}` },
        onclick: () => dismiss(id),
      },
      "✕",
    ),
  );
}

let returned = false;

/** Tell that the link is lost, or is there again. */
export function setLink(up) {
  if (page.linked === up) return;
  returned = page.linked === false && up;
  page.linked = up;
  if (returned)
    setTimeout(() => {
      returned = false;
      redraw();
    }, 3000);
  redraw();
}

function banner(linked, back) {
  const element = $("#banner");
  element.hidden = linked !== false && !back;
  element.className = back ? "good" : "bad";
  element.textContent = back
    ? "The server is there again."
    : "The server does not answer. What you see may be old; this page tries again by itself.";
}

export function startStatus() {
  const draw = whenChanged((job, messages, words) =>
    fill($("#status"), messages.map(message), progress(job) ?? stopped(words)),
  );
  const link = whenChanged(banner);
  part(() => {
    const all = [...(page.snapshot?.messages ?? []), ...page.errors].filter(({ id }) => !page.dismissed.has(id));
    draw(page.snapshot?.job ?? null, all.slice(-MOST_MESSAGES), page.snapshot?.resumable);
    link(page.linked, returned);
  });
}
