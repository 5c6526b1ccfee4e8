"use strict";
// Tables that are marked `data-sortable` sort by a column and filter by words and by the columns in `data-filter`; links
// to a table's data download it at a click. Without scripts they are plain tables, and links to where the data stands.
(() => {
  for (const link of document.querySelectorAll("a.data")) {
    const source = document.getElementById(link.hash.slice(1));
    if (source) Object.assign(link, {href: source.href, download: source.download});
  }

  // What a cell is sorted by: a number where it begins with one, else its text; dashes come last.
  const value = (cell) => {
    const text = cell.textContent.trim();
    if (text === "–" || text === "") return null;
    const number = Number.parseFloat(text.replace("−", "-").replace(/^</, ""));
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  const order = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === typeof b) return a < b ? -1 : a > b ? 1 : 0;
    return typeof a === "number" ? -1 : 1;
  };
  const element = (name, attributes, ...children) => {
    const made = Object.assign(document.createElement(name), attributes);
    made.append(...children);
    return made;
  };

  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows].at(-1).cells;
    for (const [column, head] of [...heads].entries()) {
      const button = element("button", {type: "button", className: "sort"}, ...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = rows.map((row) => [value(row.cells[column]), row]);
        keyed.sort(([a], [b]) => (a === null || b === null ? order(a, b) : up ? order(a, b) : order(b, a)));
        body.append(...keyed.map(([, row]) => row));
      });
    }

    const name = table.closest("[aria-label]").getAttribute("aria-label");
    const count = element("p", {className: "count note"});
    count.setAttribute("role", "status");
    const search = element("input", {type: "search", autocomplete: "off"});
    const picks = (table.dataset.filter || "").split(",").filter(Boolean).map(Number).map((column) => {
      const values = [...new Set(rows.map((row) => row.cells[column].textContent.trim()))];
      if (values.length < 2) return null;
      const select = element("select", {}, new Option("all", ""), ...values.map((text) => new Option(text, text)));
      return {column, select, label: element("label", {}, heads[column].textContent.trim(), select)};
    }).filter(Boolean);
    const filter = () => {
      const wanted = search.value.trim().toLowerCase();
      let shown = 0;
      for (const row of rows) {
        const fits = picks.every(({column, select}) => !select.value || row.cells[column].textContent.trim() === select.value);
        row.hidden = !(fits && row.textContent.toLowerCase().includes(wanted));
        shown += !row.hidden;
      }
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    const bar = element("div", {className: "controls"}, element("label", {}, "rows that hold", search), ...picks.map((pick) => pick.label));
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", `Filter: ${name}`);
    bar.addEventListener("input", filter);
    table.closest(".box").before(bar, count);
    filter();
  }
})();
