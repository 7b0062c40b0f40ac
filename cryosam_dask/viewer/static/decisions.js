/**
 * Decisions on their way to the run. One counts as made when the server has said that it is on the disk, not before.
 * Those that could not be sent wait, are shown as not saved, and are sent again.
 */

import { Refused, act } from "./api.js";
import { complain, page, redraw } from "./state.js";

const MOST_AT_ONCE = 200;
const FIRST_WAIT = 1000;
const LONGEST_WAIT = 15_000;

/** By kind and pick: {kind, key, instance, position, verdict}. The latest one about a pick takes the place of others. */
const waiting = new Map();
let sending = false;
let failing = false;
let wait = FIRST_WAIT;
let timer;

/**
 * What tells a pick from others: its label, or its place if a person has added it. While picks are segmented they have
 * no labels yet, only numbers, which are other picks' later.
 */
export const keyOf = (picks, i) =>
  picks.complete === false ? `~${picks.instances[i]}` : String(picks.instances[i] || picks.positions[i].join(","));

const idOf = (kind, key) => `${kind}\n${key}`;
export const pending = (kind, key) => waiting.get(idOf(kind, key))?.verdict;
export const unsaved = () => ({ count: waiting.size, failing });
export const pendingAdded = (kind) =>
  [...waiting.values()].filter((entry) => entry.kind === kind && entry.verdict === "added");

/** Decide about a pick. */
export function decideAbout(kind, picks, i, verdict) {
  const instance = picks.complete === false ? 0 : picks.instances[i];
  return put(kind, keyOf(picks, i), instance, picks.positions[i], verdict);
}

/** Add a particle at a place that has no pick. */
export const add = (kind, position) => put(kind, position.join(","), 0, position, "added");

function put(kind, key, instance, position, verdict) {
  waiting.set(idOf(kind, key), { kind, key, instance, position, verdict });
  redraw();
  return flush();
}

/** Try at once what waits for its next try. */
export function retryNow() {
  clearTimeout(timer);
  wait = FIRST_WAIT;
  return flush();
}

async function flush() {
  if (sending || !waiting.size) return;
  sending = true;
  clearTimeout(timer);
  const [{ kind }] = waiting.values();
  const batch = [...waiting].filter(([, entry]) => entry.kind === kind).slice(0, MOST_AT_ONCE);
  const decisions = batch.map(([, { instance, position, verdict }]) => ({ instance, position, verdict }));
  try {
    await act("review", { kind, decisions });
    failing = false;
    wait = FIRST_WAIT;
    for (const [id, entry] of batch) made(id, entry);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status >= 400 && error.status < 500) {
      for (const [id, entry] of batch) drop(id, entry);
      complain(error.message);
    } else {
      failing = true;
      timer = setTimeout(flush, wait);
      wait = Math.min(2 * wait, LONGEST_WAIT);
    }
  } finally {
    sending = false;
    redraw();
  }
  if (!failing) flush();
}

function drop(id, entry) {
  if (waiting.get(id) === entry) waiting.delete(id); // else a person has thought again meanwhile
}

function made(id, entry) {
  drop(id, entry);
  const { picks } = page;
  if (picks?.kind !== entry.kind) return;
  const i = picks.instances.findIndex((_, index) => keyOf(picks, index) === entry.key);
  if (i >= 0) picks.verdicts[i] = entry.verdict;
}

// Leaving with decisions that are not saved would lose them: the browser asks.
addEventListener("beforeunload", (event) => waiting.size && event.preventDefault());
