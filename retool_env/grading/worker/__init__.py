"""The worker process of `retool_env.grading`: compares expressions with math-verify.

* `process`: answers questions, each within its time limit.
* `comparison`: gives the verdict on two texts.
* `readings`: gives a second reading of texts that the parser reads wrongly.
* `words`: tells units, names, numerals and other words apart.
* `expressions`: parses a text into one expression.
* `values`: compares two expressions or two numbers.

This folder imports nothing else of the package, because these imports would take a second and much
memory. The process finds this folder alone, under the name `worker`. It reads questions from
standard input, one JSON line each: see `grader.Question`. It replies with `1`, `0` or `late`. It
ends itself when a comparison that cannot be interrupted overruns its time, when the memory is used
up, and when its input closes.

latex2sympy, the parser of math-verify, parses an expression as a whole. `math_verify.parse`, in
contrast, searches prose for an expression. The parser accepts some texts that a grader must refuse,
and this folder refuses them: chains of equations of which only the last member counts, and text
that is dropped although it contains another number. It also compares numbers itself, because
math-verify compares fifteen decimals, and all tiny numbers are equal in fifteen decimals.
"""
