"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main"), tip = document.getElementById("tip");

// an element; attributes beginning with "on" are listeners
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "line", "path", "circle", "text"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// three digits that matter, and no exponent
function digits(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const places = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value))));
  return value.toFixed(Math.min(places, 4)).replace(/\B(?=(\d{3})+(?!\d)(?=\.|$))/g, places ? "" : " ");
}
const ms = value => digits(value) + " ms";
const bytes = value => (value === null ? "–" : digits(value / 1e6) + " MB");
const shape = sizes => sizes.join("×");

function section(title, text, ...children) {
  const node = make("section", {}, make("h2", {}, title), make("p", {}, text), ...children);
  main.append(node);
  return node;
}

function facts(pairs) {
  return make("dl", {}, ...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

function machineFacts() {
  const names = { cpu: "processor", isa: "instruction set of ours", "oneDNN isa": "instruction set of oneDNN" };
  return Object.entries(data.machine).filter(([, value]) => value).map(([name, value]) => [names[name] || name, value]);
}

// draws into a new SVG of the width there is, again when that changes
function drawn(id, label, draw) {
  const svg = make("svg", { id, role: "img", "aria-label": label });
  let last = 0;
  const again = () => {
    const width = Math.floor(svg.parentNode.clientWidth
      - parseFloat(getComputedStyle(svg.parentNode).paddingLeft) - parseFloat(getComputedStyle(svg.parentNode).paddingRight));
    if (width === last || width <= 0) return;
    last = width;
    svg.redraw();
  };
  svg.redraw = () => {
    svg.replaceChildren();
    const height = draw(svg, last);
    svg.setAttribute("height", height);
    svg.setAttribute("viewBox", `0 0 ${last} ${height}`);
  };
  addEventListener("resize", again);
  addEventListener("load", again);  // not an animation frame, which a page that nobody looks at need not get
  return svg;
}

function hint(text) {
  const show = event => {
    tip.textContent = text;
    tip.hidden = false;
    const box = event.target.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(innerWidth - size.width - 6, box.right + 8)) + "px";
    tip.style.top = Math.max(6, Math.min(innerHeight - size.height - 6, box.top - size.height - 8)) + "px";
  };
  const hide = () => { tip.hidden = true; };
  return { onpointerenter: show, onpointerleave: hide, onfocus: show, onblur: hide };
}

// columns: {name, value(row), show(value), text}; numbers to the right, and sorted from the largest
function table(id, columns, rows) {
  const body = make("tbody"), heads = columns.map(column => make("th", { class: column.text && "text", scope: "col" }));
  const fill = sorted => body.replaceChildren(...sorted.map(row => make("tr", { class: row.rank }, ...columns.map(column => {
    const value = column.value(row);
    return make("td", { class: column.text && "text", "data-value": value }, column.show ? column.show(value) : String(value));
  }))));
  columns.forEach((column, i) => heads[i].append(make("button", {
    type: "button",
    onclick: () => {
      const first = column.text ? "ascending" : "descending";
      const down = heads[i].getAttribute("aria-sort") === first ? { ascending: "descending", descending: "ascending" }[first] : first;
      heads.forEach(head => head.removeAttribute("aria-sort"));
      heads[i].setAttribute("aria-sort", down);
      const sign = down === "ascending" ? 1 : -1;
      fill([...rows].sort((a, b) => {
        const [x, y] = [column.value(a), column.value(b)];
        return sign * (column.text ? String(x).localeCompare(String(y), "en", { numeric: true }) : (x ?? -1) - (y ?? -1));
      }));
    },
  }, column.name)));
  fill(rows);
  return make("div", { class: "rows", id: `${id}-rows`, tabindex: 0 }, make("table", { id }, make("thead", {}, make("tr", {}, ...heads)), body));
}
