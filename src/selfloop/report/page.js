"use strict";
// Figures are still pictures until a reader clicks; only then is the bundled Vega unpacked and run.
let vega;

async function unpackVega() {
  const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(plain).text();
  document.head.append(script);
}

// Replaces the light colors of a Vega-Lite description by those of the current color scheme.
function applyTheme(text) {
  const colors = getComputedStyle(document.documentElement);
  return text.replace(/"#([0-9a-f]{6})"/g, (match, hex) => {
    const value = colors.getPropertyValue("--c" + hex).trim();
    return value ? JSON.stringify(value) : match;
  });
}

for (const button of document.querySelectorAll("button.interactive")) {
  button.hidden = !("DecompressionStream" in window);
  button.addEventListener("click", async () => {
    const figure = button.closest("figure");
    const spec = JSON.parse(applyTheme(figure.querySelector("script").textContent));
    button.disabled = true;
    vega ??= unpackVega();
    await vega;
    const actions = { export: { svg: true, png: true }, source: false, compiled: false, editor: false };
    const options = { mode: "vega-lite", renderer: "svg", actions, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    await window.vegaEmbed(figure.querySelector(".picture"), spec, options);
    const hint = JSON.stringify(spec).includes('"bind":"legend"') ? "; click a policy in the legend to highlight it" : "";
    const note = Object.assign(document.createElement("span"), { tabIndex: -1, textContent: `Point at a mark for its values${hint}.` });
    button.replaceWith(note);
    note.focus({ preventScroll: true }); // otherwise the focus would go back to the start of the page
  });
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
