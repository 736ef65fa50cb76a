"""Makes objects immortal: Python no longer counts their references.

Each use of an object changes its reference count, which writes to the object's page, so that a copy
of the process then needs its own copy of the page. Python does not count references of immortal
objects such as `None` (PEP 683). This module marks all existing objects in the same way. They are
never freed, but the template keeps them anyway.
"""

import ctypes
import gc
import sys
from types import CodeType

_Mark = ctypes.c_uint32  # the half of the count that marks immortal objects
_MANY = 1 << 31  # only marked objects have so high a count
_BATCH = 1000
_PARTS_OF_CODE = (  # the garbage collector does not know them
    *("co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_name"),
    *("co_qualname", "co_filename", "co_linetable", "co_exceptiontable"),
)


def immortalize() -> int:
    """Ends reference counting for all objects of the garbage collector and all that they refer to.

    Returns:
        The number of objects marked.
    """
    mark = _Mark.from_address(id(None)).value
    made = 0
    # In batches: many temporary objects would leave holes between the objects.
    todo = gc.get_objects()
    while todo:
        batch = todo[-_BATCH:]
        del todo[-_BATCH:]
        fresh = []
        for thing in batch:
            if sys.getrefcount(thing) < _MANY:
                _Mark.from_address(id(thing)).value = mark
                fresh.append(thing)
        made += len(fresh)
        todo += gc.get_referents(*fresh)
        for thing in fresh:
            if type(thing) is CodeType:
                todo += [getattr(thing, part) for part in _PARTS_OF_CODE]
    return made
