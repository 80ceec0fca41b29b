"use strict";
// The table of cases: filtered by the fragment of the address, drawn as far as it is scrolled.
const CHUNK = 100;
const FIELDS = ["q", "status", "dtype", "feature"];
const byId = (id) => document.getElementById(id);
const cases = JSON.parse(byId("cases").textContent);
for (const item of cases) {
  [item.op, item.title, item.dtype, item.sizes, item.family] = item.id.split("/");
  item.text = [item.id, item.kernel, item.message, ...(item.features ?? [])].join(" ").toLowerCase();
}
let found = [];
let drawn = 0;

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

function draw(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const number = (value) => (value === null ? "not finite" : typeof value === "number" ? `${+value.toPrecision(4)}` : value);

// A bar from 0 to the limit; near is value / limit, null where no limit admits the value.
function meter(near, waived) {
  const over = near === null || near > 1;
  const width = over ? 100 : near * 100;
  return make("span", { class: "meter" }, make("i", { class: over ? "over" : waived ? "waived" : "", style: `width:${width}%` }));
}

const section = (title, ...content) => [make("h3", {}, title), ...content];

function reproducer(text) {
  const command = make("pre", { class: "reproduce" }, text);
  const button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // Without leave to write the clipboard, the reader copies what is selected.
      getSelection().selectAllChildren(command);
      button.textContent = "Selected";
    }
  });
  return make("div", { class: "command" }, command, button);
}

function checkTable(checks) {
  const body = make("tbody");
  for (const [name, value, limit, ok, waiver = ""] of checks) {
    const near = value === null || (limit === 0 && value > 0) ? null : limit === 0 ? 0 : value / limit;
    const head = limit === 0 ? "exact" : !near ? "" : `${+(1 / near).toPrecision(2)}\u00d7`;
    body.append(make("tr", { class: ok ? "" : "bad" },
      make("td", {}, name), make("td", { class: "num" }, number(value)), make("td", { class: "num" }, number(limit)),
      make("td", {}, meter(near, waiver)), make("td", { class: "num" }, ok ? head : "over"),
      make("td", { class: "warn" }, waiver)));
  }
  const head = make("tr", {}, make("th", {}, "check"), make("th", { class: "num" }, "value"),
    make("th", { class: "num" }, "limit"), make("th", {}, ""), make("th", { class: "num" }, "headroom"), make("th", {}, ""));
  return make("table", { class: "checks" }, make("thead", {}, head), body);
}

