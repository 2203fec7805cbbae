const colour = name => `var(--${name})`;
const given = data.options, hidden = new Set();
const SHADES = [1, 0.6, 0.35];  // of the parts of a level
const speed = (row, name) => (row.ms[name] ? (row.flops + row.others) / row.ms[name] / 1e6 : 0);
const intensity = row => (row.bytes ? (row.flops + row.others) / row.bytes : 0);
const first = data.backends[0];

main.append(make("header", {},
  make("h1", {}, data.title),
  make("p", {}, `${given.batch}×${shape(given.size)}×3, ${given.dtype}, ${given.threads} thread${given.threads === 1 ? "" : "s"}`
    + ` on ${data.machine.gpu || data.machine.cpu} (${data.machine.device}); ${given.checkpoint ? given.checkpoint : "random weights"}`)));

main.append(make("div", { class: "tiles" }, ...data.backends.map(name => {
  const total = data.totals[name], ratio = data.totals[first].ms / total.ms;
  return make("div", { class: "tile", style: `--colour: ${colour(name)}` },
    make("span", {}, name + (name === "reference" ? ", plain PyTorch" : "")),
    make("b", { "data-value": total.ms }, ms(total.ms)),
    make("span", {}, (name === first ? "" : `${digits(ratio)} × as fast as ${first}; `)
      + `${digits(data.total.flops / total.ms / 1e6)} GFLOP/s; peak memory ${bytes(total.peak_bytes)}`));
})));

const keys = make("div", { class: "keys" }, ...data.backends.map(name => make("button", {
  type: "button", "aria-pressed": "true", style: `--colour: ${colour(name)}`,
  onclick: event => {
    hidden.has(name) ? hidden.delete(name) : hidden.add(name);
    event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(name)));
    roofline.redraw();
  },
}, make("i"), name)));

// where the time goes: a bar per group and backend, those of levels in their parts
const bars = drawn("bars", "milliseconds of each stage", (svg, width) => {
  const left = 92, right = 76, each = 13, gap = 10;
  const longest = Math.max(...data.groups.flatMap(group => data.backends.map(name => group.ms[name])));
  const scale = Math.max(40, width - left - right) / longest;
  let y = 4;
  for (const group of data.groups) {
    const height = each * data.backends.length;
    svg.append(make("text", { x: left - 10, y: y + height / 2, "text-anchor": "end", "dominant-baseline": "central", class: "name" }, group.name));
    data.backends.forEach((name, i) => {
      let x = left;
      const parts = group.parts.length ? group.parts : [group];
      parts.forEach((part, number) => {
        const length = Math.max(0.5, part.ms[name] * scale), what = part === group ? "" : ` ${part.name}`;
        svg.append(make("rect", {
          class: "bar", x, y: y + i * each, width: length, height: each - 2, rx: 2, fill: colour(name),
          "fill-opacity": SHADES[number], "data-group": group.name + what, "data-backend": name, "data-value": part.ms[name],
          ...hint(`${group.name}${what}, ${name}\n${ms(part.ms[name])}, ${digits(part.percent[name])} % of the limit\n`
            + `${digits(part.flops / 1e9)} GFLOP in convolutions, ${bytes(part.bytes)}`),
        }));
        x += length;
      });
      svg.append(make("text", { x: x + 6, y: y + i * each + each / 2 - 0.5, "dominant-baseline": "central" }, ms(group.ms[name])));
    });
    y += height + gap;
  }
  return y;
});
const parts = [...new Set(data.groups.flatMap(group => group.parts.map(part => part.name)))];
const legend = data.backends.map(name => make("span", { style: `--colour: ${colour(name)}` }, make("i"), name));
legend.push(...parts.map((part, i) => make("span", { style: "--colour: var(--ink)" }, make("i", { style: `opacity: ${SHADES[i]}` }), part)));
section("Where the time goes", "The image normalised, stages of the encoder, levels of the decoder from the deepest to the finest, the classifier, and the label map.",
  make("div", { class: "keys" }, ...legend), bars);

// roofline
const dots = data.layers.flatMap(layer => data.backends.filter(name => layer.flops + layer.others > 0 && layer.ms[name] > 0)
  .map(name => ({ layer, name, x: intensity(layer), y: speed(layer, name), share: layer.ms[name] / data.totals[name].layers_ms })))
  .sort((a, b) => b.share - a.share);
