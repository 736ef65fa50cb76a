"""The viewer of recorded runs: a page in a browser, one HTML file, or a terminal.

* [`index`][retool_env.evaluation.view.index]: the rows of a run, and where its episodes lie.
* [`rows`][retool_env.evaluation.view.rows]: the row of one episode.
* [`filters`][retool_env.evaluation.view.filters]: the filter query.
* [`episode`][retool_env.evaluation.view.episode]: one episode as the viewers show it.
* [`tokens`][retool_env.evaluation.view.tokens]: the tokens of one episode.
* [`server`][retool_env.evaluation.view.server]: the page's server on this machine.
* [`static`][retool_env.evaluation.view.static]: the page as files.
"""
