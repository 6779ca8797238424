"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// A page that was kept says how old it is.
const stamp = document.querySelector(".stamp");
const days = Math.floor((Date.now() - Date.parse(stamp.dataset.published)) / 86400000);
if (days >= 1) {
  const age = document.createElement("span");
  age.className = "age";
  age.textContent = ` – ${days} ${days === 1 ? "day" : "days"} old`;
  stamp.querySelector("dd").append(age);
}

const table = document.querySelector("table.sortable");
const heads = [...table.tHead.rows[0].cells];
const given = [...table.tBodies]; // one for each cell: its numbers, and below them its words

// Every heading becomes a button; rows without a value come last either way.
const value = (item, column) => {
  const cell = item.rows[0].cells[column];
  const text = cell.textContent.trim();
  if (text === "–") return null;
  return cell.dataset.value === undefined ? text : Number(cell.dataset.value);
};
const order = (one, other) =>
  typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
const sort = (column) => {
  const next = { ascending: "descending", descending: "none", none: "ascending" }[heads[column].getAttribute("aria-sort")];
  heads.forEach((head) => head.setAttribute("aria-sort", "none"));
  heads[column].setAttribute("aria-sort", next);
  const items = [...given];
  if (next !== "none") {
    const sign = next === "ascending" ? 1 : -1;
    items.sort((a, b) => {
      const [one, other] = [value(a, column), value(b, column)];
      if (one === null || other === null) return (one === null) - (other === null);
      return sign * order(one, other);
    });
  }
  table.append(...items);
};
heads.forEach((head, column) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = head.textContent;
  button.addEventListener("click", () => sort(column));
  head.setAttribute("aria-sort", "none");
  head.replaceChildren(button);
});

// What is chosen: rows by model, method and status, and columns. The address remembers it behind its `#`.
const choose = document.getElementById("choose");
const everything = choose.querySelector("[data-set=everything]");
const boxes = Object.fromEntries(
  ["model", "method", "status", "columns"].map((name) => [name, all(`input[name="${name}"]`, choose)]),
);
const usual = (name, box) => name !== "columns" || "usual" in box.dataset;
const chosen = (name) => new Set(boxes[name].filter((box) => box.checked).map((box) => box.value));
const isUsual = (name) => boxes[name].every((box) => box.checked === usual(name, box));

const showRows = () => {
  const filters = ["model", "method", "status"].filter((name) => boxes[name].length);
  const wanted = filters.map((name) => [name, chosen(name)]);
  for (const item of given) item.hidden = !wanted.every(([name, values]) => values.has(item.dataset[name]));
  const shown = given.filter((item) => !item.hidden).length;
  choose.querySelector("[role=status]").textContent = `${shown} of ${given.length} ${given.length === 1 ? "row" : "rows"} shown`;
  everything.hidden = shown === given.length;
  showFigures();
  showAnswers();
};
const showAnswers = () => {
  const cells = new Map(given.map((item) => [`${item.dataset.model} ${item.dataset.method}`, item.hidden]));
  for (const answers of all(".answers table")) {
    const rows = all("tr[data-model]", answers);
    for (const row of rows) row.hidden = cells.get(`${row.dataset.model} ${row.dataset.method}`) ?? false;
    const shown = rows.filter((row) => !row.hidden).length;
    const said = answers.caption.querySelector(".of");
    if (said) said.textContent = shown < rows.length ? `; ${shown} of ${rows.length} cells shown` : "";
  }
};
const showFigures = () => {
  const groups = all("details.group[data-model]");
  const models = boxes.model.length ? chosen("model") : null;
  for (const group of groups) group.hidden = models !== null && !models.has(group.dataset.model);
  const shown = groups.filter((group) => !group.hidden).length;
  const said = document.getElementById("figures-shown");
  if (said) said.textContent = shown < groups.length ? `Figures of ${shown} of ${groups.length} models shown.` : "";
};
const showColumns = () => {
  const wanted = chosen("columns");
  table.classList.toggle("wordless", !wanted.has("words"));
  const names = [null, ...boxes.columns.map((box) => box.value).filter((name) => name !== "words")];
  const places = new Map(heads.map((head, place) => [head.dataset.column ?? null, place]));
  for (const name of names.slice(1)) {
    const place = places.get(name);
    const off = !wanted.has(name);
    if (heads[place].classList.contains("off") === off) continue;
    for (const row of [heads[place].parentElement, ...given.map((item) => item.rows[0])]) row.cells[place].classList.toggle("off", off);
  }
};
const show = () => {
  showRows();
  showColumns();
  for (const [name, found] of Object.entries(boxes)) {
    const said = found[0]?.closest("details").querySelector(".of");
    if (said) said.textContent = `: ${found.filter((box) => box.checked).length} of ${found.length}`;
  }
};

const remember = () => {
  const parts = Object.keys(boxes)
    .filter((name) => boxes[name].length && !isUsual(name))
    .map((name) => `${name}=${[...chosen(name)].map(encodeURIComponent).join(",")}`);
  history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
};
const recall = () => {
  if (location.hash && !location.hash.includes("=")) return; // the name of a heading
  const said = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
  for (const [name, found] of Object.entries(boxes)) {
    const values = said.has(name) ? new Set(said.get(name).split(",").map(decoded)) : null;
    const known = values !== null && (said.get(name) === "" || found.some((box) => values.has(box.value)));
    for (const box of found) box.checked = known ? values.has(box.value) : usual(name, box);
  }
  show();
};
const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};
const set = (button) => {
  const of = button.closest("details");
  const within = button.dataset.set === "everything" ? choose : of;
  for (const [name, found] of Object.entries(boxes)) {
    if (button.dataset.set === "everything" && name === "columns") continue;
    for (const box of found.filter((one) => within.contains(one))) {
      box.checked = { all: true, everything: true, none: false, usual: usual(name, box) }[button.dataset.set];
    }
  }
};
choose.addEventListener("change", () => {
  show();
  remember();
});
choose.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-set]");
  if (!button) return;
  set(button);
  show();
  remember();
});
addEventListener("hashchange", recall);
recall();
show();

// Of many models the figures of the first are open; paper shows all that are chosen.
const groups = all("details.group");
groups.slice(2).forEach((group) => (group.open = false));
let closed = [];
addEventListener("beforeprint", () => {
  closed = groups.filter((group) => !group.open);
  closed.forEach((group) => (group.open = true));
});
addEventListener("afterprint", () => closed.forEach((group) => (group.open = false)));
