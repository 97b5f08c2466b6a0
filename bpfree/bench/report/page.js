"use strict";
{
  // Rows in the order in which they were written: what an unsorted table goes back to.
  const original = new Map();
  const asNumber = (text) => (text.trim() === "" ? NaN : Number(text.replace(/^(-?)inf$/, "$1Infinity")));

  const compare = (a, b) => {
    const [x, y] = [asNumber(a), asNumber(b)];
    const numbers = !Number.isNaN(x) && !Number.isNaN(y);
    return numbers ? (x < y ? -1 : x > y ? 1 : 0) : a.localeCompare(b, "en", { numeric: true });
  };

  const sort = (table, column) => {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    const now = heads[column].getAttribute("aria-sort");
    const next = now === "ascending" ? "descending" : now === "descending" ? "none" : "ascending";
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? next : "none"));
    let rows = [...original.get(table)];
    if (next !== "none") {
      const key = (row) => row.cells[column].dataset.sort;
      const sign = next === "ascending" ? 1 : -1;
      // What was not measured stands last, whichever way the others are sorted.
      const absent = (row) => (key(row) === "–" || key(row) === "" ? 1 : 0);
      rows.sort((a, b) => absent(a) - absent(b) || sign * compare(key(a), key(b)));
    }
    body.append(...rows);
  };

  const filter = (table) => {
    const words = document.querySelector(`[data-filter="${table.id}"]`).value.toLowerCase().split(/\s+/);
    const choices = [...document.querySelectorAll(`[data-choose="${table.id}"]`)].filter((one) => one.value);
    let shown = 0;
    for (const row of original.get(table)) {
      const text = row.textContent.toLowerCase();
      const chosen = choices.every((one) => row.cells[one.dataset.column].firstChild.textContent === one.value);
      row.hidden = !(chosen && words.every((word) => text.includes(word)));
      shown += row.hidden ? 0 : 1;
    }
    const all = original.get(table).length;
    document.querySelector(`[data-count="${table.id}"]`).textContent =
      shown === all ? `${all} rows` : `${shown} of ${all} rows`;
  };

  for (const table of document.querySelectorAll("table[id]")) {
    original.set(table, [...table.tBodies[0].rows]);
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => sort(table, column));
    });
    document.querySelector(`[data-filter="${table.id}"]`).addEventListener("input", () => filter(table));
    for (const choice of document.querySelectorAll(`[data-choose="${table.id}"]`)) {
      choice.addEventListener("change", () => filter(table));
    }
  }

  // A link to the rows of a figure opens them.
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  addEventListener("hashchange", open);
  open();
}
