// Sorting and filters. The state stands in the address: ?sort=speedup&order=desc&task=gsm8k
"use strict";
(() => {
  const table = document.getElementById("table");
  const form = document.getElementById("filters");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const selects = [...form.querySelectorAll("select")];
  const filtered = [...document.querySelectorAll("[data-sampling]")];
  const state = new URLSearchParams(location.search);

  const cellOf = (row, column) => row.cells[column];
  const isNumber = (column) => heads[column].classList.contains("number");

  function compared(column, sign) {
    return (a, b) => {
      const x = cellOf(a, column);
      const y = cellOf(b, column);
      if (!isNumber(column)) return sign * x.textContent.localeCompare(y.textContent);
      const known = (cell) => cell.dataset.value !== undefined;
      if (!known(x) || !known(y)) return known(y) - known(x); // what is not known comes last
      return sign * (x.dataset.value - y.dataset.value);
    };
  }

  function sort() {
    const column = heads.findIndex((head) => head.dataset.sort === state.get("sort"));
    const sign = state.get("order") === "desc" ? -1 : 1;
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    if (column >= 0) heads[column].setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
    const ordered = column < 0 ? rows : [...rows].sort(compared(column, sign));
    body.append(...ordered);
  }

  // A line above the first row that is shown of each setting, in the order of the record.
  function rule() {
    const isSorted = heads.some((head) => head.hasAttribute("aria-sort"));
    let last = null;
    for (const row of body.rows) {
      if (row.hidden) continue;
      const setting = JSON.stringify({ ...row.dataset });
      row.classList.toggle("begins", !isSorted && setting !== last);
      last = setting;
    }
  }

  function filter() {
    const wanted = selects.filter((select) => select.value);
    for (const element of filtered) {
      element.hidden = wanted.some(
        ({ name, value }) => name in element.dataset && element.dataset[name] !== value
      );
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${rows.length} rows`;
  }

  function show() {
    sort();
    filter();
    rule();
    const query = state.toString();
    try {
      history.replaceState(null, "", (query ? `?${query}` : location.pathname) + location.hash);
    } catch {
      // a page from a file may not change its address
    }
  }

  function put(name, value) {
    if (value) state.set(name, value);
    else state.delete(name);
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const first = isNumber(column) ? "desc" : "asc";
      const other = first === "desc" ? "asc" : "desc";
      const isOwn = state.get("sort") === head.dataset.sort;
      put("order", isOwn && state.get("order") === first ? other : first);
      put("sort", head.dataset.sort);
      show();
    });
  });

  for (const select of selects) {
    const value = state.get(select.name);
    if ([...select.options].some((option) => option.value === value)) select.value = value;
    else state.delete(select.name);
    select.addEventListener("change", () => {
      put(select.name, select.value);
      show();
    });
  }
  form.addEventListener("reset", () => {
    for (const name of [...state.keys()]) state.delete(name);
    setTimeout(show);
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  // A link to a row opens its facts, even those that a filter hides.
  function open() {
    const target = document.getElementById(location.hash.slice(1));
    const details = target && target.closest("details");
    if (!details) return;
    details.hidden = false;
    details.open = true;
    target.scrollIntoView();
  }
  window.addEventListener("hashchange", open);

  form.hidden = false;
  show();
  open();
})();
