r"""VLLMServerPolicy: a model served by `vllm serve`, on one machine or several. Token ids in, token ids out.

    vllm serve MODEL --logprobs-mode processed_logprobs

Which server gets a turn, `retool_env.rollout.routing` says. A server that fails (no connection, no answer in time, a 5xx) is
set aside, twice as long each time in a row, and its turns go to another; one that is busy (429, or 503 with `Retry-After`)
gets them again when it said. Where the distribution sampled from is not the model's own, a server is first asked for a turn that
shows which log-probs it reports.

New weights reach the servers as files, in a folder that each of them can read: a checkpoint's, or one in which this policy
writes the tensors that it gets (`weights_folder`). For that they are started as

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \
        --worker-extension-cls retool_env.rollout.vllm_worker.WeightLoader

where this package is installed. That mode lets whoever reaches a server pause it: keep it in a private network. Each notes
which weights it serves, so that one that comes back from a failure is asked, and brought up to date before it gets a turn.
What an earlier run has left there is asked at first: other weights than those that a server was started with are warned of, and
one that was left paused, in the midst of new weights, gets no turn before they are loaded anew.

Several processes may share the servers, each with a policy of its own. One of them updates the weights; then the others
`follow`. Between the two they should begin no turn: it would have the new weights and the old number.

`trl vllm-serve` of TRL 1.16 starts this very server, with that mode, those log-probs, and what else it is given; so it needs
only `--worker-extension-cls` as above. Where a trainer of TRL pushes weights there by itself, it neither names them nor waits
for turns to end: turns go on with them, under this policy's last number.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from retool_env.episode import Generation, Tokenizer
from retool_env.rollout.background import BackgroundLoop
from retool_env.rollout.gate import Gate
from retool_env.rollout.policy import PolicyUnavailable
from retool_env.rollout.routing import Server, best
from retool_env.rollout.vllm_client import Busy, Client, Failure, base_url
from retool_env.rollout.weights import WeightFiles, Weights

_FIRST_ASIDE = 0.5
_MOST_DOUBLINGS = 6  # 32 s
_RESTART_SECONDS = 3.0  # no server is started anew in less: it has the weights that it had
_STARTED = "default"  # what a server calls the weights that it was started with

_PAUSED = "is paused, in the midst of new weights: if no run is loading any, one has left it so; update its weights, or start it anew"

_log = logging.getLogger(__name__)


class VLLMServerPolicy:
    """Samples from servers of one model. May be used from any event loop, and from several.

    Args:
        urls: The servers', `http://node7:8000` say; a path `/v1` at the end may be there.
        tokenizer: The model's.
        model: Its name there; by default the one that they serve.
        token: What they were started with as `--api-key`. Over `http` it can be read on the way.
        temperature: Of sampling; 0 is greedy.
        top_p: Nucleus mass. Training needs 1.0, so that log-probs are those of the model itself.
        timeout: Seconds that a server may take for a turn, its wait there included, and for new weights.
        attempts: How often a turn is tried that servers fail at, the first time included.
        weights_folder: Where tensors are written for the servers: a folder at the same path on all machines.

    Raises:
        ImportError: If the package httpx is missing.
        ValueError: If a setting is out of range, a URL is none, or the servers serve different models.
        PermissionError: If a server refuses the token.
        PolicyUnavailable: If no server can be reached.
    """

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: Tokenizer,
        *,
        model: str | None = None,
        token: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        timeout: float = 600.0,
        attempts: int = 6,
        weights_folder: str | Path | None = None,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise ValueError("urls is a list of at least one server's URL")
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, not {temperature}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p}")
        if attempts < 1 or not timeout > 0:
            raise ValueError(f"attempts and timeout must be positive: {attempts}, {timeout}")
        self.tokenizer = tokenizer
        self.temperature = temperature
        self.top_p = top_p
        self.weight_version = 0
        self.retried = 0
        """How often a turn was sent again because a server had failed."""
        self._servers = [Server(base_url(url)) for url in urls]
        self._attempts = attempts
        self._timeout = timeout
        self._files = WeightFiles(weights_folder)
        self._folder = ""
        self._weights = ""
        self._leads = False
        self._root = ""
        self._gates = {server: Gate() for server in self._servers}
        # Held by the one turn that asks a server which weights it has and lets it load others, while the rest wait for that.
        self._asking = {server: asyncio.Lock() for server in self._servers}
        # Those of which it isn't known that they are not paused.
        self._maybe_paused = set(self._servers)
        # Of what version a server's weights are; to be read, and changed, at its gate.
        self._served = dict.fromkeys(self._servers, 0)
        # What is sampled from is the model's own distribution, or one token's: any log-probs will do.
        plain = temperature == 0 or temperature == top_p == 1
        self._checked = set(self._servers) if plain else set()
        self._client = Client(token, timeout)
        self._loop = BackgroundLoop("vllm-servers")
        try:
            self.model, self.context_length = self._loop.run_blocking(self._begin(model))
        except BaseException:
            self.close()
            raise

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If the budget is below 1 or does not fit into the model's context, or a server refuses the request.
            PermissionError: If a server refuses the token.
            RuntimeError: If a server reports other log-probs than those of the distribution that it samples from.
            PolicyUnavailable: If no server sampled it; it names them.
        """
        if budget < 1 or len(token_ids) + budget > self.context_length:
            raise ValueError(
                f"{len(token_ids)} tokens and a budget of {budget} don't fit a context of {self.context_length}"
            )
        return await self._loop.run(self._act(list(token_ids), list(stop), budget, seed))

    async def update_weights(
        self, version: int, weights: Weights | str | Path | None = None
    ) -> None:
        """Let all servers load new weights. Turns under way end first, and those that come wait.

        A server that fails is brought up to date before it gets a turn again. Of several policies that share servers, one
        does this, always the same, and the others `follow`.

        Args:
            version: The new weights' number.
            weights: All of the model's, adapters merged: tensors, which are written into `weights_folder` and stay there until
                the next come; or a checkpoint's folder, at the same path on every server's machine. `None`: the one that the
                servers were started with is read again.

        Raises:
            ValueError: If tensors are not those of the model, by name and shape (nothing has changed then), or there is no
                `weights_folder` for them.
            OSError: If tensors can't be written, or the model's configuration is not here where the servers have it (the same
                path, or the Hub).
            RuntimeError: If a server was not started with `VLLM_SERVER_DEV_MODE=1`.
            PolicyUnavailable: If no server loaded them; it says why.
        """
        await self._loop.run(self._update(version, weights))

    async def follow(self, version: int) -> None:
        """Go on with weights that another policy has let the servers load.

        A server that was started anew is brought up to date; one that has yet other weights gets no turn from here.

        Args:
            version: Their number.

        Raises:
            RuntimeError: If no server has weights of that number, or they have several of it.
            PolicyUnavailable: If no server answers.
        """
        await self._loop.run(self._follow(version))

    def close(self) -> None:
        """End what still runs, and the connections, and remove the weights that were written. May be called again."""
        with suppress(RuntimeError):  # it is closed already
            self._loop.run_blocking(self._client.close())
        self._loop.close()
        self._files.keep("")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def _begin(self, wanted: str | None) -> tuple[str, int]:
        """The model's name and context length. What an earlier run has left on the servers is logged."""

        async def look(server: Server) -> None:
            with suppress(Failure, Busy):  # it is asked again before its first turn
                if await self._is_paused(server):
                    _log.warning("%s %s", server.url, _PAUSED)

        model = await self._models(wanted)
        await asyncio.gather(*(look(server) for server in self._servers if server.heard))
        return model

    async def _models(self, wanted: str | None) -> tuple[str, int]:
        """The model's name and context length, in which all servers that can be reached agree."""
        found: dict[str, tuple[str, int]] = {}
        said: dict[str, str] = {}
        for server in self._servers:
            try:
                answer = await self._client.send(server, "GET", "/v1/models")
            except (Failure, Busy) as error:
                said[server.url] = str(error)
                continue
            models = {each["id"]: each for each in answer["data"]}
            name = next(iter(models)) if wanted is None else wanted
            if name not in models:
                raise ValueError(f"{server.url} serves no {name!r}, but {', '.join(models)}")
            found[server.url] = name, int(models[name]["max_model_len"])
            self._root = str(models[name].get("root") or name)
        if not found:
            raise _unavailable(said)
        if len(set(found.values())) > 1:
            each = "; ".join(f"{url}: {name}, {length}" for url, (name, length) in found.items())
            raise ValueError(f"the servers differ in their model or its context length: {each}")
        return next(iter(found.values()))

    async def _act(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> Generation:
        started = time.monotonic()
        said: dict[str, str] = {}
        failed = 0
        while failed < self._attempts:
            server = await self._take(token_ids)
            sent = time.monotonic()
            try:
                await self._prepare(server)
                async with self._gates[server].turn():
                    version = self._served[server]
                    body = self._body(token_ids, stop, budget, seed)
                    answer = await self._client.send(server, "POST", "/v1/completions", body)
                generation = self._read(answer, token_ids, version, time.monotonic() - started)
            except Busy as busy:
                said[server.url] = "busy"
                server.aside_until = sent + busy.retry_after * random.uniform(1, 1.5)
                # For a while that is no failure.
                failed += time.monotonic() - started > self._timeout
            except Failure as failure:
                said[server.url] = str(failure)
                failed += 1
                self.retried += failed < self._attempts
                _set_aside(server, sent, failure)
            else:
                server.failures = 0
                sampled = generation.token_ids
                server.learn([*token_ids, *sampled], len(sampled))
                return generation
            finally:
                server.in_flight -= 1
        raise _unavailable(said)

    async def _take(self, token_ids: list[int]) -> Server:
        """The server to be asked, as soon as there is one that is not set aside."""
        while True:
            now = time.monotonic()
            ready = [server for server in self._servers if server.aside_until <= now]
            if ready:
                server = best(ready, token_ids)
                server.in_flight += 1
                server.learn(token_ids)
                return server
            soonest = min(server.aside_until for server in self._servers)
            await asyncio.sleep((soonest - now) * random.uniform(1, 1.2))

    def _body(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": token_ids,
            "max_tokens": budget,
            "stop": stop,
            "include_stop_str_in_output": True,
            # As our own decoding: a tag that holds a special token is one too.
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
            "seed": seed % 2**63,
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # All of them: what is left out, a server takes from the model's generation config.
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    def _read(self, answer: Any, token_ids: list[int], version: int, seconds: float) -> Generation:
        try:
            [choice] = answer["choices"]
            sampled, seen = choice["token_ids"], choice["prompt_token_ids"]
            logprobs = choice["logprobs"]["token_logprobs"]
            finish, cause = choice["finish_reason"], choice["stop_reason"]
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(f"an answer without {error}: is it vllm serve, 0.31?") from error
        if seen != token_ids:
            raise ValueError("the server sampled after other tokens than those that it was sent")
        if len(sampled) != len(logprobs):
            raise Failure(f"{len(sampled)} tokens, but {len(logprobs)} log-probs")
        if finish not in ("stop", "length"):  # an abort by whoever else uses the server
            raise Failure(f"the server ended the turn: {finish}")
        if self.temperature == 0:
            logprobs = [0.0] * len(sampled)
        reason: Literal["tag", "eos", "length"] = "length"
        if finish == "stop":
            reason = "tag" if isinstance(cause, str) else "eos"
        return Generation(tuple(sampled), tuple(logprobs), reason, seconds, version)

    async def _update(self, version: int, weights: Weights | str | Path | None) -> None:
        # A name that no other has: not that of another run's weights of the same version.
        name = f"{version}-{secrets.token_hex(8)}"
        if weights is None:
            folder = ""
        elif isinstance(weights, str | Path):
            folder = str(Path(weights).absolute())
        else:
            folder = await self._files.write(name, weights, self._root)
        self.weight_version, self._folder, self._leads = version, folder, True
        self._weights = f"{name} {folder}"
        self._files.keep(folder)  # no server that is to load will read an older one
        said: dict[str, str] = {}

        async def one(server: Server) -> None:
            for pause in (_FIRST_ASIDE, 0.0):  # again, in case it only closed a connection
                try:
                    await self._prepare(server)
                    return
                except (Failure, Busy) as failure:
                    said[server.url] = str(failure)
                    _set_aside(server, time.monotonic(), failure)
                await asyncio.sleep(pause)

        results = await asyncio.gather(*map(one, self._servers), return_exceptions=True)
        for error in filter(None, results):
            raise error
        if not any(self._has_weights(server) for server in self._servers):
            raise _unavailable(said)

    async def _follow(self, version: int) -> None:
        said: dict[str, str] = {}

        async def ask(server: Server) -> tuple[Server, str] | None:
            try:
                name = await self._weights_of(server)
            except (Failure, Busy) as failure:
                said[server.url] = str(failure)
                return None
            if name is None:
                said[server.url] = _PAUSED
                return None
            return server, name

        names = dict(filter(None, await asyncio.gather(*map(ask, self._servers))))
        if not names:
            raise _unavailable(said)
        found = {name for name in names.values() if name.startswith(f"{version}-")}
        if len(found) != 1:
            told = ", ".join(f"{server.url}: {name}" for server, name in names.items())
            raise RuntimeError(
                f"the servers should all have one set of weights of version {version}: {told}"
            )
        [self._weights] = found
        self.weight_version, self._folder = version, self._weights.partition(" ")[2]
        self._leads = False
        for server, name in names.items():
            server.blocks.clear()
            if name == self._weights:
                self._note_weights(server)

    async def _prepare(self, server: Server) -> None:
        """See to it that a server serves the weights of `weight_version`, and reports the right log-probs."""
        if not self._is_ready(server):
            failures = server.failures
            async with self._asking[server]:
                if server.failures > failures:  # those who have waited for its answer know it now
                    raise Failure(server.failure)
                await self._make_ready(server)
        if server not in self._checked:
            await self._check_logprobs(server)
            self._checked.add(server)

    def _is_ready(self, server: Server) -> bool:
        """Whether it need not be asked about its weights before a turn."""
        return self._has_weights(server) if self._weights else server not in self._maybe_paused

    async def _make_ready(self, server: Server) -> None:
        while not self._is_ready(server):  # there may be yet newer weights when it has loaded
            if not self._weights:
                if await self._is_paused(server):
                    raise Failure(_PAUSED)
                continue
            known = await self._weights_of(server)
            if known == self._weights:
                self._note_weights(server)  # it failed, or was not heard of for a while
            elif self._leads or known == _STARTED:
                async with self._gates[server].change():
                    await self._load(server)
            else:  # the policy that leads will see to it
                raise Failure(f"it has other weights: {known}" if known else _PAUSED)

    async def _is_paused(self, server: Server) -> bool:
        """Whether a server samples nothing; if it does, which weights it has is logged where they are an earlier run's."""
        try:
            known = await self._weights_of(server)
        except RuntimeError:  # it takes no weights: it has those that it was started with
            known = _STARTED
        if known is None:
            return True
        self._maybe_paused.discard(server)
        if known != _STARTED:
            _log.warning(
                "%s has weights that an earlier run left there, %s: until it gets others or some are followed, they count "
                "as version 0",
                server.url,
                known,
            )
        return False

    async def _weights_of(self, server: Server) -> str | None:
        """The name of the weights that a server has; `None` if it is paused: it may have some of these and some of those."""
        paused = await self._client.send(server, "GET", "/is_paused")
        known = await self._client.send(server, "GET", "/weight_info")
        return None if paused["is_paused"] else known["weight_version"]

    def _has_weights(self, server: Server) -> bool:
        """Whether it is known to serve the weights of `weight_version`."""
        same = time.monotonic() - server.heard < _RESTART_SECONDS
        return same and server.weights == self._weights

    async def _load(self, server: Server) -> None:
        version, weights, folder = self.weight_version, self._weights, self._folder
        with self._files.reading(folder):
            await self._load_from(server, folder or self._root, weights)
        server.blocks.clear()
        server.weights, self._served[server] = weights, version

    async def _load_from(self, server: Server, folder: str, name: str) -> None:
        # Turns of ours have ended; those of others end now, and what they send meanwhile waits in the server. Should
        # something fail from here on, it stays paused: it may have some of the new weights.
        await self._client.send(server, "POST", "/pause?mode=wait&clear_cache=true")
        call = {"method": "load_checkpoint", "args": [folder]}
        try:
            await self._client.send(server, "POST", "/collective_rpc", call)
        except Failure as failure:
            raise Failure(
                f"it did not load {folder} (its log says why; was it started with --worker-extension-cls "
                f"retool_env.rollout.vllm_worker.WeightLoader?): {failure}"
            ) from failure
        # Before it samples again, so that it never has other weights than it says.
        await self._client.send(server, "POST", "/update_weight_version", {"new_version": name})
        await self._client.send(server, "POST", "/resume")

    def _note_weights(self, server: Server) -> None:
        """It serves those of `weight_version`."""
        server.weights, self._served[server] = self._weights, self.weight_version

    async def _check_logprobs(self, server: Server) -> None:
        """Refuse a server that reports log-probs of another distribution than it samples from."""
        first = self.tokenizer.encode("a", add_special_tokens=False)
        # With next to no nucleus each token is certain.
        body = {**self._body(first, [], 8, 0), "temperature": 1.0, "top_p": 1e-6}
        answer = await self._client.send(server, "POST", "/v1/completions", body)
        generation = self._read(answer, first, 0, 0.0)
        if min(generation.logprobs) < -1e-3:
            raise RuntimeError(
                f"{server.url} reports log-probs of the model, not of what it samples from, and the two differ with "
                "this temperature or top-p: start it with --logprobs-mode processed_logprobs"
            )


def _set_aside(server: Server, sent: float, failure: Exception) -> None:
    if sent < server.aside_until:
        return  # sent together with one that has failed before
    aside = _FIRST_ASIDE * 2 ** min(server.failures, _MOST_DOUBLINGS)
    server.failures += 1
    server.failure = str(failure)
    server.aside_until = time.monotonic() + aside * random.uniform(0.75, 1.25)
    server.weights = None
    server.blocks.clear()


def _unavailable(said: dict[str, str]) -> PolicyUnavailable:
    told = "; ".join(f"{url}: {' '.join(text.split())}" for url, text in said.items())
    return PolicyUnavailable(f"no server of the model answers: {told}")
