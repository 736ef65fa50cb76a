/**
 * The page of `retool view`: the list of episodes, one episode or two side by side, and the state
 * in the address. The state decides what is shown; every control changes the state.
 */
import { alertBox, button, copy, count, element, fill } from "./dom.js";
import { showFacets, sorted } from "./facets.js";
import { fillHelp, listenToKeys } from "./keys.js";
import { makeList } from "./list.js";
import { makePane } from "./pane.js";
import { keeps, readQuery, textsOf } from "./query.js";
import { showRun } from "./run.js";
import { openSource } from "./source.js";
import { besides, opened, readState, writeState } from "./state.js";
import { makeStore } from "./store.js";

const POLL_SECONDS = 2;
const TYPING_MILLISECONDS = 150;

const byId = (id) => document.getElementById(id);
const source = openSource();
const store = makeStore(source);
let state = readState(location.hash);
let applied = null;
let unreachable = false;
let typing = 0;
let filtered = Promise.resolve();

/** Changes the state; the browser's history keeps the state before, unless `replace` is set. */
function change(next, { replace = false } = {}) {
  const address = writeState({ ...state, ...next });
  if (address === writeState(state)) return;
  if (replace) history.replaceState(null, "", address);
  else history.pushState(null, "", address);
  applyState();
}

function say(text) {
  const dismiss = button("Dismiss", () => say(null));
  fill(byId("notice"), text === null ? null : element("p", {}, text, " ", dismiss));
}

// --- the list ------------------------------------------------------------------------------------

const list = makeList(byId("list-scroll"), byId("list"), {
  href: (row) => writeState(opened(state, row.address)),
  again: () => first.focus(),
  beside: ({ address }) =>
    change(state.episode === null ? opened(state, address) : besides(state, state.run, address)),
});

function sayMatches(some, all) {
  const total = count(all, "episode");
  const text = some === all ? total : `${some.toLocaleString("en")} of ${total}`;
  const going = store.runs()[state.run].finished ? "" : " · the run goes on";
  const place = byId("matches");
  if (place.textContent !== text + going) place.textContent = text + going;
}

function shownAddresses() {
  const beside = state.besideRun === state.run ? [state.beside] : [];
  return [state.episode, ...beside].filter((one) => one !== null);
}

function sayFault(error) {
  byId("query-error").textContent = error?.message ?? "";
  byId("query").setAttribute("aria-invalid", String(Boolean(error)));
}

/** Shows the rows that the query keeps. A query that can't be read leaves a list as it is. */
async function filterRows() {
  const mine = state;
  const rows = store.rows(state.run);
  try {
    const parts = readQuery(state.q);
    const found = await store.search(state.run, textsOf(parts));
    if (state !== mine) return;
    const context = { found, flips: store.flips(state.run) };
    const matching = rows.filter((row) => keeps(parts, row, context));
    sayFault(null);
    sayMatches(matching.length, rows.length);
    list.show(sorted(matching, state.sort), shownAddresses());
  } catch (error) {
    if (state !== mine) return;
    sayFault(error);
    if (!list.length()) list.show(sorted(rows, state.sort), shownAddresses());
  }
}

function showFilters() {
  const query = byId("query");
  if (document.activeElement !== query) query.value = state.q;
  showFacets(byId("facets"), {
    rows: store.rows(state.run),
    query: state.q,
    sort: state.sort,
    others: store.other(state.run) !== null,
    onQuery: (q) => {
      query.value = q;
      change({ q }, { replace: true });
    },
    onSort: (sort) => change({ sort }, { replace: true }),
  });
}

// --- the panes -----------------------------------------------------------------------------------

function pane(label, close, onSpan) {
  return makePane({
    source,
    label,
    actions: {
      tokens: () => change({ tokens: !state.tokens }),
      beside: toggleBeside,
      back: leaveEpisode,
      close,
    },
    run: (number) => {
      const run = store.runs()[number];
      const title = store.other(number) === null ? null : run.title;
      return { ...run, title, canRun: store.canRun() };
    },
    links: (run) => ({
      link: (address) => writeState(opened(state, address, run)),
      besideLink: (address) => writeState(besides(state, run, address)),
      rightOf: (address) => store.row(run, address)?.right ?? null,
      siblings: (address) => store.siblings(run, address),
    }),
    onSpan,
  });
}

const first = pane("Episode", leaveEpisode, (span) => change({ span }, { replace: true }));
const second = pane("Second episode", leaveBeside, () => undefined);

