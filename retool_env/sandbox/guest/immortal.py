"""Objects whose references are not counted.

To use an object is to write to it: its count of references changes, and a copy of the process then needs a page of its
own for it. Python does not count those of its own singletons, such as `None`; here all objects that exist are given
what tells these apart (PEP 683). They are never freed, which objects that a template keeps for its copies are not
anyway.
"""

import ctypes
import gc
import sys
from types import CodeType

_Mark = ctypes.c_uint32  # the half of the count that says so
_MANY = 1 << 31  # no count is so high, unless it is that mark
_BATCH = 1000


def immortalize() -> int:
    """Ends the counting for all objects that the collector knows, and for those that they refer to.

    Returns:
        How many there were.
    """
    mark = _Mark.from_address(id(None)).value
    made = 0
    # Little is kept on the way, since it would leave holes between the objects.
    found = gc.get_objects()
    while found:
        batch = found[-_BATCH:]
        del found[-_BATCH:]
        fresh = []
        for each in batch:
            if sys.getrefcount(each) < _MANY:
                _Mark.from_address(id(each)).value = mark
                fresh.append(each)
        made += len(fresh)
        found += gc.get_referents(*fresh)
        for each in fresh:
            if type(each) is CodeType:  # of which the collector knows nothing
                found += (
                    each.co_consts,
                    each.co_names,
                    each.co_varnames,
                    each.co_freevars,
                    each.co_cellvars,
                    each.co_name,
                    each.co_qualname,
                    each.co_filename,
                    each.co_linetable,
                    each.co_exceptiontable,
                )
    return made