function heatMap({ rows, heads, cells }) {
  const left = 34, bottom = 16, wide = Math.min(14, 480 / rows.length), high = Math.max(5, Math.min(14, 220 / heads.length));
  const width = left + wide * rows.length, height = high * heads.length + bottom;
  const map = draw("svg", { class: "heat", width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  map.append(draw("rect", { class: "ground", x: left, y: 0, width: width - left, height: height - bottom }));
  cells.forEach((line, row) => line.forEach((value, column) => {
    const kind = value === null ? "odd" : value > 100 ? "over" : "cell";
    const cell = draw("rect", { class: kind, x: left + wide * row, y: high * column, width: wide, height: high });
    if (kind === "cell") cell.setAttribute("fill-opacity", (0.0085 * value).toFixed(3));
    cell.append(draw("title", {}, `from query ${rows[row]}, head ${heads[column]}: ${value === null ? "a rule without tolerance is broken" : `${value / 100} of the limit`}`));
    map.append(cell);
  }));
  map.append(draw("text", { x: left - 4, y: 9, "text-anchor": "end" }, heads[0]));
  if (heads.length > 2) map.append(draw("text", { x: left - 4, y: height - bottom - 1, "text-anchor": "end" }, heads.at(-1)));
  map.append(draw("text", { x: left, y: height - 4 }, rows[0]));
  if (rows.length > 8) map.append(draw("text", { x: width, y: height - 4, "text-anchor": "end" }, rows.at(-1)));
  return map;
}

function detail(item) {
  const left = make("div"), right = make("div");
  if (item.message) left.append(...section("What happened", make("div", { class: "message" }, item.message)));
  if (item.reasons) left.append(...section("Declared reasons", ...item.reasons.map((text) => make("div", {}, text))));
  if (item.worst) {
    const { tensor, index, got, want, sigma } = item.worst;
    left.append(...section("Worst element", make("div", { class: "mono worst" },
      `${tensor}[${index.join(", ")}] = ${got}, golden ${want}, sigma ${number(sigma)}`)));
  }
  if (item.kernel) left.append(...section("Kernel, as the backend says", make("div", { class: "mono" }, item.kernel)));
  if (item.provenance !== "hardware") left.append(...section("Obtained on", make("div", { class: "warn" }, item.provenance)));
  if (item.reproduce) left.append(...section("Reproduce", reproducer(item.reproduce)));
  if (item.heat) left.append(...section("Error of rows: queries across, batch and heads down; red is over the limit", heatMap(item.heat)));
  if (item.checks) right.append(...section("Checks", checkTable(item.checks)));
  const cell = make("td", { colspan: 7 }, make("div", { class: "grid2" }, left, right));
  if (item.detail) cell.append(...section("Traceback", make("pre", {}, item.detail)));
  const link = make("a", { href: `#${new URLSearchParams({ q: item.id })}` }, item.id);
  cell.append(...section("Link to this case", make("div", { class: "mono" }, link)));
  return make("tr", { class: "detail" }, cell);
}

function caseRow(item) {
  const button = make("button", { type: "button", class: item.status, "aria-expanded": "false" }, item.status);
  const near = item.nearest ? [meter(item.nearest[1], item.status === "WAIVED"),
    `${item.nearest[1] === null ? "" : `${+item.nearest[1].toPrecision(3)}\u00d7`} `, make("span", { class: "quiet" }, item.nearest[0])] : [];
  const message = item.status === "PASS" || !item.message ? "" : make("small", { class: "quiet message" }, item.message);
  const row = make("tr", { class: "case" }, make("td", {}, button),
    make("td", {}, make("span", { class: "title" }, item.title), " ", make("small", { class: "quiet" }, item.sizes), message),
    make("td", {}, item.dtype), make("td", {}, item.family), make("td", {}, item.level), make("td", {}, ...near),
    make("td", { class: "num" }, (1000 * item.seconds).toPrecision(3)));
  row.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) row.nextSibling.remove();
    else row.after(detail(item));
  });
  return row;
}

function more() {
  const next = found.slice(drawn, drawn + CHUNK);
  byId("rows").append(...next.map(caseRow));
  drawn += next.length;
  byId("more").textContent = drawn < found.length ? `${found.length - drawn} more below` : found.length ? "" : "No case matches.";
}

function filter() {
  const [q, status, dtype, feature] = FIELDS.map((name) => byId(name).value);
  const words = q.toLowerCase().split(/\s+/).filter(Boolean);
  found = cases.filter((item) =>
    (!status || item.status === status) && (!dtype || item.dtype === dtype) &&
    (!feature || (item.features ?? []).includes(feature)) && words.every((word) => item.text.includes(word)));
  byId("rows").replaceChildren();
  drawn = 0;
  more();
  byId("shown").textContent = `${found.length} of ${cases.length} cases`;
  if (found.length === 1) byId("rows").firstChild.click();
}

function write() {
  const set = FIELDS.map((name) => [name, byId(name).value.trim()]).filter(([, value]) => value);
  history.replaceState(null, "", `#${new URLSearchParams(set)}`);
  filter();
}

function read() {
  const words = new URLSearchParams(location.hash.slice(1));
  for (const name of FIELDS) {
    const control = byId(name), value = words.get(name) ?? "";
    // A value that this report does not have is shown and matches nothing, rather than being dropped.
    if (control.options && ![...control.options].some((option) => option.value === value)) control.add(new Option(value, value));
    control.value = value;
  }
  filter();
}

const form = document.querySelector(".filters");
form.addEventListener("input", write);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", (event) => {
  event.preventDefault();
  for (const name of FIELDS) byId(name).value = "";
  write();
});
addEventListener("hashchange", () => {
  read();
  byId("table").scrollIntoView();
});
new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && drawn < found.length) more();
}, { rootMargin: "400px" }).observe(byId("more"));
read();
if (location.hash) byId("table").scrollIntoView();
