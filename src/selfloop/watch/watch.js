"use strict";
{
  // The status is fetched again and again. A page with a new report is loaded again, as it was left: a reader who works waits.
  const POLL = 1000, QUIET = 3000; // milliseconds
  const live = document.getElementById("live"), follow = document.getElementById("follow"), store = `watch ${location.pathname}`;
  let touched = 0;
  for (const kind of ["pointerdown", "keydown", "wheel", "touchmove"]) addEventListener(kind, () => (touched = Date.now()), { passive: true });

  const named = (elements) => elements.map((element, i) => {
    const place = element.closest("[id]")?.id, text = element.querySelector?.("summary")?.textContent;
    return [text ? `${place} ${text}` : `${place} ${element.id || i}`, element];
  });
  const details = () => named([...document.querySelectorAll("details")]);
  const inputs = () => named([...document.querySelectorAll("input, select")]);
  const value = (input) => (input.type === "checkbox" ? "checked" : "value");

  // The element at the top of the window: the parts above it may get longer.
  const anchor = () => [...document.querySelectorAll("main [id]")].filter((each) => each.getClientRects().length && each.getBoundingClientRect().top < 100).pop();

  function leave() {
    const open = Object.fromEntries(details().map(([name, element]) => [name, element.open]));
    const values = Object.fromEntries(inputs().map(([name, input]) => [name, input[value(input)]]));
    const top = scrollY > 0 && anchor(), place = top && { id: top.id, at: top.getBoundingClientRect().top };
    sessionStorage.setItem(store, JSON.stringify({ open, values, place, y: scrollY, focus: document.activeElement?.id }));
    location.reload();
  }

  function comeBack() {
    const left = JSON.parse(sessionStorage.getItem(store) ?? "null");
    sessionStorage.removeItem(store);
    if (!left) return;
    for (const [name, element] of details()) element.open = left.open[name] ?? element.open;
    for (const [name, input] of inputs()) {
      if (!(name in left.values) || input[value(input)] === left.values[name]) continue;
      input[value(input)] = left.values[name];
      for (const kind of ["input", "change"]) input.dispatchEvent(new Event(kind, { bubbles: true }));
    }
    document.getElementById(left.focus)?.focus({ preventScroll: true });
    history.scrollRestoration = "manual";
    const top = document.getElementById(left.place?.id);
    scrollTo({ top: top ? scrollY + top.getBoundingClientRect().top - left.place.at : left.y, behavior: "instant" });
  }

  // Takes over the contents in place: what stays keeps its focus, and a click that has begun meets the same button at its end.
  function merge(old, next) {
    const left = [...old.childNodes];
    const parts = [...next.childNodes].map((part) => {
      const i = left.findIndex((each) => each.nodeName === part.nodeName && each.id === part.id);
      if (i < 0) return part;
      const [same] = left.splice(i, 1);
      if (same.nodeValue !== part.nodeValue) same.nodeValue = part.nodeValue;
      for (const { name, value } of part.attributes ?? []) if (same.getAttribute(name) !== value) same.setAttribute(name, value);
      merge(same, part);
      return same;
    });
    for (const part of left) part.remove();
    parts.forEach((part, i) => old.childNodes[i] === part || old.insertBefore(part, old.childNodes[i] ?? null));
  }

  async function update() {
    try {
      const response = await fetch(live.dataset.source, { cache: "no-store" });
      if (!response.ok) throw new Error(response.statusText);
      const next = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("live");
      if (next) merge(live, next);
      const isQuiet = !document.hidden && Date.now() - touched > QUIET;
      if (next && next.dataset.version !== live.dataset.version && follow?.checked && isQuiet) return leave();
      document.title = document.title.replace(/ \(no answer\)$/, "");
    } catch {
      document.title = document.title.replace(/( \(no answer\))?$/, " (no answer)"); // the server has ended, or is another one
    }
    setTimeout(update, POLL);
  }
  comeBack();
  setTimeout(update, POLL);
}
