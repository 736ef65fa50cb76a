/** The head of the page: the title of the run, what is known of it, and the choice of the run. */
import { definitions, element, fill } from "./dom.js";

/** The choice between several runs; runs of one title are told apart by their paths. */
function runChoice(runs, current, choose) {
  const named = new Set(runs.map((run) => run.title)).size === runs.length;
  const options = runs.map((run, index) => {
    const text = named ? run.title : `${run.title} (${run.path})`;
    return element("option", { value: index, selected: index === current }, text);
  });
  const change = (event) => choose(Number(event.target.value));
  return element("label", {}, "Run ", element("select", { change }, options));
}

/**
 * Shows the run of the state.
 *
 * @param {Object[]} runs All runs.
 * @param {Object} state The state.
 * @param {function(number)} choose Opens another run.
 */
export function showRun(runs, state, choose) {
  const run = runs[state.run];
  const byName = (id) => document.getElementById(id);
  byName("title").textContent = run.title;
  document.title = `${state.episode ?? run.title} · retool view`;
  byName("about").hidden = false;
  fill(byName("about-content"), definitions([["kind", run.kind], ...run.details]));
  if (runs.length > 1) fill(byName("run-choice"), runChoice(runs, state.run, choose));
}
