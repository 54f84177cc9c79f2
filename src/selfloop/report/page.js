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
    button.replaceWith("Point at a marker for its numbers; click a policy in the legend to single it out.");
  });
}
