"""The toy: its jobs are processes of this machine, and $TOY_SPOOL holds a folder for each."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from workflow.config.schedulers.toy import Toy

from gnnscale.contract.job_plan import AllocationPlan
from workflow.config.batch_scheduler import BatchScheduler
from workflow.scheduler.interface import JobStatus, Scheduler, SchedulerUnreachable, Snapshot
from workflow.scheduler.limits import QueueLimit, SchedulerLimits
from workflow.scheduler.queue_facts import QueueFacts, SiteDraft
from workflow.scheduler.submission import OUTPUT_NAME, SCRIPT_NAME, JobHead


class ToyScheduler(Scheduler):
    """The toy, which needs no command to be queried."""

    submit_command: ClassVar = "toysub"
    cancel_command: ClassVar = "toykill"
    allocation: ClassVar[AllocationPlan] = {"id": ["echo", "$TOY_JOB"], "hosts": ["hostname"]}

    def find_by_id(self, ids: Iterable[str], seconds: float) -> Snapshot:
        began, wanted = time.time(), set(ids)
        jobs = {job.id: job for job in self.list_jobs() if job.id in wanted}
        return Snapshot(began, jobs, frozenset(wanted - jobs.keys()))

    def find_by_name(self, names: set[str], seconds: float) -> list[JobStatus]:
        return [job for job in self.list_jobs() if job.name in names]

    def cancel(self, ids: list[str], seconds: float) -> None:
        for id in ids:
            os.killpg(int((find_spool() / id / "pid").read_text()), signal.SIGKILL)

    def list_jobs(self) -> list[JobStatus]:
        return [describe_job(folder) for folder in sorted(find_spool().iterdir())]

    def render_options(self, head: JobHead, settings: BatchScheduler) -> list[str]:
        assert isinstance(settings, Toy)
        colour = [f"--colour {settings.colour}"] if settings.colour else []
        return [f"--name {head.name}", f"--minutes {head.seconds // 60}", *colour, *head.directives]

    def submit_script(self, folder: Path, seconds: float) -> subprocess.CompletedProcess[str]:
        id = str(1 + len(list(find_spool().iterdir())))
        job = find_spool() / id
        job.mkdir()
        lines = (folder / SCRIPT_NAME).read_text().splitlines()
        (job / "name").write_text(next(line.split()[2] for line in lines if line.startswith("#TOY --name")))
        command = f"TOY_JOB={id} bash {SCRIPT_NAME} > {OUTPUT_NAME} 2>&1; echo $? > {job}/code"
        process = subprocess.Popen(["sh", "-c", command], cwd=folder, start_new_session=True)
        (job / "pid").write_text(str(process.pid))
        return subprocess.CompletedProcess(["toysub"], 0, f"job {id} runs\n", "")

    def read_release(self, seconds: float) -> str:
        return f"toy 1, {len(self.list_jobs())} jobs"

    def read_limits(self, seconds: float) -> SchedulerLimits:
        return SchedulerLimits({"toys": QueueLimit(most=1, seconds=3600)}, "toys")

    def read_queues(self, seconds: float) -> list[QueueFacts]:
        return [QueueFacts("toys", True, 1, 1, 3600, 2, 0, 0, "")] if find_spool() else []

    def draft(self, main: QueueFacts) -> SiteDraft:
        return SiteDraft(["colour: red"], "toyrun", '["-n", "{ranks}"]')


def find_spool() -> Path:
    if "TOY_SPOOL" not in os.environ:
        raise SchedulerUnreachable("TOY_SPOOL is not set")
    return Path(os.environ["TOY_SPOOL"])


def describe_job(folder: Path) -> JobStatus:
    name, code = (folder / "name").read_text(), folder / "code"
    if not code.exists():
        return JobStatus(folder.name, name, "RUNNING", nodes="here")
    return JobStatus(folder.name, name, "FAILED" if int(code.read_text()) else "COMPLETED", code=int(code.read_text()))
