"""Every span, metric and attribute by name, with its unit and one line of meaning.

    with span(Span.ITERATION, {Attribute.JOB_ID: job_id, Attribute.ITERATION: 3}): ...
    record(Metric.REALLOCATED_BYTES, moved, {Attribute.MODEL_ID: "actor"})

Members are plain texts to OpenTelemetry. Imports nothing but the standard library.
"""

from enum import Enum, StrEnum


class Span(StrEnum):
    """Spans, from the outside in. Calls between processes are named package.Service/Method."""

    meaning: str

    def __new__(cls, name: str, meaning: str) -> "Span":
        member = str.__new__(cls, name)
        member._value_ = name
        member.meaning = meaning
        return member

    JOB = "job", "One job, from its admission to its end."
    JOB_PLAN = "job.plan", "Asking plan-search for the execution plan of a job."
    JOB_SETUP = "job.setup", "Forming the job's world and building its models."
    ITERATION = "iteration", "One pass over the dataflow graph."
    FUNCTION_CALL = "function_call", "One function call on its whole mesh, seen by the runner."
    FUNCTION_CALL_RANK = "function_call.rank", "One function call on one shard's engine."
    EVALUATION = "evaluation", "Greedy answers to held-out prompts."
    CHECKPOINT = "checkpoint", "Writing a checkpoint, while iterations run or after the last."
    CHECKPOINT_RESTORE = "checkpoint.restore", "Filling a job's models from a checkpoint."
    CHECKPOINT_SNAPSHOT = "checkpoint.snapshot", "Copying a job's state to host memory to save it."
    LOAD_MODEL = "model.load", "Building a model and filling its weights."
    ROLLOUT = "rollout", "One batch of prompts in a generation engine, until all have ended."
    PULL_BATCH = "batch.pull", "Fetching rows of batches from other shards."
    TRAIN_STEP = "train.step", "One optimizer step: forward, backward, reduction, update."
    REALLOCATION = "reallocation", "One model from one layout to another, to a new version."
    REALLOCATION_PLAN = "reallocation.plan", "Computing (or finding) the transfer programs."
    REALLOCATION_PREPARE = "reallocation.prepare", "Handing the programs to the endpoints."
    REALLOCATION_TRANSFER = "reallocation.transfer", "Bytes move; shadow parameters are filled."
    REALLOCATION_RANK = "reallocation.rank", "One source's part in a transfer, beside its calls."
    REALLOCATION_VERIFY = "reallocation.verify", "Comparing the digests of both sides."
    REALLOCATION_COMMIT = "reallocation.commit", "Engines flip to the new version."
    REALLOCATION_ABORT = "reallocation.abort", "Shadows are dropped after a failure."
    SEARCH = "plan_search", "Searching an execution plan."