const roof = { flat: data.limits.operations_per_s / 1e9, slope: data.limits.bytes_per_s / 1e9 };
const roofline = drawn("roofline", "operations per second over operations per byte, and the limits of the machine", (svg, width) => {
  const height = Math.round(Math.min(520, Math.max(320, width * 0.52))), left = 48, right = 14, top = 24, bottom = 44;
  const knee = roof.flat / roof.slope, xs = [...dots.map(dot => dot.x), knee], ys = [...dots.map(dot => dot.y), roof.flat];
  const [x0, x1] = [Math.min(...xs) / 1.6, Math.max(...xs) * 2.2], [y0, y1] = [Math.min(...ys) / 1.6, Math.max(...ys) * 2];
  const place = (low, high, from, to) => value => from + (to - from) * Math.log(value / low) / Math.log(high / low);
  const px = place(x0, x1, left, width - right), py = place(y0, y1, height - bottom, top);
  const decades = (low, high) => {
    const found = [];
    for (let e = Math.ceil(Math.log10(low)); 10 ** e <= high; e++) found.push(e);
    return found;
  };
  const label = e => (e < 0 ? (10 ** e).toFixed(-e) : String(10 ** e));
  for (const e of decades(x0, x1)) {
    const x = px(10 ** e);
    svg.append(make("line", { class: "grid", x1: x, x2: x, y1: top, y2: height - bottom }),
      make("text", { x, y: height - bottom + 17, "text-anchor": "middle" }, label(e)));
  }
  for (const e of decades(y0, y1)) {
    const y = py(10 ** e);
    svg.append(make("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y }),
      make("text", { x: left - 8, y, "text-anchor": "end", "dominant-baseline": "central" }, label(e)));
  }
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, "operations per byte"),
    make("text", { x: 4, y: 13 }, "GFLOP/s"));
  const low = Math.max(x0, y0 / roof.slope);
  svg.append(make("path", { class: "roof", d: `M${px(low)},${py(low * roof.slope)}L${px(knee)},${py(roof.flat)}H${width - right}` }));
  for (const { layer, name, x, y, share } of dots)
    if (!hidden.has(name)) svg.append(make("circle", {
      class: "dot", cx: px(x), cy: py(y), r: 3 + 16 * Math.sqrt(share), fill: colour(name), tabindex: 0,
      "data-layer": layer.name, "data-backend": name, "data-x": x, "data-y": y,
      ...hint(`${layer.name}, ${name}\n${layer.group}: ${layer.what}, ${shape(layer.shape)}\n${ms(layer.ms[name])}, `
        + `${digits(100 * share)} % of all layers\n${digits(y)} GFLOP/s at ${digits(x)} operations per byte\n${digits(layer.percent[name])} % of the limit`),
    }));
  svg.append(make("text", { class: "roofed", x: width - right, y: 13, "text-anchor": "end" },
    `copy ${digits(roof.slope)} GB/s, matrix products ${digits(roof.flat)} GFLOP/s`));
  return height;
});
section("Roofline", "A dot per layer, the larger the longer it takes. The nearer to the line, the less there is to gain; "
  + "above the slope, the layer's data were in the caches.", keys, roofline);

// tables
const timed = data.backends.flatMap(name => [
  { name: `${name}, ms`, value: row => row.ms[name], show: digits },
  { name: "% of limit", value: row => row.percent[name], show: digits },
]);
const costs = [
  { name: "GFLOP", value: row => row.flops, show: value => digits(value / 1e9) },
  { name: "other Mop", value: row => row.others, show: value => digits(value / 1e6) },
  { name: "MB", value: row => row.bytes, show: value => digits(value / 1e6) },
];
const summary = table("stages", [{ name: "stage", text: true, value: row => row.title || row.name }, ...costs, ...timed],
  data.groups.flatMap(group => [group, ...group.parts.map(part => ({ ...part, rank: "part", title: `${group.name}: ${part.name}` }))])
    .concat({ ...data.total, rank: "sum" }));
section("Stages", "Each level with its fusion and its chained residual pooling (crp).", summary);

const find = make("input", {
  type: "search", placeholder: "filter: crp, level 1, conv 3x3", "aria-label": "filter",
  oninput: () => {
    const wanted = find.value.trim().toLowerCase();
    for (const row of document.querySelectorAll("#layers tbody tr")) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  },
});
section("Layers", "Every layer in the order in which it runs; a click on a heading sorts.", find, table("layers", [
  { name: "layer", text: true, value: row => row.name },
  { name: "of", text: true, value: row => row.group },
  { name: "what", text: true, value: row => row.what },
  { name: "result", text: true, value: row => shape(row.shape) },
  ...costs, ...timed,
], data.layers));

section("Operations", "What PyTorch's profiler saw in one run, each operation without those that it calls; trace.json shows when.",
  make("div", { class: "side" }, ...data.backends.map(name => make("div", {}, make("h3", {}, name), table(`ops-${name}`, [
    { name: "operation", text: true, value: row => row.name },
    { name: "ms", value: row => row.ms, show: digits },
    { name: "calls", value: row => row.calls },
  ], data.ops[name].slice(0, 12))))));

section("How it was measured", "Medians of rounds in which the backends took turns, as they are and with hooks. A moment belongs to one layer alone. Bytes are those of inputs, "
  + "weights and results, each once; the limit of a layer is what its operations take at the rate of matrix products, or its bytes "
  + "at that of a copy, whichever is longer.",
  facts([
    ["measured", data.when],
    ["limits", `${digits(roof.flat)} GFLOP/s in matrix products, ${digits(roof.slope)} GB/s in copies`],
    ...data.backends.map(name => [`backend ${name}`, `${ms(data.totals[name].ms)} without hooks, ${ms(data.totals[name].hooked_ms)} with them `
      + `(layers ${ms(data.totals[name].layers_ms)}, between them ${ms(data.totals[name].between_ms)}), ${data.totals[name].runs} rounds`]),
    ...Object.entries(data.absent).map(([name, reason]) => [`without ${name}`, reason]),
    ...machineFacts(),
  ]));
