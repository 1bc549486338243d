"""What becomes of a job whose attempt ended before it: its worker died, its GPU stopped answering, or it failed."""

from __future__ import annotations

from radial_app.jobs.job import Job, State

MAX_ATTEMPTS = 5  # of a job that gets no further
# As its user asked meanwhile.
_WANTED: dict[str, State] = {"pause": "paused", "cancel": "cancelled", "finish": "cancelled"}


def after_failure(control: str, attempts: int, error: str, *, counts: bool) -> tuple[State, str]:
    """The state and the error of a job whose attempt failed in a way that another may get over.

    Args:
        control: what its user asked for meanwhile.
        counts: whether the failure was the job's own: after so many it fails for good.
    """
    state = _WANTED.get(control, "queued")
    if state == "queued" and counts and attempts >= MAX_ATTEMPTS:
        return "failed", f"{error}, {attempts} times in a row"
    return state, error


def after_death(job: Job, reason: str | None, max_attempts: int = MAX_ATTEMPTS) -> tuple[State, str]:
    """The state and the error of a job whose worker is dead; one that killed it too often fails.

    Args:
        reason: why it is dead, where that is known.
    """
    where = f"in stage {job.stage}" + (f", step {job.step} of {job.steps}" if job.step else "")
    poison = job.attempts >= max_attempts and not job.control
    if reason is not None:
        error = f"{reason} ({where})"
    else:
        error = f"its worker died {where}" + (f", {job.attempts} times in a row" if poison else "")
    return "failed" if poison else _WANTED.get(job.control, "queued"), error
