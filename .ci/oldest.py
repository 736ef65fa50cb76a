"""Prints the oldest versions that setup.cfg allows, as constraints for pip.

`python .ci/oldest.py EXTRA,EXTRA` reads the required packages of the library and of the extras.
"""

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
    lowest = [bound.version for bound in requirement.specifier if bound.operator in (">=", "==")]
    if lowest:
        print(f"{requirement.name}=={lowest[0]}")
