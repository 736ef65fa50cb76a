"""Faults in the interpreter: results that a model meets although its program did not cause them.

`Rules.faults` switches them on. A hash decides which calls fail and how (`schedule`), so that every
model meets the same faults. The result that the model sees is made by `kinds`; what really happened
is kept in `Execution.fault`.
"""

from retool_env.faults.settings import KINDS as KINDS
from retool_env.faults.settings import Faults as Faults
from retool_env.faults.settings import Kind as Kind

__all__ = ["KINDS", "Faults", "Kind"]
