"use strict";
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

// A saved page shows its age.
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
// One body for each cell: its numbers, and below them its words.
const bodies = [...table.tBodies];

// Every heading becomes a sort button. Rows without a value come last in both directions.
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
  const items = [...bodies];
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

// The selection: rows by model, method and status, and columns. The address stores it after its `#`.
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
  const selections = filters.map((name) => [name, chosen(name)]);
  for (const item of bodies) item.hidden = !selections.every(([name, values]) => values.has(item.dataset[name]));
  const shown = bodies.filter((item) => !item.hidden).length;
  choose.querySelector("[role=status]").textContent = `${shown} of ${bodies.length} ${bodies.length === 1 ? "row" : "rows"} shown`;
  everything.hidden = shown === bodies.length;
  showFigures();
  showAnswers();
};
const showAnswers = () => {
  const cells = new Map(bodies.map((item) => [`${item.dataset.model} ${item.dataset.method}`, item.hidden]));
  for (const answers of all(".answers table")) {
    const rows = all("tr[data-model]", answers);
    for (const row of rows) row.hidden = cells.get(`${row.dataset.model} ${row.dataset.method}`) ?? false;
    const shown = rows.filter((row) => !row.hidden).length;
    const label = answers.caption.querySelector(".of");
    if (label) label.textContent = shown < rows.length ? `; ${shown} of ${rows.length} cells shown` : "";
  }
};
const showFigures = () => {
  const groups = all("details.group[data-model]");
  const models = boxes.model.length ? chosen("model") : null;
  for (const group of groups) group.hidden = models !== null && !models.has(group.dataset.model);
  const shown = groups.filter((group) => !group.hidden).length;
  const label = document.getElementById("figures-shown");
  if (label) label.textContent = shown < groups.length ? `Figures of ${shown} of ${groups.length} models shown.` : "";
};
const showColumns = () => {
  const visible = chosen("columns");
  table.classList.toggle("wordless", !visible.has("words"));
  const names = [null, ...boxes.columns.map((box) => box.value).filter((name) => name !== "words")];
  const places = new Map(heads.map((head, place) => [head.dataset.column ?? null, place]));
  for (const name of names.slice(1)) {
    const place = places.get(name);
    const off = !visible.has(name);
    if (heads[place].classList.contains("off") === off) continue;
    for (const row of [heads[place].parentElement, ...bodies.map((item) => item.rows[0])]) row.cells[place].classList.toggle("off", off);
  }
};
const show = () => {
  showRows();
  showColumns();
  for (const [name, inputs] of Object.entries(boxes)) {
    const label = inputs[0]?.closest("details").querySelector(".of");
    if (label) label.textContent = `: ${inputs.filter((box) => box.checked).length} of ${inputs.length}`;
  }
};

const remember = () => {
  const parts = Object.keys(boxes)
    .filter((name) => boxes[name].length && !isUsual(name))
    .map((name) => `${name}=${[...chosen(name)].map(encodeURIComponent).join(",")}`);
  history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
};
const recall = () => {
  // Such an address names a heading.
  if (location.hash && !location.hash.includes("=")) return;
  const settings = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
  for (const [name, inputs] of Object.entries(boxes)) {
    const values = settings.has(name) ? new Set(settings.get(name).split(",").map(decoded)) : null;
    const known = values !== null && (settings.get(name) === "" || inputs.some((box) => values.has(box.value)));
    for (const box of inputs) box.checked = known ? values.has(box.value) : usual(name, box);
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
  const details = button.closest("details");
  const within = button.dataset.set === "everything" ? choose : details;
  for (const [name, inputs] of Object.entries(boxes)) {
    if (button.dataset.set === "everything" && name === "columns") continue;
    for (const box of inputs.filter((one) => within.contains(one))) {
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

// With many models only the first groups of figures are open. Print opens all selected groups.
const groups = all("details.group");
groups.slice(2).forEach((group) => (group.open = false));
let closed = [];
addEventListener("beforeprint", () => {
  closed = groups.filter((group) => !group.open);
  closed.forEach((group) => (group.open = true));
});
addEventListener("afterprint", () => closed.forEach((group) => (group.open = false)));