function leaveBeside() {
  change({ beside: null, besideRun: null });
  first.focus();
}

function leaveEpisode() {
  change(opened(state, null));
  list.focus();
}

function toggleBeside() {
  if (state.episode === null) return;
  if (state.beside !== null) return leaveBeside();
  const found = store.partner(state.run, state.episode);
  if (found) return change(besides(state, ...found));
  say("The problem has no second episode. Choose any episode in the list with Shift and a click.");
}

function showPanes() {
  const open = state.episode !== null;
  const two = open && state.beside !== null;
  document.body.classList.toggle("open", open);
  byId("welcome").hidden = open;
  const wanted = [first, second].slice(0, open ? 1 + Number(two) : 0).map((one) => one.root);
  const there = [...byId("panes").children];
  if (there.length !== wanted.length) fill(byId("panes"), wanted);
  return Promise.all([
    open && first.show(state.run, state.episode, state.tokens, state.span),
    two && second.show(state.besideRun ?? state.run, state.beside, state.tokens, null),
  ]);
}

function activePane() {
  return second.root.contains(document.activeElement) ? second : first;
}

function failedCall(step) {
  const moved = state.episode === null || activePane().failedCall(step);
  if (!moved) say("The episode has no failed call.");
}

// --- all of it -----------------------------------------------------------------------------------

/** Shows the state that the address names. */
async function applyState() {
  const before = applied === null ? { episode: null } : state;
  const arrived = applied === null;
  applied = location.hash;
  const last = store.runs().length - 1;
  state = readState(location.hash);
  state.run = Math.min(state.run, last);
  if (state.besideRun !== null) state.besideRun = Math.min(state.besideRun, last);
  if (!unreachable) say(null);
  showRun(store.runs(), state, (run) => change({ ...opened(state, null), run }));
  showFilters();
  const another = state.episode !== before.episode || state.run !== before.run;
  const opens = state.episode !== null && another;
  const fromList = byId("list").contains(document.activeElement);
  const panes = showPanes();
  filtered = filterRows();
  await filtered;
  if (opens && !fromList) list.reveal(state.episode);
  await panes;
  if (opens && state.span === null && !arrived) first.focus();
}

/** Asks for new rows while a run goes on. */
async function follow() {
  if (!source.live || store.runs().every((run) => run.finished)) return;
  await new Promise((done) => setTimeout(done, POLL_SECONDS * 1000));
  try {
    const changed = await store.load();
    if (unreachable) say(null);
    unreachable = false;
    if (changed) {
      showFilters();
      await filterRows();
    }
  } catch (error) {
    if (!unreachable) say(error.message);
    unreachable = true;
  }
  follow();
}

/** Leaves the query, then the second episode, then the episode. */
function leave() {
  if (document.activeElement === byId("query")) return enterList();
  if (state.beside !== null) return leaveBeside();
  if (state.episode !== null) leaveEpisode();
}

function focusQuery() {
  byId("query").focus();
  byId("query").select();
}

function takeQuery() {
  clearTimeout(typing);
  change({ q: byId("query").value }, { replace: true });
}

/** Goes from the query to the rows that it keeps. */
async function enterList() {
  takeQuery();
  await filtered;
  list.focus();
}

function inList() {
  const { activeElement, body } = document;
  return activeElement === body || byId("list-panel").contains(activeElement);
}

function listen() {
  const { query, help } = { query: byId("query"), help: () => byId("help").showModal() };
  query.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(takeQuery, TYPING_MILLISECONDS);
  });
  byId("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    enterList();
  });
  byId("copy-link").addEventListener("click", (event) => copy(location.href, event.currentTarget));
  byId("help-button").addEventListener("click", help);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    byId("episodes-heading").focus();
  });
  const moved = () => (location.hash === applied ? null : applyState());
  window.addEventListener("hashchange", moved);
  window.addEventListener("popstate", moved);
  listenToKeys({
    arrows: inList,
    next: () => list.move(1),
    previous: () => list.move(-1),
    query: focusQuery,
    nextFailed: () => failedCall(1),
    previousFailed: () => failedCall(-1),
    tokens: () => (state.episode === null ? null : change({ tokens: !state.tokens })),
    beside: toggleBeside,
    leave,
    help,
  });
}

async function start() {
  fillHelp(byId("help-content"));
  try {
    await store.load();
  } catch (error) {
    return fill(byId("notice"), alertBox(error));
  }
  listen();
  await applyState();
  follow();
}

start();
