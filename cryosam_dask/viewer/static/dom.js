/** Elements are made here, and only here. Whatever comes from the server becomes text or an attribute, never markup. */

/**
 * Make an element: `h("button", {class: "wide", onclick: f}, "Find all")`.
 * Attributes that are null or false are left out; functions are listeners; `data` is an object of data attributes.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (selector) => document.querySelector(selector);

/** Put children in place of what a container shows. Keyboard focus stays on the element of the same `data-key`. */
export function fill(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const scrolled = container.scrollTop;
  container.replaceChildren(...children.flat(2).filter(Boolean));
  container.scrollTop = scrolled;
  if (focused !== undefined) {
    const again = [...container.querySelectorAll("[data-key]")].find((element) => element.dataset.key === focused);
    again?.focus({ preventScroll: true });
  }
}

/**
 * A function that draws only when what it is given differs from the last time, so that a snapshot that arrives
 * ten times a second doesn't rebuild what a person is about to click on.
 */
export function whenChanged(draw) {
  let last;
  return (...inputs) => {
    const now = JSON.stringify(inputs);
    if (now === last) return;
    last = now;
    draw(...inputs);
  };
}

/** Buttons of which one is pressed. choices : [value, text, title] */
export function choice(label, choices, chosen, choose) {
  const buttons = choices.map(([value, text, title]) =>
    h(
      "button",
      {
        type: "button",
        title,
        "aria-pressed": String(value === chosen),
        data: { key: `${label}:${value}` },
        onclick: () => choose(value),
      },
      text,
    ),
  );
  return h("div", { class: "choice", role: "group", "aria-label": label }, buttons);
}

/** "40 s", "3 min", "2 h 10 min" */
export function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export const plural = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
