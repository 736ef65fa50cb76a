/** The rows of all runs as they were loaded, and the answers to searches. */
import { flipsOf, identity } from "./query.js";

/** Whether two rows are forks of one call, or whole episodes of one problem. */
function sameCall(one, row) {
  const same = one.problem === row.problem && one.parent === row.parent && one.call === row.call;
  return same && one.step === row.step;
}

/** Whether a row fits beside another by default: a fork with the true result of the same call. */
function fitsBeside(one, row) {
  return one !== row && sameCall(one, row) && (row.parent === null || one.arm === "control");
}

/**
 * Makes the store of a source.
 *
 * @param {Object} source The source (see `source.js`).
 * @returns {Object} `load()`, which loads the runs and the rows that are new and says whether
 *   anything changed; `runs()`, `canRun()`, `rows(run)`, `row(run, address)`, `other(run)`,
 *   `flips(run)`, `search(run, texts)`, `siblings(run, address)` and `partner(run, address)`.
 */
export function makeStore(source) {
  const kept = [];
  const searches = new Map();
  let runs = [];
  let canRun = false;

  const take = (run, { rows, next, removed }) => {
    const known = (kept[run] ??= { byAddress: new Map(), next: 0, list: [] });
    known.next = next;
    for (const address of removed) known.byAddress.delete(address);
    for (const row of rows) known.byAddress.set(row.address, row);
    const changed = rows.length + removed.length > 0;
    if (changed) known.list = [...known.byAddress.values()];
    return changed;
  };

  const load = async () => {
    const before = JSON.stringify(runs);
    ({ runs, can_run: canRun } = await source.runs());
    const answers = await Promise.all(runs.map((_, run) => source.rows(run, kept[run]?.next ?? 0)));
    const changed = answers.map((answer, run) => take(run, answer)).includes(true);
    if (changed) searches.clear();
    return changed || JSON.stringify(runs) !== before;
  };

  const rows = (run) => kept[run].list;
  const row = (run, address) => kept[run]?.byAddress.get(address) ?? null;
  const other = (run) => (runs.length > 1 ? Number(run === 0) : null);

  const flips = (run) => (other(run) === null ? undefined : flipsOf(rows(run), rows(other(run))));

  const search = async (run, texts) => {
    const answers = texts.map((text) => {
      const key = `${run} ${text}`;
      if (!searches.has(key)) searches.set(key, source.search(run, text));
      searches.get(key).catch(() => searches.delete(key));
      return searches.get(key);
    });
    const found = await Promise.all(answers);
    return new Map(texts.map((text, index) => [text, new Set(found[index])]));
  };

  /** The episode that stands beside another by default: [run, address], or null. */
  const partner = (run, address) => {
    const mine = row(run, address);
    if (!mine) return null;
    const second = other(run);
    const same =
      second === null ? null : rows(second).find((one) => identity(one) === identity(mine));
    if (same) return [second, same.address];
    const related = rows(run).find((one) => fitsBeside(one, mine));
    return related ? [run, related.address] : null;
  };

  /** All forks of a fork's call, arm by arm, in the form of an episode's forks. */
  const siblings = (run, address) => {
    const mine = row(run, address);
    if (!mine || mine.parent === null) return [];
    const family = rows(run).filter((one) => sameCall(one, mine) && one.protocol === mine.protocol);
    const arms = Object.entries(Object.groupBy(family, (one) => one.arm));
    return arms.map(([arm, forks]) => ({
      arm,
      call: mine.call,
      right: forks.filter((fork) => fork.right).length,
      ended: forks.filter((fork) => fork.right !== null).length,
      addresses: forks.map((fork) => fork.address),
    }));
  };

  return {
    load,
    siblings,
    runs: () => runs,
    canRun: () => canRun,
    rows,
    row,
    other,
    flips,
    search,
    partner,
  };
}
