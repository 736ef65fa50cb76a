"""Each layer imports only lower layers, and no modules import one another in a circle."""

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

LAYERS = (
    ("benchmarks",),
    ("agents",),
    ("retool_env.cli", "retool_env.commands", "retool_env.doctor"),
    ("retool_env.evaluation",),
    ("retool_env.metrics", "retool_env.integrations"),
    ("retool_env.training",),
    ("retool_env.rollout",),
    ("retool_env", "retool_env.env", "retool_env.vector"),
    (
        *("retool_env.spaces", "retool_env.task", "retool_env.checkpoint_task"),
        *("retool_env.checkpoint_checks", "retool_env.key_values"),
    ),
    ("retool_env.interpreter",),
    ("retool_env.episode",),
    ("retool_env.rules", "retool_env.rewards"),
    (
        *("retool_env.transcript", "retool_env.transcript_text"),
        *("retool_env.need", "retool_env.stop_reason"),
    ),
    ("retool_env.protocol",),
    ("retool_env.problems",),
    ("retool_env.grading",),
    ("retool_env.sandbox",),
    ("retool_env.servers",),
    ("retool_env.faults",),
    ("retool_env.problem", "retool_env.execution", "retool_env.tokens", "retool_env.provenance"),
    (
        *("retool_env.errors", "retool_env.files", "retool_env.children"),
        *("retool_env.printable", "retool_env.pictures", "retool_env.rotation"),
        "retool_env.durable",
    ),
)
"""The layers from top to bottom, by prefixes of module names; the longest prefix counts."""

SANDBOX_USERS = (
    *("benchmarks", "agents", "retool_env.cli", "retool_env.commands", "retool_env.doctor"),
    *("retool_env", "retool_env.env", "retool_env.vector", "retool_env.task"),
    "retool_env.interpreter",
)
"""The modules that may import the sandbox; the record of an episode may not."""

MOVED = {
    "retool_env.hermes": "Hermes",
    "retool_env.integrations.correction": "importance_weights",
    "retool_env.integrations.packing": "pack",
    "retool_env.integrations.rows": "training_rows",
    "retool_env.integrations.weights": "trained_weights",
    "retool_env.intervals": "wilson",
    "retool_env.problems.problem": "ProblemList",
    "retool_env.program": "read_program",
    "retool_env.recovery": "measure_recovery",
    "retool_env.rollout.vllm_server": "VLLMServerPolicy",
    "retool_env.rollout.vllm_worker": "WeightLoader",
    "retool_env.sandbox.execution": "Limits",
}
"""Former names of modules, each with a name that the module still exports."""

KEPT = {
    "retool_env.env": [
        *("ReToolEnv", "STOPPED", "make_task", "registered_settings", "split_settings"),
    ],
    "retool_env.episode": [
        *("Episode", "Generation", "GradeAnswer", "RunProgram", "Rules", "Tokenizer"),
    ],
    "retool_env.evaluation": ["TEMPERATURE", "TOP_P", "evaluate", "table", "tool_table"],
    "retool_env.grading": ["extract_boxed", "is_equivalent"],
    "retool_env.integrations.rollouts": ["EngineRollouts", "RolloutsAbandoned", "Sampled"],
    "retool_env.integrations.trl": [
        *("Advantages", "EngineGRPOTrainer", "EngineRollouts", "Normalisation", "episode_reward"),
        *("problem_dataset", "training_rows"),
    ],
    "retool_env.metrics": ["Summary", "code_purposes", "summarise", "summarise_along"],
    "retool_env.problems": ["Problem", "ProblemList", "ProblemSource", "ProblemsUnavailable"],
    "retool_env.protocol": ["Said", "Tags", "Turn", "TurnKind", "parse_turn", "render_output"],
    "retool_env.protocol.calls": ["Call", "first_call"],
    "retool_env.rollout.openai": ["OpenAIPolicy"],
    "retool_env.rollout.transformers": ["TransformersPolicy", "load_policy"],
    "retool_env.rollout.vllm": ["VLLMPolicy"],
    "retool_env.transcript": ["StopReason", "Transcript"],
    "retool_env.sandbox": ["Execution", "Limits", "Outcome", "Sandbox", "SandboxUnavailable"],
}
"""Names that modules still export, though some are defined elsewhere now."""


def files_of(*folders: str) -> dict[str, Path]:
    """The files of the modules in these folders, by module name."""
    found = {}
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = files_of("retool_env", "agents", "benchmarks")


def imports_of(module: str) -> set[str]:
    """The modules of this project that a module imports anywhere in its code."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # the guest's modules run outside of retool_env
                folder = MODULES[module].parents[node.level - 1].relative_to(ROOT)
                base = ".".join([*folder.parts, *([base] if base else [])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return {name for name in found if name in MODULES}


IMPORTS = {name: imports_of(name) for name in MODULES if name not in MOVED}


def within(module: str, room: str) -> bool:
    return module == room or (room != "retool_env" and module.startswith(f"{room}."))


def layer_of(module: str) -> int:
    rooms = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    return rooms[max((room for room in rooms if within(module, room)), key=len)]


@pytest.mark.parametrize("module", IMPORTS)
def test_a_module_imports_only_what_lies_in_its_layer_or_below(module):
    assert [name for name in IMPORTS[module] if layer_of(name) < layer_of(module)] == []
    assert not IMPORTS[module] & MOVED.keys(), "an old name"


def test_no_modules_import_one_another_in_a_circle():
    list(graphlib.TopologicalSorter(IMPORTS).static_order())


@pytest.mark.parametrize("module", IMPORTS)
def test_the_record_of_an_episode_does_not_stand_on_the_jail(module):
    if not any(within(module, user) for user in (*SANDBOX_USERS, "retool_env.sandbox")):
        assert [name for name in IMPORTS[module] if within(name, "retool_env.sandbox")] == []


@pytest.mark.parametrize("module", MOVED)
def test_old_names_of_modules_go_on_working(module):
    assert hasattr(importlib.import_module(module), MOVED[module])


@pytest.mark.parametrize("module", KEPT)
def test_modules_go_on_giving_what_lies_elsewhere_now(module):
    given = vars(importlib.import_module(module))
    assert [name for name in KEPT[module] if name not in given] == []


def test_importing_the_library_loads_neither_torch_nor_vllm():
    heavy = ["torch", "vllm", "transformers", "trl", "openai", "httpx", "fastapi"]
    code = f"import sys, retool_env; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
