"""The body of `POST /run_code`, as SandboxFusion's clients and this project's client send it."""

import binascii
import json
from typing import Literal

from pydantic import BaseModel, Field, InstanceOf, ValidationError

from retool_env.execution import DEFAULT_LIMITS, Files, Limits
from retool_env.sandbox.fusion import OWN_LIMITS


class OwnFields(BaseModel):
    """Fields that only this project's client sends; see [`fusion`][retool_env.sandbox.fusion]."""

    output_bytes: int = DEFAULT_LIMITS.output_bytes
    processes: int = DEFAULT_LIMITS.processes
    tmp_mb: int = DEFAULT_LIMITS.tmp_mb
    display: bool = False


class RunCodeRequest(BaseModel):
    """The body of `POST /run_code`. `compile_timeout` and unknown fields are ignored."""

    code: InstanceOf[str]  # `str` would refuse lone surrogates
    language: Literal["python"]
    stdin: InstanceOf[str] | None = None
    run_timeout: float = 10.0
    memory_limit_MB: int = -1
    files: dict[str, str | None] = {}
    fetch_files: list[str] = []
    retool: OwnFields = Field(default_factory=OwnFields)

    def limits(self, maximum: Limits) -> Limits:
        """The program's limits.

        Args:
            maximum: The highest limits that the server allows.

        Raises:
            ValueError: A limit is not positive, or above the maximum.
        """
        memory = self.memory_limit_MB if self.memory_limit_MB > 0 else DEFAULT_LIMITS.memory_mb
        own = {name: getattr(self.retool, name) for name in OWN_LIMITS}
        limits = Limits(wall_seconds=self.run_timeout, memory_mb=memory, **own)
        for name, highest in vars(maximum).items():
            if (asked := getattr(limits, name)) > highest:
                raise ValueError(f"{name} of {asked} is above this server's maximum, {highest}")
        return limits

    def exchanged(self) -> Files | None:
        """The files that go with the program and come back; `None` if the request names no files.

        Raises:
            ValueError: A content is not base64, a name is invalid, or there are too many files.
        """
        if not (self.files or self.fetch_files):
            return None
        given = {}
        for name, data in self.files.items():
            try:
                given[name] = binascii.a2b_base64(data or "")
            except ValueError as error:
                raise ValueError(f"files: the content of {name!r:.100} is not base64") from error
        return Files(given, self.fetch_files)


def parse(body: bytes | bytearray) -> RunCodeRequest:
    """Reads the body of a request.

    Args:
        body: The bytes of the body.

    Raises:
        ValueError: The body is not a request. The message does not repeat the program.
    """
    try:
        return RunCodeRequest.model_validate(json.loads(body))
    except ValidationError as error:
        faults = ((".".join(map(str, fault["loc"])), fault["msg"]) for fault in error.errors())
        raise ValueError("; ".join(f"{where or 'body'}: {why}" for where, why in faults)) from None
    except RecursionError:
        raise ValueError("the body is nested too deeply") from None
