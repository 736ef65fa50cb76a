/**
 * The state of the page in the fragment of its address, so that each state has a link and the
 * browser's history works.
 */

/** The state that a fragment names; unknown parts are left out. */
export function readState(fragment) {
  const parts = new URLSearchParams(fragment.replace(/^#/, ""));
  const number = (name, fallback) => {
    const value = Number(parts.get(name) ?? NaN);
    return Number.isInteger(value) && value >= 0 ? value : fallback;
  };
  return {
    run: number("run", 0),
    q: parts.get("q") ?? "",
    sort: parts.get("sort") ?? "",
    episode: parts.get("episode"),
    span: number("span", null),
    tokens: parts.get("tokens") === "1",
    besideRun: number("beside_run", null),
    beside: parts.get("beside"),
  };
}

/** The fragment of a state, with "#". */
export function writeState(state) {
  const values = {
    run: state.run,
    q: state.q || null,
    sort: state.sort || null,
    episode: state.episode,
    span: state.episode === null ? null : state.span,
    tokens: state.tokens ? 1 : null,
    beside_run: state.beside === null ? null : state.besideRun,
    beside: state.beside,
  };
  const parts = Object.entries(values).filter(([, value]) => value !== null);
  const pair = ([name, value]) => `${name}=${encodeURIComponent(wellFormed(value))}`;
  return `#${parts.map(pair).join("&")}`;
}

/** A lone surrogate can't stand in an address. */
function wellFormed(value) {
  return String(value).toWellFormed();
}

/** The state with one episode open and nothing beside it. */
export function opened(state, episode, run = state.run) {
  return { ...state, run, episode, span: null, beside: null, besideRun: null };
}

/** The state with a second episode beside the open one. */
export function besides(state, run, address) {
  return { ...state, beside: address, besideRun: run };
}
