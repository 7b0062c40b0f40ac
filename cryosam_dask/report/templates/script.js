"use strict";
document.documentElement.classList.add("scripted");

/* The gallery as a viewer: one slice at a time, chosen by a slider. */
for (const viewer of document.querySelectorAll(".viewer")) {
  const slides = [...viewer.querySelectorAll(".slides > figure")];
  const range = viewer.querySelector("input[type=range]");
  const said = viewer.querySelector("output");
  if (slides.length < 2) continue;
  viewer.classList.add("live");
  const show = (index) => {
    const at = Math.min(Math.max(index, 0), slides.length - 1);
    slides.forEach((slide, i) => { slide.hidden = i !== at; });
    range.value = String(at);
    range.setAttribute("aria-valuetext", slides[at].dataset.title);
    said.textContent = slides[at].dataset.title;
  };
  range.addEventListener("input", () => show(Number(range.value)));
  for (const button of viewer.querySelectorAll("button[data-step]")) {
    button.addEventListener("click", () => show(Number(range.value) + Number(button.dataset.step)));
  }
  show(Math.floor(slides.length / 2));
}

/* Tables: sorted by a click on a header, and searched. */
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = header.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? other : first;
      headers.forEach((h) => h.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keyed = [...body.rows].map((row) => {
        const text = row.cells[column].dataset.value || row.cells[column].textContent.trim();
        const value = Number(text);
        return { row, text, value: text !== "" && !Number.isNaN(value) ? value : null };
      });
      keyed.sort((a, b) => sign * (a.value !== null && b.value !== null ? a.value - b.value : a.text.localeCompare(b.text)));
      body.append(...keyed.map((k) => k.row));
    });
  });
  const tools = document.querySelector(`[data-for="${table.id}"]`);
  if (!tools) continue;
  const search = tools.querySelector("input[type=search]");
  const count = tools.querySelector("output");
  search.addEventListener("input", () => {
    const words = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${body.rows.length} rows` : "";
  });
}

for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy).innerText;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents(document.getElementById(button.dataset.copy));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = "Selected: copy it now";
    }
  });
}
