r"""VLLMServerPolicy: a model served by `vllm serve`, on one machine or several.

Token ids in, token ids out. The servers are started with

    vllm serve MODEL --logprobs-mode processed_logprobs

The module `retool_env.rollout.vllm.routing` chooses the server of a turn. A server that fails (no
connection, no answer in time, a 5xx) is set aside, twice as long each time in a row, and its turns
go to another server. A server that is busy (429, or 503 with `Retry-After`) gets turns again when
its pause is over. If sampling differs from the model's own distribution, a server's first request
is a test turn that shows which log-probs the server reports.

New weights reach the servers as files, in a folder that every server can read: the folder of a
checkpoint, or a folder into which this policy writes tensors (`weights_folder`), whole or as deltas
against the weights before (the module `retool_env.rollout.weight_deltas`). Other ways are adapters
alone (the module `adapters`) and direct transfers (the module `transfer`). For new weights
the servers are started with

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \
        --worker-extension-cls retool_env.rollout.vllm.worker.WeightLoader

where this package is installed. In that mode everybody who reaches a server can pause it and
replace its weights, also without its key: bind it to an address of a private network.
Each server stores the name of its weights. After a failure the policy asks a server for that name,
and brings the server up to date before its next turn. At the start the policy looks for traces of
an earlier run: it warns of weights that the run left on a server, and a server that the run left
paused gets no turn before it has loaded new weights.

Several processes may share the servers, each with a policy of its own. First all policies `hold`
their turns; then one policy updates the weights; then the others `follow`. A turn in between would
be sampled with the new weights and recorded with the old version. With `at_update="wait"` `hold`
does nothing, and the processes have to see to it that no turn is under way.

`trl vllm-serve` of TRL 1.16 starts the same server, with that mode and with those log-probs, and
passes its other options on; it needs only `--worker-extension-cls` as above. If a trainer of TRL
pushes weights to that server by itself, it neither names the weights nor waits for the end of
turns: turns go on with the new weights, under the last version of this policy.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, override

from retool_env.episode import Generation, Tokenizer
from retool_env.errors import SettingsError
from retool_env.rollout.policy import AtUpdate, Policy, check_at_update, check_room, check_sampling
from retool_env.rollout.vllm.adapters import ServedAdapters
from retool_env.rollout.vllm.client import TURN, Client, UnknownModel, field, fields, unavailable
from retool_env.rollout.vllm.completion import completion_body, read_completion
from retool_env.rollout.vllm.gate import Dropped
from retool_env.rollout.vllm.partial_turn import PartialTurn
from retool_env.rollout.vllm.room import Room
from retool_env.rollout.vllm.routing import Server, best
from retool_env.rollout.vllm.sampling import sampling
from retool_env.rollout.vllm.served_weights import ServedWeights
from retool_env.rollout.vllm.transfer import TransferredWeights
from retool_env.rollout.weight_deltas import DeltaFiles
from retool_env.rollout.weight_files import WeightFiles, check_dtype
from retool_env.rollout.weights import Adapter, Parts, Weights
from retool_env.servers.address import base_url, redact
from retool_env.servers.background import BackgroundLoop, closed_at_the_end
from retool_env.servers.hosts import Busy, Failure


class VLLMServerPolicy(Policy):
    """Samples from servers of one model. It may be used from several event loops.

    Args:
        urls: The addresses of the servers, such as `http://node7:8000`, with or without `/v1` at
            the end.
        tokenizer: The tokenizer of the model.
        model: The name of the model on the servers. `None`: the model that they serve.
        token: The key with which the servers were started (`--api-key`). Over `http` it travels
            unencrypted. `None`: no key.
        temperature: The sampling temperature; 0 is greedy.
        top_p: The nucleus mass of sampling. Training needs 1.0, so that log-probs equal the model's
            own.
        timeout: The seconds that a server may take for a turn, including its wait in the queue, and
            for new weights. A turn that takes longer fails at each attempt: the longest turn in the
            fullest batch must fit.
        attempts: The number of attempts at a turn at which servers fail, including the first
            attempt.
        weights: How new weights reach the servers: `"files"`; `"delta"`, files with the changes
            since the last weights; `"adapter"`, a LoRA adapter alone, without the weights that it
            adapts; `"nccl"`, directly from GPU to GPU; or `"gloo"`, the same between CPUs.
        weights_folder: The folder into which tensors are written for the servers, at the same path
            on all machines. `None`: weights can only be given as checkpoint folders.
        weights_dtype: The data type in which weights travel: `"bfloat16"`, `"float16"` or
            `"float32"`. Nothing is lost if it is the servers' own data type.
        at_update: The treatment of turns under way when new weights come: `"cut"`, `"wait"` or
            `"keep"`; see `retool_env.rollout.policy.AtUpdate`. With adapters, turns go on with the
            adapter that they began with.
        weights_address: The address of this machine for `"nccl"` and `"gloo"`. `None`: the address
            from which this machine reaches the first server.
        sharers: The number of processes that share the servers. The episodes of each process may
            reserve its part of the servers' caches, or more while the servers report that they have
            room (the module `room`).

    Raises:
        MissingPackage: If the package httpx is missing.
        SettingsError: If a setting is out of range, or a URL is invalid or occurs twice.
        ValueError: If the servers serve different models, or not the model of this name.
        PermissionError: If a server refuses the token.
        PolicyUnavailable: If no server can be reached.
    """

    shares_servers = True

    def __init__(
        self,
        urls: Sequence[str],
        tokenizer: Tokenizer,
        *,
        model: str | None = None,
        token: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        timeout: float = 3600.0,
        attempts: int = 6,
        weights: str = "files",
        weights_folder: str | Path | None = None,
        weights_dtype: str = "bfloat16",
        at_update: AtUpdate = "cut",
        weights_address: str | None = None,
        sharers: int = 1,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise SettingsError("urls is a list of at least one server's URL")
        check_sampling(temperature, top_p)
        if min(attempts, sharers) < 1 or not timeout > 0:
            raise SettingsError(
                f"attempts, sharers and timeout must be positive: {attempts}, {sharers}, {timeout}"
            )
        bases = [base_url(url, "/v1", "a server", "http://host:8000") for url in urls]
        if twice := {base for base in bases if bases.count(base) > 1}:
            raise SettingsError(f"urls names a server twice: {', '.join(sorted(twice))}")
        self.tokenizer = tokenizer
        self.temperature: float = temperature
        self.top_p = top_p
        self.retried = 0
        """The number of times that a turn was sent again because a server had failed."""
        self.servers = [Server(base) for base in bases]
        """The servers, each with its known state."""
        self._attempts = attempts
        self._timeout = timeout
        self._checked: set[Server] = set()
        self._client = Client(token)
        self.at_update = check_at_update("wait" if weights == "adapter" else at_update)
        self._weights_address = weights_address
        self._weights = self._served_weights(weights, weights_folder, weights_dtype)
        self._room = Room(self.servers, self._client, sharers)
        self.admits = self._room.admits
        self.loop = BackgroundLoop("vllm-servers")
        """The event loop from which the requests are sent."""
        try:
            self.model, self.context_length = self.loop.run_blocking(self._begin(model))
        except BaseException:
            self.close()
            raise
        self.loop.submit(self._room.watch())

    @property
    def weight_version(self) -> int:  # type: ignore[override]  # the served weights count it
        """The version of the weights that the servers should have; 0 at first."""
        return self._weights.version

    @override
    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If there are no tokens, the budget is below 1, both together do not fit into
                the model's context, or a server refuses the request.
            PermissionError: If a server refuses the token.
            RuntimeError: If a server's log-probs belong to another distribution than its samples,
                another run also loads its weights there, or the policy is closed.
            PolicyUnavailable: If no server sampled the turn; the text names each server's error.
        """
        check_room(token_ids, budget, self.context_length)
        return await self.loop.run(self._act(list(token_ids), list(stop), budget, seed))

    @override
    async def update_weights(
        self, version: int, weights: Weights | Parts | Adapter | str | Path | None = None
    ) -> None:
        """Let all servers load new weights.

        Turns under way are cut, and go on under the new weights; with `at_update="wait"` they end
        first. With `weights="adapter"` they go on with the adapter that they began with.

        A server that fails is brought up to date before its next turn. Of several policies that
        share servers, always the same policy updates the weights, and the other policies `follow`.

        Args:
            version: The number of the new weights.
            weights: All weights of the model, adapters merged. Tensors are written into
                `weights_folder` and stay there until the next update. A path names the folder of a
                checkpoint, which is at the same path on every server's machine. `None`: the servers
                read the folder of their start again.

        Raises:
            ValueError: If the names or shapes of tensors differ from the model's (nothing has
                changed then), or tensors are given without a `weights_folder`.
            OSError: If tensors can't be written, or this machine lacks the model's configuration,
                which must have the same path or Hub id as on the servers.
            RuntimeError: If a server was not started with `VLLM_SERVER_DEV_MODE=1`, or another run
                also loads its weights there.
            PolicyUnavailable: If no server loaded the weights; the text names each server's error.
        """
        await self.loop.run(self._weights.update(version, weights))

    @override
    def write_part(self, parts: Parts, weights: Weights, rank: int) -> None:
        """Write this process's part of new weights into `weights_folder`; see `Policy.write_part`.

        Raises:
            ValueError: If the names or shapes of tensors differ from the model's.
            OSError: As in `update_weights`.
        """
        self._weights.write_part(parts, weights, rank)

    @override
    async def hold(self, cut: bool = True) -> None:
        """Let no turn begin until `update_weights` or `follow`; see `Policy.hold`."""
        await self.loop.run(self._weights.hold(cut))

    async def follow(self, version: int) -> None:
        """Use the weights that another policy has let the servers load.

        A server that restarted is brought up to date. A server with other weights gets no turn from
        this policy.

        Args:
            version: The number of these weights.

        Raises:
            RuntimeError: If no server has weights of that number, or the servers have different
                weights of that number.
            PolicyUnavailable: If no server answers.
        """
        await self.loop.run(self._weights.follow(version))

    def close(self) -> None:
        """End running requests, close the connections and remove the written weights.

        It may be called again.
        """
        try:
            self.loop.close()
        finally:  # also if `loop.close` is interrupted
            self._weights.close()

    def _served_weights(self, way: str, folder: str | Path | None, dtype: str) -> ServedWeights:
        if way in ("files", "delta"):
            files = (WeightFiles if way == "files" else DeltaFiles)(folder, dtype)
            self.writes_parts, self.weights_dtype = folder is not None, files.dtype
            return ServedWeights(self.servers, self._client, files, self._timeout, self.at_update)
        if way == "adapter":
            self.takes_adapter = True
            return ServedAdapters(self.servers, self._client, folder, self._timeout)
        if way in ("nccl", "gloo"):
            self.writes_parts, self.weights_dtype = True, check_dtype(dtype)
            return TransferredWeights(
                self.servers,
                self._client,
                way,
                dtype,
                self._timeout,
                self._weights_address,
                self.at_update,
            )
        raise SettingsError(f"weights must be files, delta, adapter, nccl or gloo, not {way!r}")

    async def _begin(self, wanted: str | None) -> tuple[str, int]:
        """Connect, log traces of an earlier run, and return the model's name and context length."""
        self._connections = closed_at_the_end(self._client.close)
        await anext(self._connections)
        model = await self._models(wanted)
        await self._weights.begin()
        await self._room.look()
        return model

    async def _models(self, wanted: str | None) -> tuple[str, int]:
        """The model's name and context length, on which all reachable servers agree."""
        models: dict[str, tuple[str, int]] = {}
        errors: dict[str, str] = {}

        async def ask(server: Server) -> None:
            sent = time.monotonic()
            try:
                answer = await self._client.send(server, "GET", "/v1/models")
                served = {field(card, "id", str): card for card in fields(answer, "data", dict)}
                if not served:
                    raise Failure("the server serves no model")
                name = next(iter(served)) if wanted is None else wanted
                if name not in served:
                    raise ValueError(
                        f"{server.url} does not serve {name!r}, but {', '.join(served)}"
                    )
                length = field(served[name], "max_model_len", int)
                if length < 1:
                    raise Failure(f"an invalid max_model_len: {redact(str(length), most=100)}")
                root = field(served[name], "root", str, type(None)) or name
                models[server.url] = name, length
            except (Failure, Busy) as error:
                errors[server.url] = str(error)
                server.fail(sent, error)
                return
            self._weights.root = root

        results = await asyncio.gather(*map(ask, self.servers), return_exceptions=True)
        for error in filter(None, results):
            raise error
        if not models:
            raise unavailable(errors)
        if len(set(models.values())) > 1:
            served = "; ".join(f"{url}: {name}, {length}" for url, (name, length) in models.items())
            raise ValueError(f"the servers differ in their model or its context length: {served}")
        return next(iter(models.values()))

    async def _act(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> Generation:
        turn = PartialTurn(self.tokenizer, token_ids, stop, budget, seed)
        errors: dict[str, str] = {}
        failed, began = 0, time.monotonic()
        while failed < self._attempts:
            await self._weights.released()
            prompt = turn.prompt
            server = await self._take(prompt)
            sent = time.monotonic()
            try:
                await self._prepare(server)
                async with self._weights.request(server) as (version, model):
                    body = self._body(prompt, stop, turn.request_budget, turn.request_seed)
                    if self.at_update == "keep":  # the blocks of older weights are in the cache
                        body["cache_salt"] = server.weights or "unknown"
                    self.reread_tokens += len(prompt) if turn.cut else 0
                    answer = await self._sample(server, {**body, "model": model or self.model})
                    if self.at_update == "keep":
                        self.mixed_turns += self._weights.has_changed(server, version)
                sampled, logprobs, reason = read_completion(answer, body)
                generation = turn.add(sampled, logprobs, version, reason)
                began = time.monotonic()
                if generation is None and reason is None and not self._weights.cutting(server):
                    raise Failure("another client of the server ended the turn")
            except Dropped:
                continue
            except Busy as busy:
                errors[server.url] = "busy"
                server.aside_until = busy.again(sent)
                # A busy server counts as a failure only after the timeout.
                failed += time.monotonic() - began > self._timeout
            except Failure as failure:
                if self._weights.held:  # the server is paused for new weights
                    continue
                errors[server.url] = str(failure)
                failed += 1
                self.retried += failed < self._attempts
                server.fail(sent, failure)
            except UnknownModel as error:  # it restarted, or another run unloaded the adapter
                if model is None:
                    raise
                errors[server.url] = str(error)
                failed += 1
                server.fail(sent, error)
            else:
                server.failures = 0
                if generation is not None:
                    server.learn([*token_ids, *generation.token_ids], len(generation.token_ids))
                    return generation
            finally:
                server.in_flight -= 1
        raise unavailable(errors)

    async def _take(self, token_ids: list[int]) -> Server:
        """Choose the server of a turn, once a server is not set aside."""
        while True:
            now = time.monotonic()
            ready = [server for server in self.servers if server.aside_until <= now]
            if ready:
                server = best(ready, token_ids)
                server.in_flight += 1
                server.learn(token_ids)
                return server
            soonest = min(server.aside_until for server in self.servers)
            await asyncio.sleep((soonest - now) * random.uniform(1, 1.2))

    def _body(
        self, token_ids: list[int], stop: list[str], budget: int, seed: int
    ) -> dict[str, Any]:
        settings = sampling(self.temperature, self.top_p, stop, budget, seed)
        return completion_body(token_ids, self.model, settings)

    async def _sample(self, server: Server, body: dict[str, Any]) -> Any:
        tokens = len(body["prompt"]) + body["max_tokens"]
        return await self._client.send(server, "POST", TURN, body, self._timeout, tokens)

    async def _prepare(self, server: Server) -> None:
        """Make sure that a server serves the right weights and reports the right log-probs."""
        await self._weights.prepare(server)
        # Greedy sampling, or sampling from the model's own distribution, fits any log-probs mode.
        # An evaluation samples with settings of its own.
        plain = self.temperature == 0 or self.temperature == self.top_p == 1
        if not plain and server not in self._checked:
            await self._check_logprobs(server)
            self._checked.add(server)

    async def _check_logprobs(self, server: Server) -> None:
        """Refuse a server whose log-probs belong to another distribution than its samples."""
        first = self.tokenizer.encode("a", add_special_tokens=False)
        # With an almost empty nucleus each token is certain, so its true log-prob is 0.
        body = {**self._body(first, [], 8, 0), "temperature": 1.0, "top_p": 1e-6}
        _, logprobs, reason = read_completion(await self._sample(server, body), body)
        if reason is None:
            raise Failure("the server ended the test turn")
        if min(logprobs) < -1e-3:
            raise RuntimeError(
                f"{server.url} reports log-probs of the model, which differ from the distribution "
                "that it samples from with this temperature or top-p: start the server with "
                "--logprobs-mode processed_logprobs"
            )
