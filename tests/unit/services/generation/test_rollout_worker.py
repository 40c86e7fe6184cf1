"""The engine's thread and its callers, with an engine that a test can look into."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

import pytest

from realloc.core.errors import Conflict, InvalidInput, JobFailed, ResourceExhausted, Unavailable
from realloc.core.transfer import ParameterSpec, TransferProgram, TransferSession
from realloc.transfer.executor import TransferReport
from services.generation.engine import EngineSpec, Rollout, RolloutRequest
from services.generation.rollout_worker import RolloutStream, RolloutWorker

SECONDS = 60.0
SPEC = EngineSpec(
    hf_config="{}", tensor_parallel=1, max_model_len=8, dtype="float32", kv_cache_bytes=1, seed=0
)


class CountingEngine:
    """Makes the tokens 0, 1, 2, … for each request and remembers who called."""

    def __init__(self) -> None:
        self.running: dict[str, list[int]] = {}
        self.limits: dict[str, int] = {}
        self.version = 0
        self.loads = 0
        self.threads: set[int] = set()
        self.aborted: list[str] = []
        self.closed = 0
        self.fails_at = -1
        self.steps = 0
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()

    def load(self, spec: EngineSpec) -> None:
        self.threads.add(threading.get_ident())
        self.loads += 1

    def add(self, requests: Sequence[RolloutRequest]) -> None:
        if any(not one.prompt_tokens for one in requests):
            raise InvalidInput.at("requests[0].prompt_tokens", "is empty")
        for one in requests:
            self.running[one.request_id] = []
            self.limits[one.request_id] = one.max_new_tokens

    def step(self) -> Sequence[Rollout]:
        self.stepping.set()
        assert self.gate.wait(SECONDS)
        self.threads.add(threading.get_ident())
        self.steps += 1
        if self.steps == self.fails_at:
            raise RuntimeError("out of memory")
        done = []
        for name, tokens in list(self.running.items()):
            tokens.append(self.version)
            if len(tokens) == self.limits[name]:
                done.append(self._rollout(name, self.running.pop(name)))
        return done

    def _rollout(self, name: str, tokens: list[int]) -> Rollout:
        return Rollout(
            request_id=name,
            tokens=tuple(tokens),
            logprobs=(0.0,) * len(tokens),
            finish_reason="length",
            weight_version=tokens[0],
        )

    def abort(self, request_ids: Sequence[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            self.running.pop(name, None)

    def parameter_specs(self) -> Sequence[Mapping[str, ParameterSpec]]:
        return [{}]

    def stage_weights(
        self, session: TransferSession, programs: Sequence[TransferProgram]
    ) -> Sequence[TransferReport]:
        raise Unavailable("no peer")

    def commit_weights(self, weight_version: int) -> None:
        self.version = weight_version

    def abort_weights(self) -> None: ...

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed += 1


def request(name: str, *, tokens: int = 3) -> RolloutRequest:
    return RolloutRequest(
        request_id=name,
        prompt_tokens=(1, 2),
        temperature=1.0,
        max_new_tokens=tokens,
        seed=0,
        stop_token_ids=(),
    )


def run(
    work: Callable[[RolloutWorker, CountingEngine], Awaitable[None]], max_requests: int = 100
) -> CountingEngine:
    """Run work beside a fresh worker; the thread must have ended afterwards."""
    engine = CountingEngine()

    async def main() -> None:
        worker = RolloutWorker(engine, max_requests=max_requests)
        try:
            await asyncio.wait_for(work(worker, engine), 2 * SECONDS)
        finally:
            engine.gate.set()
            await worker.close()
        assert not worker._thread.is_alive()

    asyncio.run(main())
    return engine


async def collect(rollouts: AsyncGenerator[Rollout, None]) -> list[Rollout]:
    return [rollout async for rollout in rollouts]


def test_rollouts_come_as_they_end() -> None:
    """Shorter ones first; the counters add up; one thread touches the engine."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        await worker.load(SPEC, timeout_seconds=SECONDS)
        asked = [request("long", tokens=9), request("short", tokens=2), request("mid", tokens=5)]
        rollouts = await collect(worker.generate(asked, timeout_seconds=SECONDS))
        assert [one.request_id for one in rollouts] == ["short", "mid", "long"]
        counters = worker.counters
        assert (counters.num_rollouts, counters.prompt_tokens, counters.response_tokens) == (
            3,
            6,
            16,
        )
        assert worker.num_running == 0

    engine = run(work)
    assert len(engine.threads) == 1
    assert engine.threads != {threading.get_ident()}
    assert engine.closed == 1


