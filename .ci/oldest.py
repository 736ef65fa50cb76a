"""Prints constraints for pip: of what setup.cfg asks for in these extras, the oldest versions. `python .ci/oldest.py EXTRA,EXTRA`."""

import configparser
import sys

from packaging.requirements import Requirement

config = configparser.ConfigParser()
config.read("setup.cfg")
lines = config["options"]["install_requires"].splitlines()
for extra in sys.argv[1].split(","):
    lines += config["options.extras_require"][extra].splitlines()
for line in filter(None, lines):
    requirement = Requirement(line)
    lowest = [each.version for each in requirement.specifier if each.operator in (">=", "==")]
    if lowest:
        print(f"{requirement.name}=={lowest[0]}")
