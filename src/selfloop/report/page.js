"use strict";
// Without this script figures are still pictures. Those that come into view are drawn again by the bundled Vega, in their place.
{% include "exports.js" %}

const pick = (selector, from = document) => [...from.querySelectorAll(selector)];
const make = (tag, properties) => Object.assign(document.createElement(tag), properties);
const chosen = new Set(); // policies that the reader highlights; without any, each figure highlights its own
const drawings = new Map(); // figure -> drawing
const MIN_PLOT = 120; // pixels
let vega, now; // the unpacked Vega; the generation of the slider, once a reader has moved it

function unpack(script) {
  const packed = Uint8Array.from(atob(script.textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

async function unpackVega() {
  document.head.append(make("script", { textContent: await unpack(document.getElementById("vega")) }));
}

class Drawing {
  constructor(figure) {
    this.picture = figure.querySelector(".picture");
    this.still = this.picture.querySelector("svg");
    [this.meta, this.packed] = [JSON.parse(figure.querySelector("script").textContent), figure.querySelector("script + script")];
    this.isOther = false;
    this.fit();
  }

  // The pixels by which plots get narrower, so that text keeps its size on a narrow screen; their height is reserved.
  fit() {
    const excess = this.still.getAttribute("width") - this.picture.clientWidth, { widths } = this.meta;
    const isNarrow = this.picture.clientWidth && excess > 0 && widths.length && widths.every((width) => width - excess >= MIN_PLOT);
    this.picture.style.minHeight = isNarrow ? `${this.still.getAttribute("height")}px` : "";
    return isNarrow ? excess : 0;
  }

  plots(spec) {
    return [spec, ...(spec.vconcat ?? [])].filter((part) => part.layer || (part.mark && part.width));
  }

  async draw() {
    await (vega ??= unpackVega());
    // Light colors become the variables of the page, which follow its color scheme.
    this.spec ??= JSON.parse((await unpack(this.packed)).replace(/"#([0-9a-f]{6})"/g, '"var(--c$1)"'));
    this.policies ??= new Set(Object.values(this.spec.datasets).flatMap((rows) => rows.map((row) => row.policy)));
    const spec = structuredClone(this.spec), excess = this.fit(), redrawn = make("div", { className: "redrawn chart-wrapper", hidden: true });
    if (this.isOther) this.useOtherScale(spec, spec.datasets);
    for (const plot of this.plots(spec)) plot.width -= excess;
    this.picture.append(redrawn);
    const options = { mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    const { view } = await window.vegaEmbed(redrawn, spec, options);
    view.addEventListener("click", (_, item) => item?.datum?.policy && this.meta.prominent && highlight(item.datum.policy));
    const svg = redrawn.querySelector("svg");
    for (const name of ["role", "aria-label", ...(excess ? [] : ["width", "height"])]) svg.setAttribute(name, this.still.getAttribute(name)); // no jump
    for (const name of ["role", "aria-label", "aria-roledescription"]) for (const part of [redrawn, ...pick(`svg [${name}]`, redrawn)]) part.removeAttribute(name);
    this.view?.finalize();
    this.redrawn?.remove();
    [this.view, this.redrawn, redrawn.hidden] = [view, redrawn, false];
    this.picture.classList.add("is-redrawn");
    this.update();
  }

  // The logarithmic y axis in place of the linear one, or the reverse.
  useOtherScale(part, sets) {
    if (JSON.stringify(part?.y?.scale?.domain) === JSON.stringify(this.meta.y.scale.domain)) {
      const { title, scale, axis } = this.meta.other_y;
      part.y = { ...part.y, title, scale, axis };
    }
    if (sets) {
      for (const row of sets.names ?? []) row.at = row.other;
      for (const row of [...(sets.means ?? []), ...(sets.forecasts ?? [])]) {
        if ("bottom" in row) row.bottom = Math.max(row.low, this.meta.other_y.scale.domain[0]);
      }
    }
    for (const [key, value] of Object.entries(part ?? {})) if (typeof value === "object" && key !== "datasets") this.useOtherScale(value);
  }

  update() {
    for (const svg of [this.still, this.redrawn?.querySelector("svg")]) if (svg) markGeneration(svg, this.meta.generations);
    if (!this.view || !this.meta.prominent) return;
    const own = [...chosen].filter((policy) => this.policies.has(policy));
    this.view.signal("shown", own.length ? own : this.meta.prominent).runAsync();
  }
}

// A vertical line at the slider's generation in every plot of a figure whose x axes are generations 1 to `last`.
function markGeneration(svg, last) {
  for (const part of pick(".now", svg)) part.remove();
  if (!now || !(last > 1) || now > last) return;
  for (const frame of pick(".role-frame > g > .background, .role-scope:not([class*=pathgroup]) > g > .background", svg)) {
    const [, width, height] = /h([\d.]+)v([\d.]+)/.exec(frame.getAttribute("d")) ?? [];
    if (!(width > 0 && height > 0) || frame.closest(".role-legend")) continue;
    const [line, label] = ["path", "text"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    const x = 8 + ((now - 1) / (last - 1)) * (width - 16), isRight = x > width / 2;
    for (const part of [line, label]) part.setAttribute("class", "now"), frame.parentNode.append(part);
    line.setAttribute("d", `M${x} 0V${height}`);
    label.setAttribute("transform", `translate(${x + (isRight ? -4 : 4)} 10)`), label.setAttribute("text-anchor", isRight ? "end" : "start");
    label.textContent = `t = ${now}`;
  }
}

function highlight(policy) {
  if (!chosen.delete(policy)) chosen.add(policy);
  for (const button of pick("[data-highlight]")) button.setAttribute("aria-pressed", chosen.has(button.dataset.highlight));
  for (const drawing of drawings.values()) drawing.update();
}

// One generation of every policy side by side, or several in rows of policies, in a picture of samples.
function arrange(svg, times, isWrapped) {
  const [cell, high, left] = svg.dataset.grid.split(" ").map(Number), strips = pick(".strip", svg);
  const headings = strips.map((strip) => strip.querySelector(".heading"));
  const column = Math.max(cell, ...(isWrapped ? headings.map((heading) => heading.getBBox().width + 8) : [])) + 16;
  const n = isWrapped ? Math.min(1 + strips.length, Math.max(1, Math.floor(svg.parentNode.clientWidth / column))) : 1 + times.length;
  const put = (part, i, y = 0) => {
    part.setAttribute("transform", `translate(${left + (i % n) * column} ${Math.floor(i / n) * high + y})`);
    part.removeAttribute("display");
  };
  for (const part of pick(".cell, .again", svg)) part.setAttribute("display", "none");
  strips.forEach((strip, row) => {
    const cells = pick(".cell", strip), wanted = cells.filter(({ dataset }) => times.includes(+dataset.t));
    const shown = isWrapped && row ? wanted : [cells[0], ...wanted];
    shown.forEach((part, i) => put(part, isWrapped ? (row ? row + 1 : i) : row * n + i, 42));
    put(headings[row], isWrapped ? row + 1 : row * n);
  });
  const size = [Math.ceil(left + n * column), (isWrapped ? Math.ceil((1 + strips.length) / n) : strips.length) * high];
  svg.setAttribute("width", size[0]), svg.setAttribute("height", size[1]), svg.setAttribute("viewBox", `0 0 ${size.join(" ")}`);
}

// The slider shows one generation of all samples and marks it in all curves; a gallery without it shows the one before.
const slider = make("input", { type: "range", min: 0, value: 0, ariaLabel: "Generation of all samples" });
const shown = make("output"), everything = make("input", { type: "checkbox" });
const timesOf = (gallery) => [...new Set(pick("[data-t]", gallery).map((part) => +part.dataset.t).filter((t) => t))].sort((a, b) => a - b);
const galleries = new Map(pick("figure.gallery").map((gallery) => [gallery, timesOf(gallery)]));
const steps = [...new Set([...galleries.values()].flat())].sort((a, b) => a - b);
const onPaper = matchMedia("print");

function showGeneration(event) {
  const wanted = steps[slider.value];
  if (event?.target === slider) now = wanted; // curves have no line before the reader asks for one
  slider.setAttribute("aria-valuetext", `generation ${wanted} of ${steps.at(-1)}`);
  shown.textContent = `t = ${wanted}`;
  for (const [gallery, times] of galleries) {
    const nearest = times.findLast((t) => t <= wanted) ?? times[0], middle = times[Math.floor((times.length - 1) / 2)];
    const isOne = !everything.checked && !onPaper.matches;
    const visible = onPaper.matches ? [...new Set([times[0], middle, times.at(-1)])] : isOne ? [nearest] : times;
    gallery.classList.toggle("one", isOne);
    for (const svg of pick("svg[data-grid]", gallery)) arrange(svg, visible, isOne);
    for (const part of pick("td[data-t], th[data-t], .table[data-t]", gallery)) part.hidden = +part.dataset.t > 0 && !visible.includes(+part.dataset.t);
  }
  for (const drawing of drawings.values()) drawing.update();
}

function makeTools(name, svg, drawing) {
  const tools = make("p", { className: "tools" });
  const add = (textContent, label, onclick) => tools.append(make("button", { type: "button", textContent, ariaLabel: `${label}: ${name}`, onclick }));
  if (drawing?.meta.other_y) {
    add(drawing.meta.y.scale.type === "log" ? "linear scale" : "log scale", "Change the scale", async ({ currentTarget }) => {
      drawing.isOther = !drawing.isOther;
      currentTarget.ariaPressed = drawing.isOther;
      await drawing.draw();
    });
    tools.firstChild.ariaPressed = false;
  }
  add("SVG", "Save as SVG", () => download(`${name}.svg`, "image/svg+xml", svgText(svg())));
  add("PNG", "Save as PNG", async () => download(`${name}.png`, "image/png", await toPng(svgText(svg()))));
  add("PDF", "Save as PDF", async () => download(`${name}.pdf`, "application/pdf", await toPdf(svgText(svg()))));
  return tools;
}

for (const figure of pick("figure[data-name]")) {
  const drawing = new Drawing(figure);
  drawings.set(figure, drawing);
  figure.append(makeTools(figure.dataset.name, () => drawing.redrawn?.querySelector("svg") ?? drawing.still, drawing));
}
pick("figure.gallery svg[data-grid]").forEach((svg, i) => svg.closest(".scroll-x").after(makeTools(`samples-${i + 1}`, () => svg)));
for (const table of pick("table[data-csv]")) {
  const button = make("button", { type: "button", textContent: "CSV", ariaLabel: `Save as CSV: ${table.dataset.csv}`, className: "csv" });
  button.addEventListener("click", () => download(`${table.dataset.csv}.csv`, "text/csv", "\ufeff" + tableToCsv(table)));
  (table.closest(".scroll-x") ?? table).after(button);
}
// The controls of the whole page, at its lower edge: buttons that highlight policies, and the slider.
function addControls() {
  const labels = new Map(pick(".policy-label").map((label) => [label.querySelector(".name").textContent, label]));
  const bar = make("div", { className: "controls", role: "group", ariaLabel: "Policies and generation" });
  if (labels.size > 1) {
    const list = make("div", { className: "list" }), details = make("details");
    for (const [name, label] of labels) {
      const button = make("button", { type: "button", ariaPressed: false, onclick: () => highlight(name) });
      button.dataset.highlight = name;
      button.append(label.cloneNode(true));
      list.append(button);
    }
    details.append(make("summary", { textContent: "Policies" }), list);
    bar.append(details);
  }
  if (steps.length > 1) {
    const all = make("label", { textContent: "all" });
    all.prepend(everything);
    bar.append(slider, shown, all);
    slider.max = slider.value = steps.length - 1;
    for (const part of [slider, everything]) part.addEventListener("input", showGeneration);
    onPaper.addEventListener("change", showGeneration);
    addEventListener("resize", showGeneration);
    for (const details of pick("details:has(svg[data-grid])")) details.addEventListener("toggle", showGeneration);
    showGeneration();
  }
  if (bar.childElementCount) document.body.append(bar);
}
addControls();
if ("DecompressionStream" in window) {
  let queue = Promise.resolve();
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target } of entries.filter((entry) => entry.isIntersecting)) {
        watcher.unobserve(target);
        queue = queue.then(() => drawings.get(target).draw());
      }
    },
    { rootMargin: "200px" },
  );
  for (const figure of drawings.keys()) watcher.observe(figure);
}

// Molecules: a picture contains the positions of its atoms in drawing order; all pictures of one molecule rotate together.
function makeRotatable(view) {
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const molecules = [...view.querySelectorAll("[data-positions]")].map((group) => {
    return { group, atoms: [...group.children], at: numbers(group.dataset.positions), bonds: numbers(group.dataset.bonds) };
  });
  const identity = [1, 0, 0, 0, 1, 0, 0, 0, 1];
  let rotation = identity;
  let pending = false;

  function draw() {
    pending = false;
    for (const { group, atoms, at, bonds } of molecules) {
      const rotated = atoms.map((_, i) => [0, 3, 6].map((r) => [0, 1, 2].reduce((sum, k) => sum + rotation[r + k] * at[3 * i + k], 0)));
      const halves = atoms.map(() => "");
      const half = (a, b) => (halves[a] += `M${rotated[a][0]} ${rotated[a][1]}L${(rotated[a][0] + rotated[b][0]) / 2} ${(rotated[a][1] + rotated[b][1]) / 2}`);
      for (let i = 0; i < bonds.length; i += 2) half(bonds[i], bonds[i + 1]), half(bonds[i + 1], bonds[i]);
      atoms.forEach((atom, i) => {
        const [bond, ball] = atom.children;
        bond.setAttribute("d", halves[i]);
        ball.setAttribute("cx", rotated[i][0]);
        ball.setAttribute("cy", rotated[i][1]);
      });
      const order = atoms.map((_, i) => i).sort((a, b) => rotated[a][2] - rotated[b][2]);
      group.append(...order.map((i) => atoms[i]));
    }
  }

  // Rotates about the vertical axis by `across`, then about the horizontal axis by `down`, in radians.
  function rotateBy(across, down) {
    const [c, s, d, e] = [Math.cos(across), Math.sin(across), Math.cos(down), Math.sin(down)];
    const step = [c, 0, s, -s * e, d, c * e, -s * d, -e, c * d];
    rotation = step.map((_, k) => [0, 1, 2].reduce((sum, j) => sum + step[3 * Math.floor(k / 3) + j] * rotation[3 * j + (k % 3)], 0));
    requestDraw();
  }

  function requestDraw() {
    if (!pending) requestAnimationFrame(draw);
    pending = true;
  }

  view.addEventListener("pointerdown", (event) => view.setPointerCapture(event.pointerId));
  view.addEventListener("pointermove", (event) => {
    if (view.hasPointerCapture(event.pointerId)) rotateBy(event.movementX / 80, event.movementY / 80);
  });
  view.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
    if (event.key === "Home") (rotation = identity), requestDraw();
    else if (event.key in steps) rotateBy(...steps[event.key]);
    else return;
    event.preventDefault();
  });
}
document.querySelectorAll(".rotatable").forEach(makeRotatable);
document.querySelectorAll(".script-only").forEach((hint) => (hint.hidden = false));
document.querySelectorAll("[data-print]").forEach((button) => button.addEventListener("click", () => print()));