def test_callers_share_the_engine() -> None:
    """Two calls run at the same time, and each gets its own rollouts."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        engine.gate.clear()
        calls = [
            asyncio.create_task(
                collect(
                    worker.generate(
                        [request(f"{i}-{j}") for j in range(4)], timeout_seconds=SECONDS
                    )
                )
            )
            for i in range(3)
        ]
        while worker.num_running < 4:
            await asyncio.sleep(0)
        engine.gate.set()
        for i, rollouts in enumerate(await asyncio.gather(*calls)):
            assert {one.request_id for one in rollouts} == {f"{i}-{j}" for j in range(4)}
        assert engine.steps < 12  # not one call after another

    run(work)


def test_a_commit_falls_between_two_tokens() -> None:
    """All tokens before it are the old version's, all after it the new one's."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        engine.gate.clear()
        call = asyncio.create_task(
            collect(worker.generate([request("a", tokens=5)], timeout_seconds=SECONDS))
        )
        while not engine.stepping.is_set():
            await asyncio.sleep(0)
        commit = asyncio.create_task(worker.commit_weights(1, timeout_seconds=SECONDS))
        await asyncio.sleep(0)  # the commit waits for the step now
        engine.gate.set()
        await commit
        [rollout] = await call
        assert rollout.tokens == (0, 1, 1, 1, 1)

    run(work)


def test_leaving_the_iterator_aborts_the_rest() -> None:
    """Requests that nobody waits for leave the engine; their ids are free again."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        asked = [request("quick", tokens=1), request("endless", tokens=10**9)]
        async with aclosing(worker.generate(asked, timeout_seconds=SECONDS)) as rollouts:
            assert (await anext(rollouts)).request_id == "quick"
        assert (
            len(await collect(worker.generate([request("endless")], timeout_seconds=SECONDS))) == 1
        )
        assert engine.aborted == ["endless"]

    run(work)


def test_a_cancelled_caller_aborts_its_requests() -> None:
    """Cancelling the task that reads is enough."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        call = asyncio.create_task(
            collect(worker.generate([request("endless", tokens=10**9)], timeout_seconds=SECONDS))
        )
        while not worker.num_running:
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await worker.load(SPEC, timeout_seconds=SECONDS)
        assert engine.aborted == ["endless"]

    run(work)


def test_a_caller_that_leaves_while_its_requests_begin_leaves_none_behind() -> None:
    """Whenever it goes: before their turn, in it, or after."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        begins, left = worker._begin, asyncio.Event()
        loop = asyncio.get_running_loop()

        def begin_late(requests: Sequence[RolloutRequest], stream: RolloutStream) -> None:
            loop.call_soon_threadsafe(call.cancel)
            asyncio.run_coroutine_threadsafe(left.wait(), loop).result(SECONDS)
            begins(requests, stream)

        worker._begin = begin_late  # type: ignore[method-assign]
        call = asyncio.create_task(
            collect(worker.generate([request("a", tokens=10**9)], timeout_seconds=SECONDS))
        )
        await asyncio.gather(call, return_exceptions=True)
        left.set()
        await worker.load(SPEC, timeout_seconds=SECONDS)
        assert not engine.running

    run(work)


def test_the_deadline_names_how_many_rollouts_are_missing() -> None:
    """A call that takes too long ends in time and leaves nothing running."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        asked = [request("a", tokens=1), request("b", tokens=10**9)]
        with pytest.raises(Unavailable, match=r"1 of 2 rollouts did not end within 2 s"):
            await collect(worker.generate(asked, timeout_seconds=2.0))
        await worker.load(SPEC, timeout_seconds=SECONDS)
        assert worker.num_running == 0

    run(work)


