"""The code that runs inside the jail.

It uses only the standard library and this package, because only this package is mounted there.

* `supervisor`: the guest's first process, the parent of every program.
* `template`: the process that has loaded the packages; each program gets a copy of it.
* `immortal`: keeps memory shared between the template and its copies.
* `process`: such a copy, from its first moment to the end of its program.
* `confine`: the restrictions that a copy puts on itself before it reads the program.
* `syscalls`: the filter of system calls, one of these restrictions.
* `adapt`: tells Python's standard library about the limits.
* `program`: compiles and runs the program, and reports how it ended.
* `wire`: the messages between host and guest.
"""
