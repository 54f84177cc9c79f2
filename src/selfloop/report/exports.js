// Saves figures as SVG, PNG and PDF, and tables as CSV, in light colors, from what the page shows.
function download(name, type, content) {
  const link = Object.assign(document.createElement("a"), { download: name, href: URL.createObjectURL(new Blob([content], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function svgText(shown) {
  const [, , width, height] = shown.getAttribute("viewBox").split(/[ ,]+/);
  const svg = shown.cloneNode(true);
  for (const part of svg.querySelectorAll(".now, [display=none]")) part.remove();
  for (const name of ["style", "class", "aria-label"]) svg.removeAttribute(name);
  for (const [name, value] of Object.entries({ width, height, xmlns: "http://www.w3.org/2000/svg" })) svg.setAttribute(name, value);
  const text = new XMLSerializer().serializeToString(svg).replace(/var\(--c([0-9a-f]{6})\)/g, "#$1");
  return text.replace(/<svg [^>]*>/, `$&<rect width="${width}" height="${height}" fill="#fdfdfc"/>`);
}

async function loadImage(address) {
  const image = Object.assign(new Image(), { src: address });
  await image.decode();
  return image;
}

async function toPng(text) {
  const image = await loadImage("data:image/svg+xml;charset=utf-8," + encodeURIComponent(text));
  const canvas = Object.assign(document.createElement("canvas"), { width: 3 * image.width, height: 3 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done));
}

async function deflate(bytes) {
  const packed = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return bytesToText(new Uint8Array(await new Response(packed).arrayBuffer()));
}
const bytesToText = (bytes) => bytes.reduce((parts, byte) => (parts.push(String.fromCharCode(byte)), parts), []).join("");
const textToBytes = (text) => Uint8Array.from(text, (c) => c.charCodeAt(0));

// Characters of the fonts that every PDF reader has: Helvetica in the Windows encoding, and Symbol.
const WINDOWS = { "€": 128, "…": 133, "‘": 145, "’": 146, "“": 147, "”": 148, "•": 149, "–": 150, "—": 151 };
const SYMBOLS = { "−": 45, "≤": 163, "∞": 165, "→": 174, "≥": 179, "≠": 185, "≈": 187, "√": 214, "Σ": 83, "Δ": 68 };
[..."αβχδεφγηικλμνοπθρστυωξψζ"].forEach((c, i) => (SYMBOLS[c] = "abcdefghiklmnopqrstuwxyz".charCodeAt(i)));

const INHERITED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "font-size", "font-weight", "text-anchor", "fill-opacity", "stroke-opacity"];
const brush = document.createElement("canvas").getContext("2d");

// Vector graphics: paths, lines, rectangles, circles, clips, images and text of an SVG, as operators of a PDF page.
async function toPdf(text) {
  const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
  const width = +svg.getAttribute("width"), height = +svg.getAttribute("height");
  const ops = [`1 0 0 -1 0 ${height} cm`], states = [], images = [];
  const round = (...numbers) => numbers.map((x) => +x.toFixed(3)).join(" ");

  function number(node, name) {
    return parseFloat(node.getAttribute(name) ?? 0) || 0;
  }

  function color(value, operator) {
    if (!value || value === "none" || value === "transparent") return false;
    brush.fillStyle = value;
    const parts = brush.fillStyle.match(/[0-9a-f]{2}/gi);
    ops.push(round(...parts.slice(0, 3).map((hex) => parseInt(hex, 16) / 255)) + " " + operator);
    return true;
  }

  function paint(path, s) {
    const alphas = `/ca ${s.alpha * (s["fill-opacity"] ?? 1)} /CA ${s.alpha * (s["stroke-opacity"] ?? 1)}`;
    if (!states.includes(alphas)) states.push(alphas);
    ops.push(`/G${states.indexOf(alphas)} gs`);
    const fills = color(s.fill ?? "#000000", "rg"), strokes = color(s.stroke, "RG");
    if (strokes) ops.push(`${s["stroke-width"] ?? 1} w ${s["stroke-linecap"] === "round" ? 1 : 0} J [${s["stroke-dasharray"]?.replace(/,/g, " ").replace("none", "") ?? ""}] 0 d`);
    if (path && (fills || strokes)) ops.push(path, fills && strokes ? "B" : fills ? "f" : "S");
  }

  function write(node, s) {
    const size = parseFloat(s["font-size"] ?? 11), bold = s["font-weight"] === "bold" || +s["font-weight"] >= 600;
    brush.font = `${bold ? "bold" : "normal"} ${size}px Helvetica, Arial, Liberation Sans, sans-serif`;
    let down = number(node, "y");
    for (const line of node.childElementCount ? node.children : [node]) {
      if (line !== node) down += number(line, "dy");
      const words = line.textContent, share = { middle: 0.5, end: 1 }[s["text-anchor"]] ?? 0;
      let x = number(node, "x") - share * brush.measureText(words).width;
      paint("", { ...s, stroke: "none" });
      for (const run of words.match(/[−≤∞→≥≠≈√ΣΔα-ω]+|[^−≤∞→≥≠≈√ΣΔα-ω]+/g) ?? []) {
        const codes = [...run].map((c) => SYMBOLS[c] ?? WINDOWS[c] ?? (c.charCodeAt(0) < 256 ? c.charCodeAt(0) : 63));
        const hex = codes.map((code) => code.toString(16).padStart(2, "0")).join("");
        ops.push(`BT /${run[0] in SYMBOLS ? "FS" : bold ? "FB" : "FN"} ${size} Tf 1 0 0 -1 ${round(x, down)} Tm <${hex}> Tj ET`);
        x += brush.measureText(run).width;
      }
    }
  }

  async function place(node) {
    const image = await loadImage(node.getAttribute("href") ?? node.getAttribute("xlink:href"));
    const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fdfdfc";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, i) => i % 4 < 3);
    const [w, h] = [number(node, "width"), number(node, "height")];
    images.push({ head: `/Type /XObject /Subtype /Image /Width ${canvas.width} /Height ${canvas.height} /ColorSpace /DeviceRGB /BitsPerComponent 8`, data: await deflate(pixels) });
    ops.push(`q ${w} 0 0 ${-h} ${number(node, "x")} ${number(node, "y") + h} cm /I${images.length - 1} Do Q`);
  }

  async function walk(node, inherited) {
    const s = { ...inherited, alpha: inherited.alpha * (node.getAttribute("opacity") ?? 1) };
    for (const name of INHERITED) s[name] = node.getAttribute(name) ?? s[name];
    const matrix = node.transform?.baseVal.consolidate()?.matrix;
    ops.push("q");
    if (matrix) ops.push(round(matrix.a, matrix.b, matrix.c, matrix.d, matrix.e, matrix.f) + " cm");
    const clip = /url\(["']?#([^"')]+)/.exec(node.getAttribute("clip-path") ?? "");
    if (clip) ops.push([...svg.querySelector(`[id="${clip[1]}"]`).children].map(shape).join("\n"), "W n");
    if (node.localName === "text") write(node, s);
    else if (node.localName === "image") await place(node);
    else if (node.localName === "use") {
      ops.push(`1 0 0 1 ${number(node, "x")} ${number(node, "y")} cm`);
      await walk(svg.querySelector(`[id="${node.getAttribute("href").slice(1)}"]`), s);
    } else if (["svg", "g"].includes(node.localName)) for (const child of node.children) await walk(child, s);
    else if (shape(node)) paint(shape(node), s);
    ops.push("Q");
  }

  function shape(node) {
    const [x, y, w, h] = ["x", "y", "width", "height"].map((name) => number(node, name));
    const [a, b, c, d] = ["x1", "y1", "x2", "y2"].map((name) => number(node, name));
    const [cx, cy, r] = ["cx", "cy", "r"].map((name) => number(node, name));
    if (node.localName === "rect") return `${round(x, y, w, h)} re`;
    if (node.localName === "line") return `${round(a, b)} m ${round(c, d)} l`;
    if (node.localName === "circle") return pathOps(`M${cx - r} ${cy}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`, round);
    return node.localName === "path" ? pathOps(node.getAttribute("d") ?? "", round) : "";
  }

  await walk(svg, { alpha: 1 });
  const names = (letter, list, first) => list.map((_, i) => `/${letter}${i} ${first + i} 0 R`).join(" ");
  const fonts = ["Helvetica /Encoding /WinAnsiEncoding", "Helvetica-Bold /Encoding /WinAnsiEncoding", "Symbol"];
  const content = { head: "", data: await deflate(textToBytes(ops.join("\n"))) }, first = 8 + states.length;
  const resources = `/Font << /FN 5 0 R /FB 6 0 R /FS 7 0 R >> /ExtGState << ${names("G", states, 8)} >> /XObject << ${names("I", images, first)} >>`;
  const objects = [
    "<< /Type /Catalog /Pages 2 0 R >>",
    "<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
    `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${width} ${height}] /Contents 4 0 R /Resources << ${resources} >> >>`,
    content,
    ...fonts.map((font) => `<< /Type /Font /Subtype /Type1 /BaseFont /${font} >>`),
    ...states.map((state) => `<< /Type /ExtGState ${state} >>`),
    ...images,
  ];
  let file = "%PDF-1.4\n";
  const starts = objects.map((object, i) => {
    const start = file.length;
    const stream = object.data === undefined ? object : `<< ${object.head} /Filter /FlateDecode /Length ${object.data.length} >>\nstream\n${object.data}\nendstream`;
    file += `${i + 1} 0 obj\n${stream}\nendobj\n`;
    return `${String(start).padStart(10, "0")} 00000 n \n`;
  });
  const end = `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${starts.join("")}trailer\n<< /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${file.length}\n%%EOF\n`;
  return textToBytes(file + end);
}

// A path of an SVG as operators of a PDF. Arcs, of ellipses along the axes, become Bézier curves of at most a quarter turn.
function pathOps(d, round) {
  const ops = [], sizes = { m: 2, l: 2, h: 1, v: 1, c: 6, a: 7, z: 0 };
  let at = [0, 0], start = at;
  for (const [, code, rest] of d.matchAll(/([MLHVCAZ])([^MLHVCAZ]*)/gi)) {
    const numbers = (rest.match(/-?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/gi) ?? []).map(Number), kind = code.toLowerCase();
    const base = () => (code === kind ? at : [0, 0]);
    for (let i = 0; i === 0 || i < numbers.length; i += sizes[kind] || 1) {
      const n = numbers.slice(i, i + sizes[kind]), [x, y] = base();
      if (kind === "z") ops.push("h"), (at = start);
      else if (kind === "h") ops.push(round(...(at = [x + n[0], at[1]])) + " l");
      else if (kind === "v") ops.push(round(...(at = [at[0], y + n[0]])) + " l");
      else if (kind === "a") ops.push(...arcOps(at, n, (at = [x + n[5], y + n[6]]), round));
      else {
        const points = n.map((value, j) => value + (j % 2 ? y : x));
        at = points.slice(-2);
        if (kind === "m" && i === 0) start = at;
        ops.push(`${round(...points)} ${kind === "m" && i > 0 ? "l" : kind}`);
      }
    }
  }
  return ops.join("\n");
}

function arcOps(from, [rx, ry, , large, sweep], to, round) {
  const [dx, dy] = [(from[0] - to[0]) / 2 / rx, (from[1] - to[1]) / 2 / ry], q = dx * dx + dy * dy;
  if (!q) return [];
  const grow = Math.max(1, Math.sqrt(q)), [a, b] = [rx * grow, ry * grow], k = Math.sqrt(Math.max(0, (grow * grow) / q - 1)) * (large === sweep ? -1 : 1);
  const center = [(from[0] + to[0]) / 2 + k * dy * rx, (from[1] + to[1]) / 2 - k * dx * ry];
  const angle = ([x, y]) => Math.atan2((y - center[1]) / b, (x - center[0]) / a);
  let turn = angle(to) - angle(from);
  if (sweep ? turn < 0 : turn > 0) turn += sweep ? 2 * Math.PI : -2 * Math.PI;
  const n = Math.ceil(Math.abs(turn) / (Math.PI / 2) - 1e-9), step = turn / n, bend = (4 / 3) * Math.tan(step / 4);
  return Array.from({ length: n }, (_, i) => {
    const [u, v] = [angle(from) + i * step, angle(from) + (i + 1) * step];
    const point = (x, y) => [center[0] + a * x, center[1] + b * y];
    const ends = [point(Math.cos(u) - bend * Math.sin(u), Math.sin(u) + bend * Math.cos(u)), point(Math.cos(v) + bend * Math.sin(v), Math.sin(v) - bend * Math.cos(v)), point(Math.cos(v), Math.sin(v))];
    return round(...ends.flat()) + " c";
  });
}

// A table with full precision; an interval is three columns. Cells that span several rows or columns are repeated.
function tableToCsv(table) {
  const grid = [];
  [...table.rows].forEach((row, y) => {
    grid[y] ??= [];
    for (const cell of row.cells) {
      const x = grid[y].findIndex((other) => !other), left = x < 0 ? grid[y].length : x;
      for (let j = 0; j < cell.rowSpan; j++) for (let i = 0; i < cell.colSpan; i++) (grid[y + j] ??= [])[left + i] = cell;
    }
  });
  const n = Math.max(...grid.map((row) => row.length)), heads = table.tHead?.rows.length ?? 0;
  const text = (cell) => cell?.dataset.value ?? cell?.textContent.replace(/\s+/g, " ").trim() ?? "";
  const wide = Array.from({ length: n }, (_, i) => grid.slice(heads).some((row) => row[i]?.dataset.low !== undefined));
  const title = (i) => [...new Set(grid.slice(0, heads).map((row) => text(row[i])))].join(" ");
  const spread = (list, fill) => list.flatMap((value, i) => (wide[i] ? fill(value, i) : [value]));
  const lines = [spread(wide.map((_, i) => title(i)), (name) => [name, `${name} low`, `${name} high`])];
  for (const row of grid.slice(heads)) lines.push(spread(wide.map((_, i) => text(row[i])), (value, i) => [value, row[i]?.dataset.low ?? "", row[i]?.dataset.high ?? ""]));
  return lines.map((line) => line.map((value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value)).join(",") + "\r\n").join("");
}
