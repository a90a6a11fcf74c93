// The page is whole without this script. It adds: filters, buttons that copy, arrow keys in the matrix, and a cell in a window.
"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

function filtering(form) {
  form.hidden = false;
  const groups = all("details.group[data-group]");
  const apply = (event) => {
    const want = Object.fromEntries(new FormData(form));
    const word = form.status.selectedOptions[0].text;
    const some = Object.values(want).some(Boolean);
    let shown = 0;
    for (const group of groups) {
      let here = 0;
      for (const row of all("tbody tr", group)) {
        const cells = all("td", row);
        const fits = (cell) => !want.status || cell.textContent === word;
        const show = (!want.level || row.dataset.level === want.level) && (!want.profile || row.dataset.profile === want.profile)
          && (!want.group || group.dataset.group === want.group) && cells.some(fits);
        row.hidden = !show;
        here += show;
        for (const cell of cells) cell.classList.toggle("dim", !fits(cell));
      }
      group.hidden = !here;
      if (event) group.open = some && here > 0;
      shown += here;
    }
    form.querySelector("output").textContent = some ? `${shown} ${shown === 1 ? "requirement fits" : "requirements fit"}` : "";
  };
  form.addEventListener("change", apply);
  form.addEventListener("reset", (event) => setTimeout(() => apply(event)));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("open-all").addEventListener("click", () => groups.forEach((group) => { group.open = !group.hidden; }));
}

async function copied(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch { /* no permission, or an old browser */ }
  const area = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

function copying(within) {
  for (const block of all("pre", within)) {
    if (block.previousElementSibling?.className === "copy") continue;
    const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
    button.setAttribute("aria-label", `Copy ${block.getAttribute("aria-label")}`);
    block.before(button);
  }
}

async function copyOnClick(event) {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const done = await copied(button.nextElementSibling.textContent);
  button.textContent = done ? "Copied" : "Not copied: select the text";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

// One cell of each table is in the order of the Tab key; the arrow keys go to the others.
function arrows(table) {
  const rows = () => all("tbody tr", table).filter((row) => !row.hidden);
  all("td a", table).forEach((link, place) => { link.tabIndex = place ? -1 : 0; });
  table.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    const next = rows()[rows().indexOf(cell.parentElement) + step[0]]?.cells[cell.cellIndex + step[1]]?.querySelector("td a");
    if (!next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}

function opening(dialog) {
  const body = dialog.querySelector(".body");
  document.addEventListener("click", (event) => {
    const cell = event.target.closest(".matrix td a") && event.target.closest("td");
    if (!cell || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const target = document.getElementById(event.target.hash.slice(1));
    if (!target) return;
    event.preventDefault();
    const clone = target.cloneNode(true);
    if (clone.className === "inside") { // a requirement: of its answers, that of the subject
      const heading = document.createElement("h4");
      heading.append(...target.previousElementSibling.cloneNode(true).childNodes);
      clone.prepend(heading);
      const answer = all(".answers tbody tr", clone)[cell.cellIndex - 1];
      answer?.classList.add("chosen");
      all(".answers tbody tr", clone).forEach((row) => { row.hidden = row !== answer; });
    }
    [clone, ...all("[id]", clone)].forEach((part) => part.removeAttribute("id"));
    body.replaceChildren(clone);
    copying(body);
    dialog.showModal();
    dialog.scrollTop = 0;
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest("a")) dialog.close(); // outside of it, or a link out of it
  });
}

document.addEventListener("click", copyOnClick);
copying(document);
all("#filter").forEach(filtering);
all(".matrix").forEach(arrows);
all("dialog").forEach(opening);
