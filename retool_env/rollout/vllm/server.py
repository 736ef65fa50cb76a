r"""VLLMServerPolicy: a model served by `vllm serve`, on one machine or several. Token ids in, token ids out.

    vllm serve MODEL --logprobs-mode processed_logprobs

Which server gets a turn, `retool_env.rollout.vllm.routing` says. A server that fails (no connection, no answer in time, a 5xx) is
set aside, twice as long each time in a row, and its turns go to another; one that is busy (429, or 503 with `Retry-After`)
gets them again when it said. Where the distribution sampled from is not the model's own, a server is first asked for a turn that
shows which log-probs it reports.

New weights reach the servers as files, in a folder that each of them can read: a checkpoint's, or one in which this policy
writes the tensors that it gets (`weights_folder`). For that they are started as

    VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --logprobs-mode processed_logprobs \
        --worker-extension-cls retool_env.rollout.vllm.worker.WeightLoader

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
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retool_env.episode import Generation, Tokenizer
from retool_env.errors import SettingsError
from retool_env.rollout.policy import Policy, check_room, check_sampling
from retool_env.rollout.vllm.client import Busy, Client, Failure, base_url, field, fields, set_aside
from retool_env.rollout.vllm.routing import Server, best
from retool_env.rollout.vllm.sampling import sampling, stop_reason
from retool_env.rollout.vllm.served_weights import ServedWeights, unavailable
from retool_env.rollout.weights import Weights
from retool_env.servers.address import redact
from retool_env.servers.background import BackgroundLoop, closed_at_the_end


class VLLMServerPolicy(Policy):
    """Samples from servers of one model. May be used from any event loop, and from several.

    Args:
        urls: The servers', `http://node7:8000` say; a path `/v1` at the end may be there.
        tokenizer: The model's.
        model: Its name there; by default the one that they serve.
        token: What they were started with as `--api-key`. Over `http` it can be read on the way.
        temperature: Of sampling; 0 is greedy.
        top_p: Nucleus mass. Training needs 1.0, so that log-probs are those of the model itself.
        timeout: Seconds that a server may take for a turn, its wait there included, and for new weights. A turn that takes
            longer would take as long at each attempt: what the longest turns, in the fullest batch, take must fit.
        attempts: How often a turn is tried that servers fail at, the first time included.
        weights_folder: Where tensors are written for the servers: a folder at the same path on all machines.

    Raises:
        MissingPackage: If the package httpx is missing.
        ValueError: If a setting is out of range (a `SettingsError`), a URL is none or there twice, or the servers serve different models.
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
        weights_folder: str | Path | None = None,
    ) -> None:
        if isinstance(urls, str) or not urls:
            raise SettingsError("urls is a list of at least one server's URL")
        check_sampling(temperature, top_p)
        if attempts < 1 or not timeout > 0:
            raise SettingsError(f"attempts and timeout must be positive: {attempts}, {timeout}")
        bases = [base_url(url) for url in urls]
        if twice := {base for base in bases if bases.count(base) > 1}:
            raise SettingsError(f"urls names a server twice: {', '.join(sorted(twice))}")
        self.tokenizer = tokenizer
        self.temperature: float = temperature
        self.top_p = top_p
        self.retried = 0
        """How often a turn was sent again because a server had failed."""
        self.servers = [Server(base) for base in bases]
        """The servers, each with what is known of it."""
        self._attempts = attempts
        self._timeout = timeout
        # What is sampled from is the model's own distribution, or one token's: any log-probs will do.
        plain = temperature == 0 or temperature == top_p == 1
        self._checked = set(self.servers) if plain else set()
        self._client = Client(token)
        self._weights = ServedWeights(self.servers, self._client, weights_folder, timeout)
        self.loop = BackgroundLoop("vllm-servers")
        """The event loop that the requests are sent from."""
        try:
            self.model, self.context_length = self.loop.run_blocking(self._begin(model))
        except BaseException:
            self.close()
            raise

    @property
    def weight_version(self) -> int:  # type: ignore[override]  # the served weights count it
        """Which weights the servers should have; 0 at first."""
        return self._weights.version

    async def act(
        self, token_ids: Sequence[int], stop: Sequence[str], budget: int, seed: int
    ) -> Generation:
        """Sample one turn; see `Policy.act`.

        Raises:
            ValueError: If there are no tokens, the budget is below 1, both do not fit into the model's context, or a server
                refuses the request.
            PermissionError: If a server refuses the token.
            RuntimeError: If a server reports other log-probs than those of the distribution that it samples from, another run
                loads its weights there, or this is closed.
            PolicyUnavailable: If no server sampled it; it names them.
        """
        check_room(token_ids, budget, self.context_length)
        return await self.loop.run(self._act(list(token_ids), list(stop), budget, seed))

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
            RuntimeError: If a server was not started with `VLLM_SERVER_DEV_MODE=1`, or another run loads its weights there too.
            PolicyUnavailable: If no server loaded them; it says why.
        """
        await self.loop.run(self._weights.update(version, weights))

    async def follow(self, version: int) -> None:
        """Go on with weights that another policy has let the servers load.

        A server that was started anew is brought up to date; one that has yet other weights gets no turn from here.

        Args:
            version: Their number.

        Raises:
            RuntimeError: If no server has weights of that number, or they have several of it.
            PolicyUnavailable: If no server answers.
        """
        await self.loop.run(self._weights.follow(version))

    def close(self) -> None:
        """End what still runs, and the connections, and remove the weights that were written. May be called again."""
        try:
            self.loop.close()
        finally:  # also when that is interrupted
            self._weights.close()

    async def _begin(self, wanted: str | None) -> tuple[str, int]:
        """The model's name and context length. What an earlier run has left on the servers is logged."""
        self._connections = closed_at_the_end(self._client)
        await anext(self._connections)
        model = await self._models(wanted)
        await self._weights.begin()
        return model

    async def _models(self, wanted: str | None) -> tuple[str, int]:
        """The model's name and context length, in which all servers that can be reached agree."""
        found: dict[str, tuple[str, int]] = {}
        said: dict[str, str] = {}

        async def ask(server: Server) -> None:
            sent = time.monotonic()
            try:
                answer = await self._client.send(server, "GET", "/v1/models")
                models = {field(each, "id", str): each for each in fields(answer, "data", dict)}
                if not models:
                    raise Failure("it serves no model")
                name = next(iter(models)) if wanted is None else wanted
                if name not in models:
                    raise ValueError(f"{server.url} serves no {name!r}, but {', '.join(models)}")
                length = field(models[name], "max_model_len", int)
                if length < 1:
                    raise Failure(f"a context of {redact(str(length), most=100)} tokens")
                root = field(models[name], "root", str, type(None)) or name
                found[server.url] = name, length
            except (Failure, Busy) as error:
                said[server.url] = str(error)
                set_aside(server, sent, error)
                return
            self._weights.root = root

        results = await asyncio.gather(*map(ask, self.servers), return_exceptions=True)
        for error in filter(None, results):
            raise error
        if not found:
            raise unavailable(said)
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
                async with self._weights.turn(server) as version:
                    answer = await self._sample(server, self._body(token_ids, stop, budget, seed))
                seconds = time.monotonic() - started
                generation = self._read(answer, token_ids, budget, version, seconds)
            except Busy as busy:
                said[server.url] = "busy"
                server.aside_until = sent + busy.retry_after * random.uniform(1, 1.5)
                # For a while that is no failure.
                failed += time.monotonic() - started > self._timeout
            except Failure as failure:
                said[server.url] = str(failure)
                failed += 1
                self.retried += failed < self._attempts
                set_aside(server, sent, failure)
            else:
                server.failures = 0
                sampled = generation.token_ids
                server.learn([*token_ids, *sampled], len(sampled))
                return generation
            finally:
                server.in_flight -= 1
        raise unavailable(said)

    async def _take(self, token_ids: list[int]) -> Server:
        """The server to be asked, as soon as there is one that is not set aside."""
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
        return {
            **sampling(self.temperature, self.top_p, stop, budget, seed),
            "model": self.model,
            "prompt": token_ids,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            # All of them: what is left out, a server takes from the model's generation config.
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }

    async def _sample(self, server: Server, body: dict[str, Any]) -> Any:
        tokens = len(body["prompt"]) + body["max_tokens"]
        path = "/v1/completions"
        return await self._client.send(server, "POST", path, body, self._timeout, tokens)

    def _read(
        self, answer: Any, token_ids: list[int], budget: int, version: int, seconds: float
    ) -> Generation:
        choices = fields(answer, "choices", dict)
        if len(choices) != 1:
            raise Failure(f"{len(choices)} choices instead of one")
        [choice] = choices
        sampled = fields(choice, "token_ids", int)
        logprobs = fields(field(choice, "logprobs", dict), "token_logprobs", float, int)
        if fields(choice, "prompt_token_ids", int) != token_ids:
            raise ValueError("the server sampled after other tokens than those that it was sent")
        if len(sampled) != len(logprobs) or len(sampled) > budget:
            raise Failure(
                f"{len(sampled)} tokens and {len(logprobs)} log-probs for a budget of {budget}"
            )
        # Token ids and log-probs go into records and tensors as they are.
        if not all(0 <= token < 2**31 for token in sampled):
            raise Failure(f"token ids that can be none: {redact(repr(sampled), most=100)}")
        if not all(-1e9 < logprob <= 1e-3 for logprob in logprobs):
            raise Failure(f"log-probs that can be none: {redact(repr(logprobs), most=100)}")
        finish = field(choice, "finish_reason", str)
        reason = stop_reason(finish, choice.get("stop_reason"))
        if reason is None:  # an abort by whoever else uses the server
            raise Failure(f"the server ended the turn: {finish}")
        if self.temperature == 0:
            logprobs = [0.0] * len(sampled)
        return Generation(tuple(sampled), tuple(logprobs), reason, seconds, version)

    async def _prepare(self, server: Server) -> None:
        """See to it that a server serves the weights of `weight_version`, and reports the right log-probs."""
        await self._weights.prepare(server)
        if server not in self._checked:
            await self._check_logprobs(server)
            self._checked.add(server)

    async def _check_logprobs(self, server: Server) -> None:
        """Refuse a server that reports log-probs of another distribution than it samples from."""
        first = self.tokenizer.encode("a", add_special_tokens=False)
        # With next to no nucleus each token is certain.
        body = {**self._body(first, [], 8, 0), "temperature": 1.0, "top_p": 1e-6}
        generation = self._read(await self._sample(server, body), first, 8, 0, 0.0)
        if min(generation.logprobs) < -1e-3:
            raise RuntimeError(
                f"{server.url} reports log-probs of the model, not of what it samples from, and the two differ with "
                "this temperature or top-p: start it with --logprobs-mode processed_logprobs"
            )
