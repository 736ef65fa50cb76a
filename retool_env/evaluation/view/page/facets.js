/**
 * The controls beside the query. Each control edits the query, so the query always says what is
 * shown.
 */
import { element, fill } from "./dom.js";
import { quoted, valueOf, withValue } from "./query.js";

const YES_NO = [
  ["yes", "yes"],
  ["no", "no"],
];

const FAILED = [
  [">0", "some"],
  ["0", "none"],
];

/** The different values of all rows with their numbers of rows, the most frequent first. */
function frequent(rows, of) {
  const numbers = new Map();
  for (const row of rows) {
    for (const value of new Set(of(row))) numbers.set(value, (numbers.get(value) ?? 0) + 1);
  }
  return [...numbers].sort((a, b) => b[1] - a[1]);
}

function named(rows, of) {
  return frequent(rows, of).map(([name, number]) => [quoted(name), `${name} (${number})`]);
}

/** The controls that say something about these rows: [key, label, choices]. */
function useful(rows, others) {
  const some = (test) => rows.some(test);
  const ascending = (found) =>
    found.sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }));
  const both = (key, label, test) => (some(test) ? [[key, label, YES_NO]] : []);
  const names = (key, label, of, before = []) => {
    const found = named(rows, of);
    return found.length ? [[key, label, [...before, ...found]]] : [];
  };
  const verdicts = [
    ["yes", "right"],
    ["no", "wrong"],
    ["none", "not graded"],
  ];
  const most = rows.reduce((high, row) => Math.max(high, row.calls), 0);
  const calls = [0, 1, 2, 3].filter((number) => number <= most).map((n) => [`${n}`, `${n}`]);
  return [
    ["right", "Result", verdicts],
    ["calls", "Calls", most > 3 ? [...calls, [">=4", "4 or more"]] : calls],
    ...(some((row) => row.failed > 0) ? [["failed", "Failed calls", FAILED]] : []),
    ...names("error", "Error", (row) => row.errors),
    ...both("void", "Void turns", (row) => row.void > 0),
    ...names("fault", "Fault", (row) => row.faults, [
      ["yes", "any"],
      ["no", "none"],
    ]),
    ...names("protocol", "Protocol", (row) => (row.protocol ? [row.protocol] : [])),
    ...names("arm", "Arm", (row) => (row.arm ? [row.arm] : [])),
    ...(some((row) => row.step !== null)
      ? [
          [
            "step",
            "Step",
            ascending(named(rows, (row) => (row.step === null ? [] : [`${row.step}`]))),
          ],
        ]
      : []),
    ...names("stop", "Ended by", (row) => (row.stop ? [row.stop] : [])),
    ...(others ? [["flipped", "Other run differs", YES_NO]] : []),
  ];
}

function control([key, label, choices], query, change) {
  const value = valueOf(query, key);
  const chosen =
    value === null
      ? null
      : choices.find(([one]) => one.replaceAll('"', "").toLowerCase() === value);
  const options = [["", "any"], ...choices].map(([one, text]) =>
    element("option", { value: one, selected: one === (chosen?.[0] ?? "") }, text),
  );
  if (value !== "" && !chosen) {
    options.push(element("option", { value: "?", selected: true, disabled: true }, "as written"));
  }
  const select = element(
    "select",
    { "data-key": key, change: (event) => change(withValue(query, key, event.target.value)) },
    options,
  );
  return element("label", { class: value === "" ? "facet" : "facet used" }, label, select);
}

const ORDERS = [
  ["", "problem"],
  ["-calls", "calls, most first"],
  ["calls", "calls, fewest first"],
  ["-tokens", "tokens, most first"],
  ["tokens", "tokens, fewest first"],
  ["-reward", "reward, highest first"],
  ["reward", "reward, lowest first"],
];

/**
 * Shows the controls.
 *
 * @param {Element} place The element that holds them.
 * @param {Object} given `rows`, `query`, `sort`, `others` (whether a second run is open), and the
 *   functions `onQuery(query)` and `onSort(sort)`.
 */
export function showFacets(place, { rows, query, sort, others, onQuery, onSort }) {
  const key = document.activeElement?.dataset?.key;
  const orders = ORDERS.map(([value, text]) =>
    element("option", { value, selected: value === sort }, text),
  );
  const order = element(
    "select",
    { "data-key": "sort", change: (event) => onSort(event.target.value) },
    orders,
  );
  const [result, calls, ...more] = useful(rows, others);
  const used = more.filter(([name]) => valueOf(query, name) !== "").length;
  const open = used > 0 || Boolean(place.querySelector("details")?.open);
  const controls = (each) => control(each, query, onQuery);
  const rest = element(
    "details",
    { open },
    element("summary", {}, used ? `More filters (${used} used)` : "More filters"),
    element("div", { class: "facets" }, more.map(controls)),
  );
  const sorting = element("label", { class: "facet" }, "Sort by", order);
  const first = element("div", { class: "facets" }, [result, calls].map(controls), sorting);
  fill(place, first, more.length ? rest : null);
  if (key) place.querySelector(`[data-key="${key}"]`)?.focus();
}

/** Sorts rows by the order that the state names; equal rows keep the order of their problems. */
export function sorted(rows, sort) {
  const names = new Intl.Collator("en", { numeric: true });
  const name = sort.replace("-", "");
  const sign = sort.startsWith("-") ? -1 : 1;
  const place = (row) => [row.problem, row.protocol, row.arm].join("\u0000");
  const keyed = rows.map((row, index) => ({ row, index, place: place(row) }));
  const byPlace = (a, b) =>
    names.compare(a.place, b.place) ||
    (a.row.step ?? 0) - (b.row.step ?? 0) ||
    (a.row.parent ?? -1) - (b.row.parent ?? -1) ||
    a.row.sample - b.row.sample ||
    a.index - b.index;
  const bySize = (a, b) => {
    const [first, second] = [a.row[name] ?? null, b.row[name] ?? null];
    if (first === null || second === null) return (first === null) - (second === null);
    return sign * (first - second);
  };
  const sized = ["calls", "tokens", "reward"].includes(name);
  keyed.sort((a, b) => (sized && bySize(a, b)) || byPlace(a, b));
  return keyed.map((each) => each.row);
}
