# What the terminal shows of a run: a line for each job that starts, with how many of all are done and for how long
# it goes on, if jobs of a rule take as long as those that ended; of a job that failed the end of its log. Everything
# else is in the file that Snakemake names at its end. Dry runs, jobs that run Snakemake themselves, and workflows that
# use this one as a module keep its own output.
import logging
import re
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

from snakemake.logging import logger
from snakemake_interface_executor_plugins.settings import ExecMode


class Console(logging.Formatter):
    """Records of Snakemake for a terminal; those without a form here keep the ``usual`` one."""

    UNSEEN = (
        "Select jobs|Execute |Trying to restart|Removing temporary output"
        "|RuleException:\nCalledProcessError"
    )

    def __init__(self, usual):
        super().__init__()
        self.usual, self.done, self.total, self.told = usual, 0, "?", {}
        self.began, self.started, self.left = time.monotonic(), {}, {}
        self.seconds = defaultdict(list)

    def filter(self, record):
        """Whether the terminal shows a record. Specs take no time, so that they are counted only."""
        if workflow.dryrun:
            return True
        event = self.event(record)
        if event == "PROGRESS":
            self.done, self.total = record.done, record.total
            return record.done == record.total
        if event == "JOB_INFO":
            self.started[record.jobid] = record.rule_name, time.monotonic()
            return record.rule_name != "spec"
        if event == "JOB_FINISHED" and record.job_id in self.started:
            name, start = self.started.pop(record.job_id)
            self.seconds[name].append(time.monotonic() - start)
            self.left[name] = self.left.get(name, 1) - 1
        if event == "JOB_ERROR":
            self.started.pop(record.jobid, None)
        return event != "JOB_FINISHED" and not re.match(self.UNSEEN, str(record.msg))

    def format(self, record):
        event = self.event(record)
        if event == "RUN_INFO":
            self.left = {**record.stats}
            self.total = self.left.pop("total", self.total)
        if workflow.dryrun or event not in ("JOB_INFO", "JOB_ERROR"):
            return self.usual.format(record)
        made = record.output[0] if record.output else ""
        if event == "JOB_INFO":
            clock = time.strftime("%H:%M:%S")
            return (
                f"[{clock}] {self.done} of {self.total} done, now {record.rule_name} {made}"
                f" ({self.progress()})"
            )
        lines = ["Error in rule" + f" {record.rule_name}: {made}"]
        lines += [str(record.rule_msg)] if record.rule_msg else []
        if made:  # others print what they have to say
            for file in record.log:
                lines += [*end_of(file), f"log: {file}"]
        if self.told.get(made) == lines:
            return f"{lines[0]}: the same again"
        self.told[made] = lines
        return "\n    ".join(lines)

    def progress(self):
        """Time since the start, and what the jobs that are left take with as many at once as until now."""
        passed = time.monotonic() - self.began
        spent = sum(map(sum, self.seconds.values()))
        text = f"after {timedelta(seconds=round(passed))}"
        running = {name for name, _ in self.started.values()}
        # How long others take, perhaps hours, is not known.
        if not spent or running - self.seconds.keys():
            return text
        left, sure = 0, "about"
        for name, count in self.left.items():
            known = self.seconds.get(name)
            if known:
                left += count * sum(known) / len(known)
            elif count:
                sure = "at least"
        left = timedelta(seconds=round(left * passed / spent))
        return f"{text}, {sure} {left} left"

    @staticmethod
    def event(record):
        event = getattr(record, "event", None)
        return event.name if event else ""


def end_of(log, most=10):
    """The last lines of a log: the error that a stage has told, or else what stands there."""
    try:
        content = Path(log).read_bytes().decode(errors="replace")
    except OSError:
        return []
    # a progress bar is one line that is written again and again
    lines = [line.rpartition("\r")[2] for line in content.rstrip().split("\n")]
    told = [number for number, line in enumerate(lines) if line.startswith("error:")]
    if not told:
        return lines[-most:]
    # after it come the traces of the launcher of several processes
    end = next(
        (
            number
            for number in range(told[-1] + 1, len(lines))
            if re.match(r"Traceback|[EWI]\d{4} |\[rank", lines[number])
        ),
        len(lines),
    )
    return lines[told[-1] : end][:most]


if workflow.exec_mode == ExecMode.DEFAULT and not outer:
    for handler in logger.handlers:
        if handler.name == "DefaultStreamHandler":
            console = Console(handler.formatter)
            handler.addFilter(console.filter)
            handler.setFormatter(console)
