/**
 * The filter query: one line whose parts must all hold, as `right:no error:timeout -calls:1`.
 *
 * It is the language of `filters.py`; one table of cases is run against both implementations.
 */

const YES_OR_NO = new Map([
  ["yes", true],
  ["no", false],
]);
const VERDICT_WORDS = new Map([...YES_OR_NO, ["none", null]]);

const WORDS = { right: VERDICT_WORDS, void: YES_OR_NO, trained: YES_OR_NO, flipped: YES_OR_NO };
const NUMBERS = ["calls", "failed", "turns", "tokens", "step", "reward", "sample", "version"];
const TEXTS = ["problem", "protocol", "arm", "stop"];
const NAMES = [...NUMBERS, ...TEXTS, ...Object.keys(WORDS), "error", "fault"].sort();

const COMPARISONS = new Map([
  [undefined, (number, bound) => number === bound],
  [">=", (number, bound) => number >= bound],
  ["<=", (number, bound) => number <= bound],
  [">", (number, bound) => number > bound],
  ["<", (number, bound) => number < bound],
]);
const NUMBER = /^(>=|<=|>|<)?(-?[0-9]+(?:\.[0-9]+)?)$/;

function fail(words, at) {
  throw Object.assign(new Error(`${words} (character ${at + 1} of the filter)`), { at });
}

/** The match of a pattern that begins exactly at a place; null: it does not fit there. */
function matchAt(pattern, text, at) {
  const sticky = new RegExp(pattern, "y");
  sticky.lastIndex = at;
  return sticky.exec(text);
}

function checkValue(name, value, at) {
  if (NUMBERS.includes(name) && !NUMBER.test(value)) {
    fail(`${name} is compared with a number, as in ${name}:3 or ${name}:>=2, not "${value}"`, at);
  }
  if (name in WORDS && !WORDS[name].has(value)) {
    fail(`${name} is ${[...WORDS[name].keys()].join(" or ")}, not "${value}"`, at);
  }
}

function readValue(query, at, bare) {
  const inQuotes = matchAt(/"([^"]*)"/, query, at);
  if (inQuotes) return { value: inQuotes[1], end: at + inQuotes[0].length };
  if (query[at] === '"') fail('the closing " is missing', at);
  const found = matchAt(bare, query, at) ?? fail("a value is missing", at);
  return { value: found[0], end: at + found[0].length };
}

function readValues(query, name, at) {
  const values = [];
  for (;;) {
    const { value, end } = readValue(query, at, /[^\s",]+/);
    values.push(value.toLowerCase());
    checkValue(name, values.at(-1), at);
    if (query[end] !== ",") return { values, end };
    at = end + 1;
  }
}

function readPart(query, start) {
  const negated = query[start] === "-" && /\S/.test(query[start + 1] ?? " ");
  const at = start + Number(negated);
  const name = matchAt(/([A-Za-z_]+):/, query, at)?.[1];
  if (name === undefined) {
    const { value, end } = readValue(query, at, /[^\s"]+/);
    return { name: "", values: [value], negated, start, end };
  }
  const key = name.toLowerCase();
  if (!NAMES.includes(key)) {
    const known = `known are ${NAMES.join(", ")}; for a text, write it between "`;
    fail(`unknown filter "${name}"; ${known}`, at);
  }
  return { name: key, negated, start, ...readValues(query, key, at + name.length + 1) };
}

/**
 * Reads a query.
 *
 * @returns {Object[]} Its parts: `name` ("" for a text), `values`, `negated`, `start` and `end`.
 * @throws {Error} If the query can't be read; `at` is the number of characters before the fault.
 */
export function readQuery(query) {
  const parts = [];
  let at = query.search(/\S/);
  while (at >= 0 && at < query.length) {
    const part = readPart(query, at);
    if (query.slice(at, part.end) !== "and") parts.push(part);
    const next = query[part.end];
    if (next !== undefined && !/\s/.test(next)) fail(`expected a blank before "${next}"`, part.end);
    at = part.end + matchAt(/\s*/, query, part.end)[0].length;
  }
  return parts;
}

/** The texts that the parts of a query search for. */
export function textsOf(parts) {
  return parts.filter((part) => !part.name).map((part) => part.values[0]);
}

function numberFits(wanted, number) {
  const [, sign, bound] = NUMBER.exec(wanted);
  return typeof number === "number" && COMPARISONS.get(sign)(number, Number(bound));
}

function fits({ name, values }, row, { found, flips }) {
  if (!name) return found.get(values[0])?.has(row.address) ?? false;
  if (NUMBERS.includes(name)) return values.some((value) => numberFits(value, row[name]));
  if (name in WORDS) {
    const special = { flipped: flips?.get(row.address), void: row.void > 0 };
    const truth = name in special ? special[name] : row[name];
    return values.some((value) => WORDS[name].get(value) === truth);
  }
  const have = { error: row.errors, fault: row.faults }[name] ?? [row[name]];
  const known = have.filter((one) => one !== null).map((one) => one.toLowerCase());
  if (name === "fault") known.push(known.length ? "yes" : "no");
  return values.some((value) => known.includes(value));
}

/**
 * Whether a row passes all parts of a query.
 *
 * @param {Object[]} parts The parts.
 * @param {Object} row The row.
 * @param {Object} context `found`: a map from each text to the set of addresses that hold it;
 *   `flips`: the result of `flipsOf`, undefined without another run.
 */
export function keeps(parts, row, context) {
  return parts.every((part) => fits(part, row, context) !== part.negated);
}

/** The identity of an episode over runs: problem, sample, protocol, arm, parent and call. */
export function identity(row) {
  const { problem, sample, protocol, arm, parent, call } = row;
  return JSON.stringify([problem, sample, protocol, arm, parent, call]);
}

/** A map from the address of each episode to whether the other run's episode has another grade. */
export function flipsOf(rows, others) {
  const grades = new Map(
    others.filter((row) => row.right !== null).map((row) => [identity(row), row.right]),
  );
  return new Map(
    rows
      .filter((row) => row.right !== null && grades.has(identity(row)))
      .map((row) => [row.address, row.right !== grades.get(identity(row))]),
  );
}

/** A value as it stands in a query, between quotes where it needs them. */
export function quoted(value) {
  return /^[^\s",]+$/.test(value) ? value : `"${value.replaceAll('"', "")}"`;
}

function partsOrNone(query) {
  try {
    return readQuery(query);
  } catch {
    return null;
  }
}

/** The value of a name in a query, for a control: "" without it, null in another form. */
export function valueOf(query, name) {
  const parts = partsOrNone(query);
  const found = parts?.filter((part) => part.name === name);
  if (found?.length === 0) return "";
  const plain = found?.length === 1 && !found[0].negated && found[0].values.length === 1;
  return plain ? found[0].values[0] : null;
}

/** The query with another value of a name, as written; "" removes the name. */
export function withValue(query, name, value) {
  const others = (partsOrNone(query) ?? []).filter((part) => part.name !== name);
  const kept = others.map((part) => query.slice(part.start, part.end));
  return [...kept, ...(value === "" ? [] : [`${name}:${value}`])].join(" ");
}
