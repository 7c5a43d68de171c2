"use strict";
// A tip for whatever carries data-tip: follows the pointer, stays inside the window, answers a touch too.
const tip = document.getElementById("tip");
addEventListener("pointermove", (event) => {
  const target = event.target.closest ? event.target.closest("[data-tip]") : null;
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const right = event.clientX + 14 + tip.offsetWidth < innerWidth;
  tip.style.left = Math.max(4, right ? event.clientX + 14 : event.clientX - 14 - tip.offsetWidth) + "px";
  const below = event.clientY + 16 + tip.offsetHeight < innerHeight;
  tip.style.top = (below ? event.clientY + 16 : event.clientY - 12 - tip.offsetHeight) + "px";
});
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

// Sorting: figures go by data-value or their number, names by the alphabet; a figure that there is not
// comes last. A second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    if ("missing" in cell.dataset) return null;
    const text = cell.dataset.value || cell.textContent.trim();
    return text !== "" && !isNaN(text) ? Number(text) : text;
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((one, other) => {
      const a = value(one, column), b = value(other, column);
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return up ? order : -order;
    });
    table.tBodies[0].append(...rows);
  }));
}

// A curve and its name in the list beside it light up together.
for (const part of document.querySelectorAll("[data-curve]")) {
  const both = part.closest("section").querySelectorAll(`[data-curve="${part.dataset.curve}"]`);
  for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
    part.addEventListener(event, () => both.forEach((one) => one.classList.toggle("on", on)));
  }
}

// A drawing opens over the page; a click, Enter or Escape closes it.
const enlarged = document.getElementById("enlarged");
for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    const large = enlarged.querySelector("img"), small = button.querySelector("img");
    large.src = small.src;
    large.alt = small.alt;
    enlarged.showModal();
  });
}

// Copy buttons appear only where the browser lets a page write to the clipboard.
if (navigator.clipboard) {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
  }
}
