"""The tables of study C on the page of `benchmarks.recovery`, in Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parts import study_larger as larger
from benchmarks.parts.study_cells import NOT_RUN, percent, points, signed_number, table_of
from benchmarks.parts.study_figures import (
    accuracy,
    accuracy_change,
    kinds_of,
    recovery,
    recovery_change,
)
from benchmarks.parts.study_next import next_table
from benchmarks.parts.study_pictures import Results
from benchmarks.parts.study_tables import (
    NEXT_ROWS,
    OBSERVED_HEAD,
    figure_text,
    kinds_of_models,
    thirds_rows,
)
from benchmarks.parts.study_use import calls_of, use_change

LARGER_MODELS = {"SmolLM2, cold start": larger.BEFORE, "SmolLM2, after GRPO": larger.AFTER}
"""The models of study C, and the parts that evaluate them."""


def larger_table(results: Results) -> list[str]:
    """Study C: accuracy, use of the tool and recovery, before and after GRPO, and the change.

    Args:
        results: The results.
    """
    head = (
        *("model", "right without faults", "calls", "tool gain"),
        *("seen kinds: ratio", "held-out kinds: ratio"),
    )
    # A problem has one value, so the output of an earlier call mostly shows the true value.
    groups = [[kind for kind in kinds_of(seen) if kind != "stale"] for seen in (True, False)]

    def rows() -> Iterator[list[str]]:
        found = []
        for name, part in LARGER_MODELS.items():
            if part not in results:
                yield [name, NOT_RUN, *["–"] * 4]
                continue
            whole = results[part]["evaluations"]["whole"]
            found.append([whole])
            mean, *ratios = accuracy([whole]), *(recovery([whole], kinds) for kinds in groups)
            yield [
                name,
                percent(mean.mean, mean.low, mean.high),
                f"{calls_of(whole):.2f}",
                figure_text(whole, "frequency/gain"),
                *(percent(ratio.mean, ratio.low, ratio.high) for ratio in ratios),
            ]
        if len(found) == len(LARGER_MODELS):
            before, after = found
            yield [
                "change",
                points(accuracy_change(before, after)),
                points(use_change(before, after, "calls"), written=signed_number),
                points(use_change(before, after, "tool gain")),
                *(points(recovery_change(before, after, kinds)) for kinds in groups),
            ]

    return table_of(head, rows())


def larger_kinds_table(results: Results) -> list[str]:
    """Study C: the recovery ratio of each kind before and after GRPO.

    Args:
        results: The results.
    """
    done = {name: part for name, part in LARGER_MODELS.items() if part in results}
    wholes = {name: [results[part]["evaluations"]["whole"]] for name, part in done.items()}
    return kinds_of_models(wholes, effect=False)


def larger_next_table(results: Results) -> list[str]:
    """Study C: the next step of the model after each kind of fault, before and after GRPO.

    Args:
        results: The results.
    """
    done = {name: part for name, part in LARGER_MODELS.items() if part in results}
    wholes = {name: [results[part]["evaluations"]["whole"]] for name, part in done.items()}
    return next_table(wholes, NEXT_ROWS)


def larger_observed_table(results: Results) -> list[str]:
    """Study C: the use of the tool and the observed recovery in the rollouts of the training.

    Args:
        results: The results.
    """
    part = results.get(larger.TRAINED)
    rows = thirds_rows("SmolLM2, GRPO", part["training"]) if part else iter([["GRPO", NOT_RUN]])
    return table_of(OBSERVED_HEAD, rows)
