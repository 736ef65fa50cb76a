"""The process behind `retool_env.grading`: compares expressions with math-verify, one question a line.

* `process`: answers questions, each within its time.
* `comparison`: the verdict on two texts.
* `words`: what letters mean: units, names, numerals, other values.
* `expressions`: one text becomes one expression.
* `values`: whether two expressions, or two numbers, are equal.

It imports nothing else of the package, which would take a second and much memory: its process
finds this folder alone, under the name `worker`. Questions arrive on standard input as JSON lines,
see `grader.Question`; the reply is `1`, `0`, or `late`. The process ends itself when a
comparison that cannot be interrupted overruns its time, when memory runs out, and when its input
closes.

An expression is parsed as a whole by latex2sympy, math-verify's own parser, and not searched for something that looks
right, as `math_verify.parse` does with prose. What that parser lets pass and a grader must not is refused here: chains
of equations of which only the last member counts, and text that is dropped although it holds another number. Numbers
are compared here as well: math-verify compares fifteen decimals, at which all tiny numbers are equal.
"""
