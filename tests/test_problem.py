"""Problems compare by value; a source finds them by index and by id."""

import copy
import pickle

import pytest

from retool_env.problems import Metadata, Problem, ProblemList, ProblemSource


def test_problems_are_values():
    a = Problem("p/0", "1 + 1?", "2", {"level": 3, "subject": "Algebra"})
    b = Problem("p/0", "1 + 1?", "2", {"subject": "Algebra", "level": 3})
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert a != Problem("p/0", "1 + 1?", "2", {"level": 4, "subject": "Algebra"})
    assert pickle.loads(pickle.dumps(a)) == a and copy.deepcopy(a) == a
    assert a.metadata == {"level": 3, "subject": "Algebra"} and dict(a.metadata)["level"] == 3


def test_nothing_in_a_problem_can_be_changed():
    values = {"level": 3}
    problem = Problem("p/0", "1 + 1?", "2", values)
    values["level"] = 5
    assert problem.metadata["level"] == 3
    with pytest.raises(TypeError):
        problem.metadata["level"] = 4
    with pytest.raises(AttributeError):
        problem.metadata.level = 4
    with pytest.raises(AttributeError):
        problem.answer = "3"
    with pytest.raises(TypeError, match="text and integers"):
        Metadata({"steps": [1]})


@pytest.mark.parametrize("name", ["id", "question", "answer"])
def test_a_problem_has_all_its_parts(name):
    parts = {"id": "p/0", "question": "1 + 1?", "answer": "2"}
    with pytest.raises(ValueError, match=f"{name} must not be empty"):
        Problem(**{**parts, name: " \n"})
    with pytest.raises(TypeError, match=f"{name} must be text"):
        Problem(**{**parts, name: 2})


def test_a_list_is_a_source():
    problems = [Problem(f"p/{i}", "?", str(i)) for i in range(3)]
    source = ProblemList(problems)
    assert isinstance(source, ProblemSource)
    assert len(source) == 3 and list(source) == problems
    assert source[-1] == problems[2] and source.get("p/1") == problems[1]
    with pytest.raises(IndexError):
        source[3]
    with pytest.raises(KeyError, match=r"'p/22'.*nearest is 'p/2'"):
        source.get("p/22")
    assert list(pickle.loads(pickle.dumps(source))) == problems


def test_a_list_refuses_what_can_not_be_found_again():
    with pytest.raises(ValueError, match="two problems have the id 'p/1'"):
        ProblemList([Problem("p/0", "?", "1"), Problem("p/1", "?", "1"), Problem("p/1", "?", "2")])
    with pytest.raises(ValueError, match="at least one"):
        ProblemList([])