def test_an_engine_that_fails_ends_all_requests_and_is_built_anew() -> None:
    """Every caller gets the same error; only a load makes the engine usable again."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        engine.fails_at = 3
        engine.gate.clear()
        calls = [
            asyncio.create_task(
                collect(worker.generate([request(name, tokens=9)], timeout_seconds=SECONDS))
            )
            for name in "ab"
        ]
        while not worker.num_running:
            await asyncio.sleep(0)
        engine.gate.set()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {str(one) for one in errors} == {
            "the generation engine failed: RuntimeError: out of memory"
        }
        with pytest.raises(JobFailed):
            await collect(worker.generate([request("c")], timeout_seconds=SECONDS))
        assert engine.closed == 0
        await worker.load(SPEC, timeout_seconds=SECONDS)
        assert engine.closed == 1
        assert len(await collect(worker.generate([request("c")], timeout_seconds=SECONDS))) == 1

    run(work)


def test_a_wrong_request_fails_alone() -> None:
    """The engine's refusal reaches the caller; others go on."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        wrong = RolloutRequest(
            request_id="w",
            prompt_tokens=(),
            temperature=1.0,
            max_new_tokens=1,
            seed=0,
            stop_token_ids=(),
        )
        with pytest.raises(InvalidInput):
            await collect(worker.generate([wrong], timeout_seconds=SECONDS))
        assert len(await collect(worker.generate([request("a")], timeout_seconds=SECONDS))) == 1

    run(work)


def test_ids_and_numbers_of_requests_are_limited() -> None:
    """An id runs once; more requests than allowed are refused, and nothing begins."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        endless = worker.generate(
            [request("a", tokens=10**9), request("b", tokens=1)], timeout_seconds=5
        )
        async with aclosing(endless):
            await anext(endless)
            with pytest.raises(Conflict, match="used twice: a"):
                await collect(worker.generate([request("a")], timeout_seconds=SECONDS))
            asked = [request(name) for name in "cde"]
            with pytest.raises(ResourceExhausted, match="3 requests beside the 1 that run"):
                await collect(worker.generate(asked, timeout_seconds=SECONDS))
            with pytest.raises(Conflict, match="1 rollouts of another call still run"):
                await worker.load(SPEC, timeout_seconds=SECONDS)
            assert set(engine.running) == {"a"}

    run(work, max_requests=3)


def test_a_call_on_a_busy_engine_ends_by_its_deadline() -> None:
    """A command that was given up before its turn is never run."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        engine.gate.clear()
        call = asyncio.create_task(
            collect(worker.generate([request("a")], timeout_seconds=SECONDS))
        )
        while not engine.stepping.is_set():
            await asyncio.sleep(0)
        with pytest.raises(Unavailable, match=r"did not answer within 0.05 s"):
            await worker.commit_weights(9, timeout_seconds=0.05)
        engine.gate.set()
        await call
        await worker.load(SPEC, timeout_seconds=SECONDS)
        assert engine.version == 0

    run(work)


def test_closing_ends_callers_with_an_error() -> None:
    """Nobody waits for a worker that is gone."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        call = asyncio.create_task(
            collect(worker.generate([request("a", tokens=10**9)], timeout_seconds=SECONDS))
        )
        while not worker.num_running:
            await asyncio.sleep(0)
        await worker.close()
        with pytest.raises(Unavailable, match="closes"):
            await call
        with pytest.raises(Unavailable, match="closing"):
            await worker.load(SPEC, timeout_seconds=SECONDS)

    run(work)


def test_errors_of_a_transfer_reach_the_caller() -> None:
    """The engine's error keeps its class."""

    async def work(worker: RolloutWorker, engine: CountingEngine) -> None:
        session = TransferSession(
            session_id="s",
            group_id="g",
            store_host="h",
            store_port=1,
            num_endpoints=1,
            canonical_tensors=(),
            dtype="float32",
            timeout_seconds=1.0,
        )
        with pytest.raises(Unavailable, match="no peer"):
            await worker.stage_weights(session, [], timeout_seconds=SECONDS)

    run(work)
