"""What runs inside the jail. Standard library only, and nothing else of this package: it is mounted there alone.

* `supervisor`: the guest's first process, the parent of every program.
* `template`: the process that has loaded the packages, of which each program gets a copy.
* `immortal`: what keeps the memory of template and copies shared.
* `process`: that copy.
* `confine`: what it does to itself before it reads the program.
* `adapt`: what the standard library is told of the limits.
* `syscalls`: the filter that is a part of this.
* `program`: compiles the program, runs it, and says how it ended.
* `wire`: what host and guest say to each other.
"""