class Attribute(StrEnum):
    """Attributes of spans, metrics and log events."""

    unit: str
    meaning: str

    def __new__(cls, name: str, unit: str, meaning: str) -> "Attribute":
        member = str.__new__(cls, name)
        member._value_ = name
        member.unit = unit
        member.meaning = meaning
        return member

    JOB_ID = "realloc.job.id", "", "Id of the job."
    ALGORITHM = "realloc.job.algorithm", "", "Name of the algorithm: ppo, sft."
    ITERATION = "realloc.iteration", "", "Number of the iteration, from 1."
    CALL = "realloc.call", "", "Name of the function call in the dataflow graph."
    CALL_KIND = "realloc.call.kind", "", "generate, inference or train."
    CALL_SEQUENCE = "realloc.call.sequence", "", "Sequence number that orders calls on a shard."
    MODEL_ID = "realloc.model.id", "", "Model within the job: actor, critic, ref."
    WEIGHT_VERSION = "realloc.model.weight_version", "", "Optimizer steps behind the weights."
    LAYOUT = "realloc.layout", "", "Layout of the model, as megatron:d1t2p1@0,1."
    DEVICE_KIND = "realloc.device.kind", "", "Hardware of the device, as the cost model names it."
    MEMBER_KIND = (
        "realloc.member.kind",
        "",
        "scheduler, plan_search, param_store, trainer or generation.",
    )
    LANE = "realloc.lane", "", "Row of the timeline within its process; empty is the main one."
    NUM_ROWS = "realloc.batch.rows", "{row}", "Rows of the batch."
    NUM_TOKENS = "realloc.batch.tokens", "{token}", "Tokens of the batch."
    MOVED_BYTES = "realloc.reallocation.bytes", "By", "Bytes written at all destinations."
    LOCAL_BYTES = "realloc.reallocation.local_bytes", "By", "Bytes that stay on their device."
    CROSS_DEVICE_BYTES = "realloc.reallocation.cross_device_bytes", "By", "Between devices."
    CROSS_NODE_BYTES = "realloc.reallocation.cross_node_bytes", "By", "Between nodes."
    BOUND_RATIO = "realloc.reallocation.bound_ratio", "1", "Bytes between devices over the least."
    SENT_BYTES = "realloc.reallocation.sent_bytes", "By", "Bytes sent to other processes."
    TRANSPORTS = (
        "realloc.reallocation.transports",
        "",
        "How they were sent: gloo, shared_memory, nccl, cuda_ipc.",
    )
    BYTES_KIND = "realloc.reallocation.bytes_kind", "", "local, cross_device or cross_node."
    PHASE = "realloc.reallocation.phase", "", "preparing, transferring, verifying, committing."
    DIGEST_OK = "realloc.reallocation.digest_ok", "", "True where both sides agree."
    OUTCOME = "realloc.outcome", "", "committed, aborted; succeeded, failed, cancelled."
    ERROR_CLASS = "realloc.error", "", "Class of the error that ended the span."
    RPC_SYSTEM = "rpc.system", "", "Always grpc."
    RPC_SERVICE = "rpc.service", "", "Full name of the called service."
    RPC_METHOD = "rpc.method", "", "Name of the called method."
    RPC_STATUS_CODE = "rpc.grpc.status_code", "", "Name of the status code."
    SERVER_ADDRESS = "server.address", "", "Where the called service listens, host:port."


class Instrument(Enum):
    """How a metric's values add up."""

    COUNTER = "counter"
    GAUGE = "gauge"
    OBSERVED = "observed gauge"
    """Read from a callback whenever metrics are exported."""
    HISTOGRAM = "histogram"


