"""The process that is copied for each program."""

import subprocess
import sys

FILL = """
import gc, random
from retool_env.sandbox.guest import confine
from retool_env.sandbox.guest.template import fill_holes

kept = [bytes(random.randrange(1, 480)) for _ in range(200_000)]
del kept[::3]
gc.disable()
regions = confine.own_memory(open("/proc/self/maps").read())
filling = fill_holes(regions)
new = [bytes(size) for size in range(1, 470) for _ in range(5)]
inside = [each for each in new if any(first <= id(each) < end for first, end in regions)]
print(len(inside))
"""


def test_new_objects_do_not_go_between_the_old_ones() -> None:
    done = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 10
