// For keyboards and screen readers: tables that scroll can be focused, and the search has a name.
document$.subscribe(() => requestAnimationFrame(() => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) {
    table.tabIndex = 0;
    table.setAttribute("role", "region");
    table.setAttribute("aria-label", "Table");
  }
}));