class Metric(StrEnum):
    """Metrics; units as in UCUM, the way OpenTelemetry writes them."""

    instrument: Instrument
    unit: str
    meaning: str

    def __new__(cls, name: str, instrument: Instrument, unit: str, meaning: str) -> "Metric":
        member = str.__new__(cls, name)
        member._value_ = name
        member.instrument = instrument
        member.unit = unit
        member.meaning = meaning
        return member

    JOBS_ENDED = "realloc.jobs.ended", Instrument.COUNTER, "{job}", "Jobs ended, by outcome."
    JOB_IDLE_SECONDS = (
        "realloc.job.idle",
        Instrument.OBSERVED,
        "s",
        "Seconds since a running job last ended an iteration or an evaluation, by job.",
    )
    ITERATION_SECONDS = "realloc.iteration.duration", Instrument.HISTOGRAM, "s", "One iteration."
    CALL_SECONDS = "realloc.call.duration", Instrument.HISTOGRAM, "s", "One function call."
    CALL_PREDICTED_SECONDS = (
        "realloc.call.predicted_duration",
        Instrument.HISTOGRAM,
        "s",
        "What the cost model expected of the same call.",
    )
    REWARD = "realloc.reward.mean", Instrument.GAUGE, "{reward}", "Mean reward of the iteration."
    KL = "realloc.kl.mean", Instrument.GAUGE, "nat", "Mean KL to the reference per sequence."
    LOSS = "realloc.loss", Instrument.GAUGE, "{loss}", "Mean loss of a train call, by model."
    GRAD_NORM = "realloc.grad_norm", Instrument.GAUGE, "{norm}", "Gradient norm before clipping."
    TOKENS = "realloc.tokens", Instrument.COUNTER, "{token}", "Tokens processed, by call."
    WEIGHT_VERSION = (
        "realloc.weight_version",
        Instrument.GAUGE,
        "{version}",
        "Version that the model serves.",
    )
    LOGPROB_DIFFERENCE = (
        "realloc.logprob.train_rollout_abs_difference",
        Instrument.GAUGE,
        "nat",
        "Largest difference of the trainer's and the generator's log-probability of a token.",
    )
    REALLOCATION_SECONDS = (
        "realloc.reallocation.duration",
        Instrument.HISTOGRAM,
        "s",
        "One reallocation, prepare to commit.",
    )
    REALLOCATION_PHASE_SECONDS = (
        "realloc.reallocation.phase.duration",
        Instrument.HISTOGRAM,
        "s",
        "One phase of a reallocation, by phase.",
    )
    REALLOCATED_BYTES = (
        "realloc.reallocation.bytes",
        Instrument.COUNTER,
        "By",
        "Bytes written at destinations, by kind: local, cross_device (in a node), cross_node.",
    )
    REALLOCATIONS = (
        "realloc.reallocations",
        Instrument.COUNTER,
        "{reallocation}",
        "Reallocations ended, by outcome.",
    )
    REALLOCATION_BANDWIDTH = (
        "realloc.reallocation.bandwidth",
        Instrument.HISTOGRAM,
        "By/s",
        "Bytes written at all destinations over the seconds of the transfer.",
    )
    REALLOCATION_BOUND_RATIO = (
        "realloc.reallocation.bound_ratio",
        Instrument.HISTOGRAM,
        "1",
        "Bytes that cross devices over the least that any plan must move.",
    )
    DEVICE_BUSY_SECONDS = (
        "realloc.device.busy",
        Instrument.COUNTER,
        "s",
        "Seconds in which a shard ran function calls; its rate is the busy share of the device.",
    )
    MEMBERS = (
        "realloc.members",
        Instrument.OBSERVED,
        "{process}",
        "Processes that are registered, by kind, as a scheduler sees them.",
    )
    DEVICES = (
        "realloc.devices",
        Instrument.OBSERVED,
        "{device}",
        "Devices that a scheduler is configured for: so many trainers should be registered.",
    )
    CHECKPOINT_SNAPSHOT_SECONDS = (
        "realloc.checkpoint.snapshot.duration",
        Instrument.HISTOGRAM,
        "s",
        "Copy of a job's state to host memory, for which the job waits.",
    )
    CHECKPOINT_SECONDS = (
        "realloc.checkpoint.duration",
        Instrument.HISTOGRAM,
        "s",
        "From the copy to the complete checkpoint, while the job goes on.",
    )
    CHECKPOINT_BYTES = "realloc.checkpoint.bytes", Instrument.COUNTER, "By", "Bytes saved."
    RECOVERIES = (
        "realloc.jobs.recoveries",
        Instrument.COUNTER,
        "{recovery}",
        "Lost shards survived.",
    )
    SEARCH_SECONDS = "realloc.search.duration", Instrument.HISTOGRAM, "s", "One plan search."
    RPC_SECONDS = "rpc.server.duration", Instrument.HISTOGRAM, "s", "One call, by method and code."


WITHOUT_SPANS = (
    "grpc.health.",
    "grpc.reflection.",
    "realloc.api.shard.v1.BatchService/FetchBatch",
)
"""Beginnings of methods whose calls get no spans of their own. A shard fetches from each peer,
field by field: two thirds of a PPO iteration's spans, all of them inside of `Span.PULL_BATCH`."""


def rpc_attributes(method: str) -> dict[str, str]:
    """Attributes of a call to ``package.Service/Method``."""
    service, _, name = method.partition("/")
    return {
        Attribute.RPC_SYSTEM: "grpc",
        Attribute.RPC_SERVICE: service,
        Attribute.RPC_METHOD: name,
    }
