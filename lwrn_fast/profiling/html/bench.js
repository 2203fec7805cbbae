const given = data.options;
const KINDS = {
  network: ["Whole networks", "A normalised image to logits."],
  "image to labels": ["Image to labels", "An image in uint8, normalised, through the network, to the label map of its size."],
  crp: ["Chained residual pooling (crp)", "At the levels of these networks."],
  fusion: ["Fusion", "Convolutions, upsampling, sum and activation, at the levels of these networks."],
  upsample_argmax: ["upsample_argmax", "Logits to the label map."],
};
// a colour each, wherever it appears
const COLOURS = {
  "ours": "a", "ours, eager": "b", "ours, from NCHW": "b", "eager, channels-last": "c", "eager, NCHW": "d",
  "torch.compile": "e", "ONNX Runtime": "f", "OpenVINO": "g",
};
const colour = name => `var(--${COLOURS[name] || "h"})`;

main.append(make("header", {},
  make("h1", {}, data.title),
  make("p", {}, `${shape(given.size)}, ${given.dtype}, ${given.threads} thread${given.threads === 1 ? "" : "s"} on ${data.machine.cpu}`)));

const whole = data.cases.filter(row => ["network", "image to labels"].includes(row.kind) && "ours" in row.ms);
main.append(make("div", { class: "tiles" }, ...whole.map(row => {
  const others = Object.keys(row.ratio).filter(name => !name.startsWith("ours")).sort((a, b) => row.ratio[a] - row.ratio[b]);
  return make("div", { class: "tile", style: `--colour: ${colour("ours")}` },
    make("span", {}, `${row.where}, ${row.kind}, ours`),
    make("b", { "data-value": row.ms.ours }, ms(row.ms.ours)),
    make("span", {}, others.length ? `${others[0]}, the fastest other, takes ${digits(row.ratio[others[0]])} × as long` : "nobody to compare with"));
})));

const rows = data.cases.flatMap(row => Object.keys(row.ms).map(name => ({ row, name })));
for (const [kind, [title, text]] of Object.entries(KINDS)) {
  const cases = data.cases.filter(row => row.kind === kind);
  if (!cases.length) continue;
  const bars = drawn(`bars-${kind.replaceAll(" ", "-")}`, `milliseconds: ${title}`, (svg, width) => {
    const left = 136, right = 118, each = 17;
    let y = 0;
    for (const row of cases) {
      const longest = Math.max(...Object.values(row.ms)), scale = Math.max(30, width - left - right) / longest;
      const own = kind === "network" || kind === "image to labels", names = Object.entries(row.ms);
      svg.append(make("text", { x: 0, y: y + 14, class: "name" }, own ? row.where : `${row.name} (${row.where})`));
      y += 22;
      const top = y, figures = [];
      for (const [name, value] of names) {
        const length = Math.max(1, value * scale), ratio = row.ratio[name], middle = y + each / 2;
        svg.append(
          make("text", { x: left - 8, y: middle, "text-anchor": "end", "dominant-baseline": "central" }, name),
          make("rect", {
            class: "bar", x: left, y: y + 1, width: length, height: each - 4, rx: 2, fill: colour(name),
            "data-case": row.name, "data-name": name, "data-value": value,
            ...hint(`${row.name}\n${name}: ${ms(value)}, median of ${row.rounds[name]}\nlimit of the machine: ${ms(row.limit_ms)}`),
          }));
        figures.push(make("text", { class: "over", x: left + length + 6, y: middle, "dominant-baseline": "central" },
          ms(value) + (ratio === undefined || name === "ours" ? "" : `, × ${digits(ratio)}`)));
        y += each;
      }
      const limit = left + row.limit_ms * scale;
      if (row.limit_ms <= longest) svg.append(make("line", { class: "limit", x1: limit, x2: limit, y1: top, y2: y - 2 }));
      svg.append(...figures);
      y += 12;
    }
    return y;
  });
  section(title, `${text} Shorter is better; × says how many times as long as ours. The red line is the machine's limit.`, bars);
}

section("All figures", "Medians of rounds in which all took turns; a click on a heading sorts.", table("cases", [
  { name: "kind", text: true, value: ({ row }) => row.kind },
  { name: "case", text: true, value: ({ row }) => row.name },
  { name: "who", text: true, value: ({ name }) => name },
  { name: "ms", value: ({ row, name }) => row.ms[name], show: digits },
  { name: "× ours", value: ({ row, name }) => row.ratio[name], show: digits },
  { name: "% of limit", value: ({ row, name }) => 100 * row.limit_ms / row.ms[name], show: digits },
  { name: "rounds", value: ({ row, name }) => row.rounds[name] },
], rows));

section("How it was measured", "Everybody's result is checked before the clock runs. The limit of a case is what its operations take at the rate "
  + "of matrix products, or its bytes at that of a copy, whichever is longer.",
  facts([
    ["measured", data.when],
    ["limits", `${digits(data.limits.operations_per_s / 1e9)} GFLOP/s in matrix products, ${digits(data.limits.bytes_per_s / 1e9)} GB/s in copies`],
    ...Object.entries(data.absent).map(([name, reason]) => [`without ${name}`, reason]),
    ...data.cases.flatMap(row => Object.entries(row.failed).map(([name, reason]) => [`${name} failed`, `${row.kind} ${row.name}: ${reason}`])),
    ...machineFacts(),
  ]));
