"use strict";
// Figures are still pictures until a reader asks: only then is the bundled Vega unpacked and run.
let vega;

async function unpackVega() {
  const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (c) => c.charCodeAt(0));
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(plain).text();
  document.head.append(script);
}

// The description is drawn in the light colours; each is a CSS variable whose value the scheme decides.
function inTheme(text) {
  const colors = getComputedStyle(document.documentElement);
  return text.replace(/"#([0-9a-f]{6})"/g, (found, hex) => {
    const value = colors.getPropertyValue("--c" + hex).trim();
    return value ? JSON.stringify(value) : found;
  });
}

for (const button of document.querySelectorAll("button.live")) {
  button.hidden = !("DecompressionStream" in window);
  button.addEventListener("click", async () => {
    const figure = button.closest("figure");
    const spec = JSON.parse(inTheme(figure.querySelector("script").textContent));
    button.disabled = true;
    vega ??= unpackVega();
    await vega;
    const actions = { export: { svg: true, png: true }, source: false, compiled: false, editor: false };
    const options = { mode: "vega-lite", renderer: "svg", actions, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
    await window.vegaEmbed(figure.querySelector(".picture"), spec, options);
    const picks = JSON.stringify(spec).includes('"bind":"legend"') ? "; click a policy in the legend to single it out" : "";
    button.replaceWith(`Point at a mark for its numbers${picks}.`);
  });
}

// Molecules: a picture carries the places of its atoms, in the order in which they are drawn; all of a scene turn together.
function turnable(scene) {
  const numbers = (text) => (text ? text.split(" ").map(Number) : []);
  const molecules = [...scene.querySelectorAll("[data-at]")].map((group) => {
    return { group, atoms: [...group.children], at: numbers(group.dataset.at), bonds: numbers(group.dataset.bonds) };
  });
  const upright = [1, 0, 0, 0, 1, 0, 0, 0, 1];
  let turn = upright;
  let waiting = false;

  function draw() {
    waiting = false;
    for (const { group, atoms, at, bonds } of molecules) {
      const places = atoms.map((_, i) => [0, 3, 6].map((r) => turn[r] * at[3 * i] + turn[r + 1] * at[3 * i + 1] + turn[r + 2] * at[3 * i + 2]));
      const halves = atoms.map(() => "");
      const half = (a, b) => (halves[a] += `M${places[a][0]} ${places[a][1]}L${(places[a][0] + places[b][0]) / 2} ${(places[a][1] + places[b][1]) / 2}`);
      for (let i = 0; i < bonds.length; i += 2) half(bonds[i], bonds[i + 1]), half(bonds[i + 1], bonds[i]);
      atoms.forEach((atom, i) => {
        const [bond, ball] = atom.children;
        bond.setAttribute("d", halves[i]);
        ball.setAttribute("cx", places[i][0]);
        ball.setAttribute("cy", places[i][1]);
      });
      const order = atoms.map((_, i) => i).sort((a, b) => places[a][2] - places[b][2]);
      group.append(...order.map((i) => atoms[i]));
    }
  }

  // Turns about the page's upright axis by `across`, then about its level axis by `down`, in radians.
  function by(across, down) {
    const [c, s, d, e] = [Math.cos(across), Math.sin(across), Math.cos(down), Math.sin(down)];
    const step = [c, 0, s, -s * e, d, c * e, -s * d, -e, c * d];
    turn = step.map((_, k) => [0, 1, 2].reduce((sum, j) => sum + step[3 * Math.floor(k / 3) + j] * turn[3 * j + (k % 3)], 0));
    show();
  }

  function show() {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  }

  scene.addEventListener("pointerdown", (event) => scene.setPointerCapture(event.pointerId));
  scene.addEventListener("pointermove", (event) => {
    if (scene.hasPointerCapture(event.pointerId)) by(event.movementX / 80, event.movementY / 80);
  });
  scene.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-0.2, 0], ArrowRight: [0.2, 0], ArrowUp: [0, -0.2], ArrowDown: [0, 0.2] };
    if (event.key === "Home") (turn = upright), show();
    else if (event.key in steps) by(...steps[event.key]);
    else return;
    event.preventDefault();
  });
}
document.querySelectorAll(".turns").forEach(turnable);
document.querySelectorAll(".scripted").forEach((hint) => (hint.hidden = false));
