/**
 * The page of `retool view`: the list of episodes, one episode or two side by side, and the state
 * in the address. The state decides what is shown; every control changes the state.
 */
import { alertBox, button, copy, count, definitions, element, fill } from "./dom.js";
import { showFacets, sorted } from "./facets.js";
import { fillHelp, listenToKeys } from "./keys.js";
import { makeList } from "./list.js";
import { makePane } from "./pane.js";
import { flipsOf, identity, keeps, readQuery, textsOf } from "./query.js";
import { openSource } from "./source.js";
import { besides, opened, readState, writeState } from "./state.js";

const POLL_SECONDS = 2;

const byId = (id) => document.getElementById(id);
const source = openSource();
const rowsOf = [];
const searched = new Map();
let runs = [];
let canRun = false;
let state = readState(location.hash);
let applied = null;
let unreachable = false;

// --- the state -----------------------------------------------------------------------------------

/** Changes the state; the browser's history keeps the state before, unless `replace` is set. */
function change(next, { replace = false } = {}) {
  const address = writeState({ ...state, ...next });
  if (address === writeState(state)) return;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  applyState();
}

function open(row) {
  return writeState(opened(state, row.address));
}

function otherRun(run) {
  return runs.length > 1 ? (run === 0 ? 1 : 0) : null;
}

function rowAt(run, address) {
  return rowsOf[run]?.byAddress.get(address) ?? null;
}

/** The episode that stands beside an episode by default: [run, address], or null. */
function partner(run, address) {
  const row = rowAt(run, address);
  const other = otherRun(run);
  if (row && other !== null) {
    const key = identity(row);
    const same = rowsOf[other].list.find((one) => identity(one) === key);
    if (same) return [other, same.address];
  }
  const rows = rowsOf[run].list;
  const related = row && rows.find((one) => one !== row && sameFamily(one, row));
  return related ? [run, related.address] : null;
}

/** Whether two rows are a fork with the true result and a fork of another arm, of one call. */
function sameFamily(one, row) {
  const same = one.problem === row.problem && one.parent === row.parent && one.call === row.call;
  return same && one.step === row.step && (row.parent === null || one.arm === "control");
}

// --- the list ------------------------------------------------------------------------------------

const list = makeList(byId("list-scroll"), byId("list"), {
  href: open,
  again: () => first.focus(),
  beside: (row) => (state.episode === null ? change(opened(state, row.address)) : change(besides(state, state.run, row.address))),
});

async function search(texts) {
  const missing = texts.filter((text) => !searched.has(`${state.run} ${text}`));
  await Promise.all(
    missing.map(async (text) => {
      const key = `${state.run} ${text}`;
      searched.set(key, new Set(await source.search(state.run, text)));
    }),
  );
  return new Map(texts.map((text) => [text, searched.get(`${state.run} ${text}`)]));
}

function shownAddresses() {
  const beside = state.besideRun === state.run ? [state.beside] : [];
  return [state.episode, ...beside].filter((one) => one !== null);
}

async function filterRows() {
  const mine = state;
  const rows = rowsOf[state.run].list;
  const other = otherRun(state.run);
  try {
    const parts = readQuery(state.q);
    const found = await search(textsOf(parts));
    if (state !== mine) return;
    const flips = other === null ? undefined : flipsOf(rows, rowsOf[other].list);
    const matching = sorted(rows.filter((row) => keeps(parts, row, { found, flips })), state.sort);
    byId("query-error").textContent = "";
    byId("query").removeAttribute("aria-invalid");
    sayMatches(matching.length, rows.length);
    list.show(matching, shownAddresses());
  } catch (error) {
    if (state !== mine) return;
    byId("query-error").textContent = error.message;
    byId("query").setAttribute("aria-invalid", "true");
  }
}

function sayMatches(some, all) {
  const total = count(all, "episode");
  const text = some === all ? total : `${some.toLocaleString("en")} of ${total}`;
  const going = runs[state.run].finished ? "" : " · the run goes on";
  const place = byId("matches");
  if (place.textContent !== text + going) place.textContent = text + going;
}

function showFilters() {
  const query = byId("query");
  if (document.activeElement !== query) query.value = state.q;
  showFacets(byId("facets"), {
    rows: rowsOf[state.run].list,
    query: state.q,
    sort: state.sort,
    others: otherRun(state.run) !== null,
    onQuery: (q) => {
      query.value = q;
      change({ q }, { replace: true });
    },
    onSort: (sort) => change({ sort }, { replace: true }),
  });
}

// --- the panes -----------------------------------------------------------------------------------

const actions = {
  tokens: () => change({ tokens: !state.tokens }),
  beside: toggleBeside,
  back: () => leaveEpisode(),
};

function links(run) {
  const rightOf = (address) => rowAt(run, address)?.right ?? null;
  return {
    link: (address) => writeState(opened(state, address, run)),
    besideLink: (address) => writeState(besides(state, run, address)),
    rightOf,
  };
}

function pane(label, close, spanLink, onSpan) {
  return makePane({
    source,
    label,
    actions: { ...actions, close },
    links: (run) => ({ ...links(run), spanLink }),
    run: (number) => ({ ...runs[number], canRun }),
    onSpan,
  });
}

const spanState = (span) => change({ span }, { replace: true });
const first = pane("Episode", leaveEpisode, (span) => writeState({ ...state, span }), spanState);
const second = pane(
  "Second episode",
  () => change({ beside: null, besideRun: null }),
  (span) => writeState({ ...state, span }),
  () => undefined,
);

