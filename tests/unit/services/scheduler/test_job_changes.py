"""What clients may ask of a job in each of its states."""

import pytest

from realloc.core.errors import Conflict
from realloc.core.experiment import CheckpointSettings, DataSettings, Experiment, ModelSettings
from realloc.core.job import TRANSITIONS, Job, JobState, Wanted
from services.scheduler.job_changes import cancelled, pausing, resumed, saving

AT_REST = {JobState.PAUSED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def job(state: JobState, *, folder: str = "/state", wanted: Wanted = Wanted.NOTHING) -> Job:
    experiment = Experiment(
        name="test",
        algorithm="sft",
        iterations=3,
        actor=ModelSettings(checkpoint="/m"),
        data=DataSettings(path="/d", batch_size=2),
        checkpoint=CheckpointSettings(folder=folder),
    )
    return Job(
        job_id="one", experiment=experiment, state=state, wanted=wanted, error="e", end_time=5.0
    )


def every_state(test):  # type: ignore[no-untyped-def]  # a test
    return pytest.mark.parametrize("state", list(JobState), ids=lambda state: state.value)(test)


@every_state
def test_changes_keep_to_the_transition_table(state: JobState) -> None:
    """No change makes a state that the table forbids; a refusal changes nothing."""
    for change in (cancelled, pausing, resumed, saving):
        try:
            after = change(job(state))
        except Conflict:
            continue
        assert after.state is state or after.state in TRANSITIONS[state], change


@every_state
def test_a_pause_waits_for_the_iteration_of_a_running_job_only(state: JobState) -> None:
    """A job that runs is saved first; one that does not run has nothing to save."""
    after = pausing(job(state))
    if state is JobState.RUNNING:
        assert (after.state, after.wanted) == (state, Wanted.PAUSE)
    else:
        assert after.state is (state if state in AT_REST else JobState.PAUSED)
        assert after.wanted is Wanted.NOTHING


def test_nothing_is_saved_without_a_folder() -> None:
    """A running job without a folder can be neither paused nor saved."""
    for change in (pausing, saving):
        with pytest.raises(Conflict, match="has no checkpoint"):
            change(job(JobState.RUNNING, folder=""))


@every_state
def test_only_a_running_job_is_saved(state: JobState) -> None:
    """A wish for a checkpoint never replaces one for a pause."""
    if state is not JobState.RUNNING:
        with pytest.raises(Conflict, match=state.value):
            saving(job(state))
        return
    assert saving(job(state)).wanted is Wanted.CHECKPOINT
    assert saving(job(state, wanted=Wanted.PAUSE)).wanted is Wanted.PAUSE


@every_state
def test_a_stopped_job_is_resumed_as_new(state: JobState) -> None:
    """What stopped it is forgotten; a job that works, or has succeeded, is not resumed."""
    if state in AT_REST - {JobState.SUCCEEDED}:
        after = resumed(job(state))
        assert (after.state, after.error, after.end_time) == (JobState.PENDING, "", 0.0)
    else:
        with pytest.raises(Conflict):
            resumed(job(state))


@every_state
def test_a_cancelled_job_stays_as_it_ended(state: JobState) -> None:
    """Cancelling ends whatever has not ended, a pause included."""
    ended = AT_REST - {JobState.PAUSED}
    assert cancelled(job(state)).state is (state if state in ended else JobState.CANCELLED)
