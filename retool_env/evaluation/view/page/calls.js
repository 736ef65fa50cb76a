/**
 * A call of the interpreter: how it ended, what really happened under an injected fault, its forks,
 * and the form that runs its program again with more time.
 */
import { alertBox, button, copy, element, fill, seconds } from "./dom.js";
import { isolated, longText } from "./text.js";
import { verdict } from "./list.js";

const ARMS = new Map([
  ["control", "control (true result)"],
  ["keep", "keep (the error as it was)"],
  ["drop", "drop (without the call)"],
  ["bare", 'bare ("Error" alone)'],
  ["mended", "mended (the result of a later call that ran)"],
]);

/** The name of an arm with its meaning. */
export function armName(arm) {
  return ARMS.get(arm) ?? arm.replaceAll("_", " ");
}

const MOST_OF_AN_ERROR = 200;

/** How a run ended in one word: its exception, or its outcome. */
function oneWord(run) {
  const exception = /^\w*(?:Error|Exception|Interrupt|Exit|Iteration)\b/.exec(run.error ?? "");
  return exception ? exception[0] : run.outcome.replaceAll("_", " ");
}

/**
 * The outcome of a run in words, with a sign and a colour.
 *
 * @param {Object} run A call, or what really happened at a call.
 * @param {boolean} short Whether one word is enough.
 */
export function outcome(run, short = false) {
  const ok = run.outcome === "ok";
  const error = run.error ? `: ${run.error}` : "";
  const long = `${run.outcome.replaceAll("_", " ")}${error}`;
  const cut = long.length > MOST_OF_AN_ERROR ? `${long.slice(0, MOST_OF_AN_ERROR)}…` : long;
  const words = isolated(short ? oneWord(run) : cut);
  return element("span", { class: ok ? "outcome ok" : "outcome failed" }, ok ? "✓ " : "✗ ", words);
}

/** The output of a run: what it wrote, and its error. */
function output(run) {
  const shown = [];
  if (run.stdout) shown.push(element("h5", {}, "Output"), longText("result", [["", run.stdout]]));
  const failure = run.traceback || run.error;
  if (failure) shown.push(element("h5", {}, "Error"), longText("result", [["", failure]]));
  if (!shown.length) shown.push(element("p", { class: "note" }, "It wrote nothing."));
  return shown;
}

/** What really happened at a call for which a fault was ordered. */
export function faultBox(fault) {
  const name = fault.kind.replaceAll("_", " ");
  if (!fault.injected) {
    return element(
      "p",
      { class: "note" },
      `The fault "${name}" was ordered here. It did not fit this call, so the result is true.`,
    );
  }
  const real = fault.real
    ? [
        element("p", {}, "The program really ended like this: ", outcome(fault.real)),
        ...output(fault.real),
      ]
    : [element("p", {}, "The program did not run, so there is no true result.")];
  return element(
    "div",
    { class: "fault", role: "group", "aria-label": "What really happened" },
    element("h4", {}, `Injected fault: ${name}`),
    element("p", {}, "The model saw the result above. It is not the program's own."),
    real,
  );
}

function forkLink(address, number, { link, besideLink, rightOf }) {
  return element(
    "li",
    {},
    element("a", { href: link(address), title: address }, `fork ${number}`),
    " ",
    verdict(rightOf(address)),
    " ",
    element(
      "a",
      { href: besideLink(address), "aria-label": `fork ${number} of this arm, side by side` },
      "side by side",
    ),
  );
}

/** The forks of an episode at one call, arm by arm. */
export function forkBox(forks, page) {
  const arms = forks.map((fork) => {
    return element(
      "details",
      {},
      element(
        "summary",
        {},
        element("strong", {}, isolated(armName(fork.arm))),
        `: ${fork.right} of ${fork.ended} right`,
        element("span", { class: "show" }, " — show"),
      ),
      element(
        "ul",
        {},
        fork.addresses.map((address, index) => forkLink(address, index, page)),
      ),
    );
  });
  return element(
    "div",
    { class: "forks", role: "group", "aria-label": "Forks at this call" },
    element("h4", {}, page.isFork ? "The forks of this call" : "Forked from here"),
    element("p", { class: "note" }, "Each arm shows the model its own result of this call."),
    arms,
  );
}

function command(page, call, limit) {
  const parts = ["retool", "replay", page.path, page.address];
  const safe = parts.map((part) =>
    /^[\w@%+=:,./-]+$/.test(part) ? part : `'${part.replaceAll("'", `'\\''`)}'`,
  );
  return `${safe.join(" ")} --call ${call.number} --seconds ${limit}`;
}

function found(run) {
  return [
    element(
      "p",
      {},
      "Run again: ",
      outcome(run),
      element("span", { class: "meta" }, ` ${seconds(run.seconds)}`),
    ),
    ...output(run),
  ];
}

/** The form that runs the program of a call again with more time, or shows the command for it. */
export function againForm(call, page) {
  const answer = element("div", { class: "again-result", "aria-live": "polite" });
  const limit = element("input", {
    type: "number",
    min: "0.1",
    max: "3600",
    step: "any",
    value: String(Math.max(30, Math.ceil(call.seconds * 6))),
    required: true,
    "aria-label": `Seconds for call ${call.number}`,
  });
  const submit = element("button", {}, page.canRun ? "Run again" : "Show the command");
  const run = async () => {
    if (!page.canRun) {
      const text = command(page, call, limit.value);
      const copied = button("Copy", (event) => copy(text, event.currentTarget));
      return fill(
        answer,
        element("p", {}, element("code", { class: "command" }, text), " ", copied),
      );
    }
    submit.disabled = true;
    fill(answer, element("p", { class: "note" }, `Running, for at most ${limit.value} s …`));
    try {
      fill(answer, found(await page.again(call.number, Number(limit.value))));
    } catch (error) {
      fill(answer, alertBox(error));
    }
    submit.disabled = false;
  };
  const form = element(
    "form",
    {
      class: "again",
      submit: (event) => {
        event.preventDefault();
        run();
      },
    },
    element("label", {}, "At most ", limit, " seconds"),
    " ",
    submit,
  );
  const summary = element("summary", {}, "Run again with more time");
  return element("details", { class: "again-box", open: !call.ok }, summary, form, answer);
}
