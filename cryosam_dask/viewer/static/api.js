/** The server: its snapshots as they come, larger things by their version, and actions. */

/** Tells this page from another one on the same run. */
export const PAGE = crypto.getRandomValues(new Uint32Array(2)).join("-");

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15_000;
/** The server sends a ping each 15 s. A link that is silent for longer than two is dead, even if nobody said so. */
const SILENCE = 40_000;
/** After this a page in the background hangs up: a browser opens six connections to a server, for all of its tabs. */
const HIDDEN = 2000;

/** An action that the server refused (`status`), or that didn't arrive (status 0). The message is one line. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Address of something of the server, relative to the page: a proxy may have put anything before it. */
export const address = (path) => new URL(path, document.baseURI).href;

async function answer(promise) {
  let response;
  try {
    response = await promise;
  } catch {
    throw new Refused("The server does not answer.", 0);
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(body.error || `The server answered ${response.status}.`, response.status);
  return body;
}

export const read = (path) => answer(fetch(address(path)));

export function act(action, body = {}) {
  const sent = JSON.stringify({ ...body, page: PAGE });
  const headers = { "Content-Type": "application/json" };
  return answer(fetch(address(`api/${action}`), { method: "POST", headers, body: sent }));
}

/**
 * Call `onSnapshot` with each snapshot, and `onLink` with true or false as the link comes and goes.
 * A browser's own reconnecting gives up for good after some answers, so it is done here, with growing pauses.
 * A page that nobody sees isn't told of anything until it is seen again.
 */
export function follow(onSnapshot, onLink) {
  let wait = FIRST_WAIT;
  let source;
  let silence;
  let retry;
  let hanging;
  const hangUp = () => {
    source?.close();
    source = undefined;
    clearTimeout(silence);
    clearTimeout(retry);
  };
  const lost = () => {
    if (!source) return; // it was given up meanwhile
    hangUp();
    onLink(false);
    retry = setTimeout(connect, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  };
  const heard = () => {
    clearTimeout(silence);
    silence = setTimeout(() => read("api/state").then(heard, lost), SILENCE);
  };
  const connect = () => {
    hangUp();
    source = new EventSource(address("api/events"));
    source.onerror = lost;
    source.onopen = heard;
    source.onmessage = (event) => {
      wait = FIRST_WAIT;
      heard();
      onLink(true);
      onSnapshot(JSON.parse(event.data));
    };
  };
  const seen = () => {
    clearTimeout(hanging);
    if (document.visibilityState === "hidden") hanging = setTimeout(hangUp, HIDDEN);
    else if (!source) connect();
  };
  document.addEventListener("visibilitychange", seen);
  connect();
  seen();
}

/** Something of the server by its version, which is read once. `get(path)` gives a promise; a failure is forgotten. */
export function remember(limit = 20) {
  const kept = new Map();
  return (path) => {
    if (!kept.has(path)) {
      const promise = read(path);
      promise.catch(() => kept.delete(path));
      kept.set(path, promise);
      if (kept.size > limit) kept.delete(kept.keys().next().value);
    }
    return kept.get(path);
  };
}