function leaveEpisode() {
  change({ episode: null, span: null, beside: null, besideRun: null });
  list.focus();
}

function toggleBeside() {
  if (state.episode === null) return;
  if (state.beside !== null) return change({ beside: null, besideRun: null });
  const found = partner(state.run, state.episode);
  if (found) return change(besides(state, ...found));
  say("There is no second episode of this problem. Choose one in the list with Shift and a click.");
}

function showPanes() {
  const two = state.episode !== null && state.beside !== null;
  document.body.classList.toggle("open", state.episode !== null);
  document.body.classList.toggle("two", two);
  byId("welcome").hidden = state.episode !== null;
  const wanted = state.episode === null ? [] : two ? [first.root, second.root] : [first.root];
  const there = [...byId("panes").children];
  if (there.length !== wanted.length || there.some((one, index) => one !== wanted[index])) {
    fill(byId("panes"), wanted);
  }
  const shown = [];
  if (state.episode !== null) shown.push(first.show(state.run, state.episode, state.tokens, state.span));
  if (two) shown.push(second.show(state.besideRun ?? state.run, state.beside, state.tokens, null));
  return Promise.all(shown);
}

// --- all of it -----------------------------------------------------------------------------------

function say(text) {
  fill(byId("notice"), text === null ? null : element("p", {}, text, " ", button("Dismiss", () => say(null))));
}

function showRun() {
  const run = runs[state.run];
  byId("title").textContent = run.title;
  document.title = `${state.episode ?? run.title} · retool view`;
  byId("about").hidden = false;
  fill(byId("about-content"), definitions([["Kind", run.kind], ["Path", run.path], ...run.details]));
  if (runs.length < 2) return;
  const options = runs.map((one, index) =>
    element("option", { value: index, selected: index === state.run }, one.title),
  );
  const choose = (event) => change({ ...opened(state, null), run: Number(event.target.value) });
  fill(byId("run-choice"), element("label", {}, "Run ", element("select", { change: choose }, options)));
}

async function applyState() {
  const before = applied === null ? { episode: null } : state;
  applied = location.hash;
  state = readState(location.hash);
  if (state.run >= runs.length) state.run = 0;
  if ((state.besideRun ?? 0) >= runs.length) state.besideRun = state.run;
  if (!unreachable) say(null);
  showRun();
  showFilters();
  const openedNow = state.episode !== null && (state.episode !== before.episode || state.run !== before.run);
  const panes = showPanes();
  await filterRows();
  if (openedNow && !document.activeElement?.closest("#list")) list.reveal(state.episode);
  await panes;
  if (openedNow && state.span === null) first.focus();
}

function takeRows(run, { rows, next, removed }) {
  const known = (rowsOf[run] ??= { byAddress: new Map(), next: 0, list: [] });
  known.next = next;
  for (const address of removed) known.byAddress.delete(address);
  for (const row of rows) known.byAddress.set(row.address, row);
  if (rows.length || removed.length) {
    known.list = [...known.byAddress.values()];
    searched.clear();
  }
  return rows.length + removed.length > 0;
}

async function loadRows() {
  const changed = await Promise.all(
    runs.map(async (_, run) => takeRows(run, await source.rows(run, rowsOf[run]?.next ?? 0))),
  );
  return changed.some(Boolean);
}

/** Asks for new rows while a run goes on. */
async function follow() {
  if (!source.live || runs.every((run) => run.finished)) return;
  await new Promise((done) => setTimeout(done, POLL_SECONDS * 1000));
  try {
    const before = runs.map((run) => run.finished).join();
    ({ runs } = await source.runs());
    const changed = await loadRows();
    if (unreachable) say(null);
    unreachable = false;
    if (changed || runs.map((run) => run.finished).join() !== before) {
      showFilters();
      await filterRows();
    }
  } catch (error) {
    if (!unreachable) say(error.message);
    unreachable = true;
  }
  follow();
}

function activePane() {
  return second.root.contains(document.activeElement) ? second : first;
}

function failedCall(step) {
  if (state.episode !== null && !activePane().failedCall(step)) say("The episode has no failed call.");
}

/** Leaves the query, then the second episode, then the episode. */
function leave() {
  const query = byId("query");
  if (document.activeElement === query) return list.focus();
  if (state.beside !== null) return change({ beside: null, besideRun: null });
  if (state.episode !== null) leaveEpisode();
}

function listen() {
  byId("query").addEventListener("input", (event) => change({ q: event.target.value }, { replace: true }));
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    list.focus();
  });
  byId("copy-link").addEventListener("click", (event) => copy(location.href, event.currentTarget));
  byId("help-button").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("episodes-heading").focus();
  });
  const moved = () => (location.hash === applied ? null : applyState());
  window.addEventListener("hashchange", moved);
  window.addEventListener("popstate", moved);
  listenToKeys({
    arrows: () => document.activeElement === document.body || byId("list-panel").contains(document.activeElement),
    next: () => list.move(1),
    previous: () => list.move(-1),
    query: () => {
      byId("query").focus();
      byId("query").select();
    },
    nextFailed: () => failedCall(1),
    previousFailed: () => failedCall(-1),
    tokens: () => (state.episode === null ? null : actions.tokens()),
    beside: toggleBeside,
    leave,
    help: () => byId("help").showModal(),
  });
}

async function start() {
  fillHelp(byId("help-content"));
  try {
    ({ runs, can_run: canRun } = await source.runs());
    await loadRows();
  } catch (error) {
    return fill(byId("notice"), alertBox(error));
  }
  listen();
  await applyState();
  follow();
}

start();
