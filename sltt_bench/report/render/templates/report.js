"use strict";
(() => {
  // Sorting: a second click turns the order round; what has no value comes last either way.
  const value = (row, column) => {
    const text = row.cells[column].dataset.value;
    return text === "" ? null : isNaN(text) ? text : Number(text);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
      table.tBodies[0].append(...rows);
    }));
  }

  // A table as CSV: what stands in it, the detail in a column of its own.
  const quoted = (text) => `"${text.trim().replaceAll('"', '""')}"`;
  for (const button of document.querySelectorAll("button.csv")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const rows = [...document.getElementById(button.dataset.table).rows].map((row) => [...row.cells].flatMap((cell) => {
        const small = cell.querySelector("small"), text = (cell.querySelector("span:not(.unit)") || cell).innerText;
        return row.parentElement.tagName === "THEAD" ? [quoted(cell.innerText), quoted(`${cell.innerText} detail`)]
          : [quoted(text), quoted(small ? small.innerText : "")];
      }).join(","));
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
      link.download = button.dataset.file;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  const root = document.documentElement;
  const toggle = document.getElementById("theme");
  const dark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => { toggle.textContent = dark() ? "light" : "dark"; };
  toggle.hidden = false;
  toggle.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; label(); });
  label();

  // A link into a folded part opens it, and on paper nothing is folded.
  const open = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.closest("details")) target.closest("details").open = true;
  };
  addEventListener("hashchange", open);
  open();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((part) => { part.open = false; }));
})();
