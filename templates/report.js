// What the page can do beyond folding: filter, fold all, copy, and open what a link or a printer asks for.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  for (const control of all(".tools, .copy")) control.hidden = false;

  // Filter. An item that matches is shown with the groups around it; the folds are as before once nothing is asked.
  const items = document.getElementById("items");
  const text = document.getElementById("filter");
  const told = document.getElementById("told");
  const effect = document.getElementById("effect");
  const matches = document.getElementById("matches");
  const rows = items ? all("[data-item]", items).filter((row) => !row.parentElement.closest("[data-item]")) : [];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const groups = items ? all(".group", items) : [];
  // A change counts with all that follows from it.
  const weight = (row) => 1 + row.querySelectorAll("[data-item]").length;
  const total = rows.reduce((sum, row) => sum + weight(row), 0);
  let before = null;

  function filter() {
    const parts = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = parts.length > 0 || Boolean(told && told.checked) || Boolean(effect && effect.value);
    let count = 0;
    for (const row of rows) {
      const kinds = row.dataset.item.split(" ");
      const shown =
        parts.every((part) => words.get(row).includes(part)) &&
        !(told && told.checked && kinds.includes("default")) &&
        !(effect && effect.value && !kinds.includes(effect.value));
      row.hidden = !shown;
      count += shown ? weight(row) : 0;
    }
    if (asked && !before) before = new Map(groups.map((group) => [group, group.open]));
    for (const group of groups) {
      group.hidden = asked && !group.querySelector("[data-item]:not([hidden])");
      if (asked) group.open = true;
      else if (before) group.open = before.get(group);
    }
    if (!asked) before = null;
    const noun = effect ? "change" : "value";
    const many = (number) => `${number} ${noun}${number === 1 ? "" : "s"}`;
    matches.textContent = asked ? `${count} of ${many(total)}` : many(total);
  }
  if (items) {
    for (const control of [text, told, effect]) if (control) control.addEventListener("input", filter);
    filter();
  }

  for (const button of all("[data-fold]")) {
    button.addEventListener("click", () => {
      for (const fold of all("details", items)) fold.open = button.dataset.fold === "open";
    });
  }

  // Copy. Where the browser gives a page from a file no clipboard, the text is selected for the keyboard's own copy.
  for (const button of all(".copy")) {
    const name = `Copy ${button.dataset.name}`;
    button.setAttribute("aria-label", name);
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("pre code");
      let said = "Copied";
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        said = "Selected";
      }
      button.textContent = said;
      button.setAttribute("aria-label", `${said}: ${button.dataset.name}`);
      setTimeout(() => {
        button.textContent = "Copy";
        button.setAttribute("aria-label", name);
      }, 2000);
    });
  }

  // A link to a value opens it, and the group that it is in.
  function reveal() {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.hidden && text) {
      text.value = "";
      if (told) told.checked = false;
      filter();
    }
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", reveal);
  reveal();

  // On paper every fold is open.
  let shut = [];
  addEventListener("beforeprint", () => {
    shut = all("details:not([open])");
    for (const fold of shut) fold.open = true;
  });
  addEventListener("afterprint", () => {
    for (const fold of shut) fold.open = false;
  });
})();
