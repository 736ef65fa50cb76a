/**
 * Where the page's data come from: the server of `retool view`, or the data inside a file of
 * `retool view --html`. Both have the same functions.
 */

const RETRY = "and open the address that it prints.";

/** The source of this page. */
export function openSource() {
  const data = document.getElementById("data");
  return data ? staticSource(JSON.parse(data.textContent)) : serverSource();
}

function serverSource() {
  let paths = "RUN";
  const stopped = () =>
    new Error(`The server has stopped: start it again with "retool view ${paths}" ${RETRY}`);
  const ask = async (name, values = {}, options = {}) => {
    const query = new URLSearchParams(values).toString();
    const answer = await fetch(`api/${name}${query ? `?${query}` : ""}`, options).catch(() => {
      throw stopped();
    });
    const content = await answer.json().catch(() => {
      throw new Error(`The server answered ${answer.status} without words.`);
    });
    if (!answer.ok) throw new Error(content.error);
    return content;
  };
  return {
    live: true,
    async runs() {
      const found = await ask("runs");
      paths = found.runs.map((run) => run.path).join(" ");
      return found;
    },
    rows: (run, since) => ask("rows", { run, since }),
    episode: (run, address) => ask("episode", { run, address }),
    tokens: (run, address) => ask("tokens", { run, address }),
    search: async (run, text) => (await ask("search", { run, text })).addresses,
    rest: async (run, address, span, from) =>
      (await ask("span", { run, address, span, from })).text,
    again: (run, address, call, limit) =>
      ask(
        "run",
        {},
        {
          method: "POST",
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ run, address, call, seconds: limit }),
        },
      ),
  };
}

function staticSource(data) {
  const episode = async (run, address) => {
    const found = data.episodes[run]?.[address];
    if (found) return found;
    const file = data.elsewhere?.[run]?.[address];
    if (!file) throw new Error(`This file does not hold the episode ${address}.`);
    throw Object.assign(new Error(`The episode ${address} is in another file:`), { file });
  };
  const texts = (row, run) => {
    const found = data.episodes[run]?.[row.address];
    const spans = found ? found.spans.map((span) => span.text) : [];
    return [row.question, row.answer ?? "", found?.problem.question ?? "", ...spans];
  };
  return {
    live: false,
    runs: async () => ({ runs: data.runs, can_run: false }),
    rows: async (run) => ({ rows: data.rows[run], next: 1, removed: [] }),
    episode,
    async tokens(run, address) {
      const found = data.tokens?.[run]?.[address];
      if (!found) throw new Error("This file holds no tokens of the episode.");
      return found;
    },
    async search(run, text) {
      const wanted = text.toLowerCase();
      const holds = (row) => texts(row, run).some((each) => each.toLowerCase().includes(wanted));
      return data.rows[run].filter(holds).map((row) => row.address);
    },
    async rest() {
      throw new Error("This file holds only the beginning of the text.");
    },
    async again() {
      throw new Error("A file can't run programs.");
    },
  };
}
