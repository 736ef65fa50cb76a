"""The script that runs a program, at the far side of the sandbox. Standard library only.

It takes the program's text from stdin and gives its stdout to the program. On stderr it writes
two records, each between NUL bytes: one just before the program begins, one with its outcome.
From then on stdin and stderr are /dev/null: what a program writes on stderr is not a result.

The program is the module `__main__` with one dictionary of globals, and its text is compiled as it
is. A program can forge its own record, which changes nothing but what is said of itself.

Arguments: the address-space limit to set in bytes (0: it has been set from outside), then the
folders that hold the packages.
"""

import _sitebuiltins
import builtins
import errno
import os
import sys

_DENIED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH}
_OUT_OF_MEMORY = b"\0memory_limit\n\0"  # made beforehand: later there is no memory to make it


def _one_line(error: BaseException) -> str:
    """Says `error` as the last line of its traceback would."""
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = f"{kind.__module__}.{name}"
    try:
        text = str(error)
    except Exception:
        text = "<exception str() failed>"
    if isinstance(error, SyntaxError):
        text = f"{error.msg} (line {error.lineno})" if error.lineno else str(error.msg)
    text = " ".join(text.split("\n"))
    return (f"{name}: {text}" if text else name)[:2000]


def _is_denied(error: BaseException) -> bool:
    """Was it the sandbox that said no?"""
    if not isinstance(error, OSError):
        return False
    cause = getattr(error, "reason", error)  # urllib wraps the reason
    return getattr(cause, "errno", None) in _DENIED or type(cause).__name__ == "gaierror"


def _execute(source: str) -> tuple[str, str]:
    """Runs `source` and returns its outcome and error. Lets `MemoryError` through."""
    try:
        # A text with a lone surrogate or, in some versions, a NUL is refused by a ValueError.
        program = compile(source, "<program>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        return "syntax_error", _one_line(error)
    except RecursionError as error:
        return "runtime_error", _one_line(error)
    main = type(sys)("__main__")
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    try:
        exec(program, main.__dict__)
    except MemoryError:
        raise
    except SystemExit as error:
        if error.code is None or error.code == 0:
            return "ok", ""
        return "runtime_error", _one_line(error)
    except BaseException as error:
        return "blocked" if _is_denied(error) else "runtime_error", _one_line(error)
    return "ok", ""


def _run() -> int:
    sys.path[:] = [path for path in sys.path if not path.endswith(".zip")] + sys.argv[2:]
    memory = int(sys.argv[1])
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    sys.argv[:] = [""]
    # What the module `site` adds, which is skipped because it takes longer than all the rest.
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    builtins.help = _sitebuiltins._Helper()

    chunks = []
    while chunk := os.read(0, 1 << 20):
        chunks.append(chunk)
    source = b"".join(chunks).decode("utf-8", "surrogatepass")
    report, guest = os.dup(2), os.getpid()  # the copy is not inherited across an exec
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 2)
    os.close(null)
    os.write(report, b"\0started\0")
    try:
        outcome, error = _execute(source)
        line = error.replace("\0", "\\0").encode("utf-8", "backslashreplace")
        record = b"\0%s\n%s\0" % (outcome.encode(), line)
    except MemoryError:
        outcome, record = "memory_limit", _OUT_OF_MEMORY
    if os.getpid() == guest:  # a child that the program forked ends here too: not its outcome
        try:  # `contextlib`, like most modules, takes longer to import than all of this to run
            os.write(report, record)
        except OSError:  # the program closed every descriptor: its exit status has to do
            return 0 if outcome == "ok" else 1
    return 0 if outcome == "ok" else 1


if __name__ == "__main__":
    sys.exit(_run())
