"use strict";
// A page that was kept says how old it is.
const stamp = document.querySelector(".stamp");
const days = Math.floor((Date.now() - Date.parse(stamp.dataset.published)) / 86400000);
if (days >= 1) {
  const age = document.createElement("span");
  age.className = "age";
  age.textContent = ` – ${days} ${days === 1 ? "day" : "days"} old`;
  stamp.querySelector("dd").append(age);
}
// Every heading of a sortable table becomes a button; rows without a value come last either way.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const given = [...body.rows];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.textContent.trim() === "–") return null;
    return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
  };
  const order = (one, other) =>
    typeof one === "number" && typeof other === "number" ? one - other : String(one).localeCompare(String(other));
  const sort = (column) => {
    const next = { ascending: "descending", descending: "none", none: "ascending" }[heads[column].getAttribute("aria-sort")];
    heads.forEach((head) => head.setAttribute("aria-sort", "none"));
    heads[column].setAttribute("aria-sort", next);
    const rows = [...given];
    if (next !== "none") {
      const sign = next === "ascending" ? 1 : -1;
      rows.sort((a, b) => {
        const [one, other] = [value(a, column), value(b, column)];
        if (one === null || other === null) return (one === null) - (other === null);
        return sign * order(one, other);
      });
    }
    body.append(...rows);
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(column));
    head.setAttribute("aria-sort", "none");
    head.replaceChildren(button);
  });
}
