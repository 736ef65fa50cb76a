/** The keys of the page, and the list of them for the help. */
import { element, fill } from "./dom.js";

const KEYS = [
  [["j", "ArrowDown"], "next episode in the list", "next"],
  [["k", "ArrowUp"], "previous episode in the list", "previous"],
  [["Enter"], "open the episode", null],
  [["Shift+Enter"], "open it beside the open episode (also Shift and click)", null],
  [["/"], "write a filter", "query"],
  [["n"], "next failed call", "nextFailed"],
  [["p"], "previous failed call", "previousFailed"],
  [["t"], "show or hide the tokens", "tokens"],
  [["s"], "show or hide a second episode side by side", "beside"],
  [["Escape"], "leave: the filter, the second episode, then the episode", "leave"],
  [["?"], "this help", "help"],
];
const KEY_SIGNS = { ArrowDown: "↓", ArrowUp: "↑", Escape: "Esc" };

/** Fills the help with the keys. */
export function fillHelp(place) {
  const rows = KEYS.map(([names, text]) =>
    element(
      "div",
      {},
      element(
        "dt",
        {},
        names.flatMap((name) => [element("kbd", {}, KEY_SIGNS[name] ?? name), " "]),
      ),
      element("dd", {}, text),
    ),
  );
  fill(place, element("dl", { class: "keys" }, rows));
}

/** Whether keys write into an element, or choose in it. */
function writes(target) {
  return target.matches?.("input, select, textarea");
}

/**
 * Listens to the keys.
 *
 * @param {Object} actions A function for each action of `KEYS`; the arrows move in the list only
 *   where `arrows()` is true.
 */
export function listenToKeys(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    if (document.querySelector("dialog[open]")) return;
    if (writes(event.target) && event.key !== "Escape") return;
    if (event.key.startsWith("Arrow") && !actions.arrows()) return;
    const found = KEYS.find(([names, , action]) => action && names.includes(event.key));
    if (!found) return;
    event.preventDefault();
    actions[found[2]]();
  });
}
