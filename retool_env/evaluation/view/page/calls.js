/**
 * A call of the interpreter: how it ended, what really happened under an injected fault, its forks,
 * and the form that runs its program again with more time.
 */
import { alertBox, button, copy, element, fill, seconds } from "./dom.js";
import { isolated, longText } from "./text.js";
import { verdict } from "./list.js";

/** The outcome of a call in words, with a sign and a colour. */
export function outcome(call) {
  const words = call.outcome.replaceAll("_", " ");
  const error = call.error && call.error !== call.outcome ? `: ${call.error}` : "";
  return element(
    "span",
    { class: `outcome ${call.ok ? "ok" : "failed"}` },
    call.ok ? "✓ " : "✗ ",
    isolated(`${words}${error}`),
  );
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

function ended(run) {
  return outcome({ ...run, ok: run.outcome === "ok" });
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
    ? [element("p", {}, "The program really ended like this: ", ended(fault.real)), ...output(fault.real)]
    : [element("p", {}, "The program did not run, so there is no true result.")];
  return element(
    "section",
    { class: "fault", "aria-label": "What really happened" },
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
    const name = fork.arm === "control" ? "control (true result)" : fork.arm.replaceAll("_", " ");
    return element(
      "details",
      {},
      element(
        "summary",
        {},
        element("strong", {}, isolated(name)),
        `: ${fork.right} of ${fork.ended} right`,
        element("span", { class: "show" }, " — show"),
      ),
      element("ul", {}, fork.addresses.map((address, index) => forkLink(address, index, page))),
    );
  });
  return element(
    "section",
    { class: "forks", "aria-label": "Forks at this call" },
    element("h4", {}, "From here the episode was continued again"),
    element("p", { class: "note" }, "Each arm shows the model another result of this call."),
    arms,
  );
}

function command(page, call, limit) {
  const parts = ["retool", "replay", page.path, page.address];
  const safe = parts.map((part) => (/^[\w@%+=:,./-]+$/.test(part) ? part : `'${part.replaceAll("'", `'\\''`)}'`));
  return `${safe.join(" ")} --call ${call.number} --seconds ${limit}`;
}

function found(run) {
  return [
    element("p", {}, "Run again: ", ended(run), element("span", { class: "meta" }, ` ${seconds(run.seconds)}`)),
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
      return fill(answer, element("p", {}, element("code", { class: "command" }, text), " ", copied));
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
