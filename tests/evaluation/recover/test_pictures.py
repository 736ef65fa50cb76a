"""Pictures are drawn from the figures that are shown."""

import pytest

from retool_env.evaluation.recover.pictures import draw, shown_figures

pytest.importorskip("matplotlib")


def figure(key, mean, **more):
    return {"key": key, "mean": mean, "low": None, "high": None, "count": 9, **more}


def results(*figures):
    return {"model": {"title": "m"}, "kinds": ["timeout", "busy"], "figures": list(figures)}


def test_hidden_figures_and_figures_without_a_case_are_not_drawn():
    one = results(figure("effect/timeout", 0.1, shown=False), figure("effect/busy", None))
    assert shown_figures(one) == {} and draw([one]) == {}


def test_each_group_of_figures_has_its_picture():
    forks = results(
        *(figure(f"{name}/timeout", 0.5) for name in ("control", "fault", "effect", "ratio")),
        *(figure(f"outcome/control/{call}/right", 1.0) for call in (0, 1)),
    )
    dose = results(
        *(
            figure(f"dose/{rate}/{name}", 0.5)
            for rate in ("0", "0.25")
            for name in ("accuracy", "calls")
        )
    )
    pictures = draw([forks, dose])
    assert set(pictures) == {"heat-map", "recovery", "dose", "outcomes-1"}
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
