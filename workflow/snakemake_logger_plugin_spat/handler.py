"""The handler of Snakemake's messages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_spat.display import Display, Expected

# Events that the display replaces.
REPLACED = {
    LogEvent.JOB_INFO,
    LogEvent.GROUP_INFO,
    LogEvent.SHELLCMD,
    LogEvent.JOB_STARTED,
    LogEvent.JOB_FINISHED,
    LogEvent.PROGRESS,
}
# Events that users do not need.
IDLE = {LogEvent.WORKFLOW_STARTED, LogEvent.RUN_INFO, LogEvent.RESOURCES_INFO, LogEvent.RULEGRAPH}
# The beginnings of messages that have no event and that users do not need.
IDLE_TEXTS = (
    "Building DAG of jobs",
    "Using shell:",
    "Provided cores:",
    "Provided resources:",
    "Rules claiming more threads",
    "Conda environments: ignored",
    "Group jobs: inactive",
    "Select jobs to execute",
    "Singularity containers: ignored",
)


class LogHandler(LogHandlerBase):
    """Prints the display, and the messages that the display does not replace.

    A dry run, `--verbose` and `--quiet` print what Snakemake prints without this plugin. If the
    display fails, the handler reports the failure once and then works as Snakemake's own handler.
    """

    def __post_init__(self) -> None:
        settings: Any = self.common_settings
        self.stream = sys.stdout if settings.stdout else sys.stderr
        self.plain = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=self.stream,
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
        )
        self.plain.addFilter(
            DefaultFilter(
                settings.quiet,
                settings.debug_dag,
                settings.verbose,
                settings.dryrun,
                settings.printshellcmds,
            )
        )
        quiet = {Quietness.ALL, Quietness.PROGRESS} & set(settings.quiet or ())
        self.usual = bool(quiet or settings.dryrun or settings.verbose or settings.debug_dag)
        self.display: Display | None = None

    def expect(self, jobs: Sequence[Expected], cores: int, title: str, logs: str) -> None:
        """Start the display: the Snakefile calls this before the first job."""
        if self.usual or not jobs:
            return
        try:
            self.display = Display(jobs, cores, title, logs, self.stream)
            self.display.start()
        except Exception as error:
            self._give_up(error)

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, or update the display by it."""
        if self.usual:
            self.plain.handle(record)
            return
        try:
            self._show(record)
        except Exception as error:
            self._give_up(error)

    def _show(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        text = str(record.msg or "").lstrip()
        if event in IDLE or (event is None and text.startswith(IDLE_TEXTS)):
            return
        display = self.display
        if display is None:
            self.plain.handle(record)
            return
        if event == LogEvent.JOB_INFO:
            display.begin(record.jobid)  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_FINISHED:
            display.finish(record.job_id)  # type: ignore[attr-defined]
        elif event == LogEvent.JOB_ERROR:
            display.fail(record.jobid)  # type: ignore[attr-defined]
        if event in REPLACED:
            return
        with display.paused():
            self.plain.handle(record)

    def _give_up(self, error: Exception) -> None:
        self.usual = True
        display, self.display = self.display, None
        if display is not None:
            display.stop()
        kind = type(error).__name__
        self.stream.write(
            f"spat: the display of progress failed ({kind}: {error}); the run continues\n"
        )

    def close(self) -> None:
        """Stop the display."""
        if self.display is not None:
            self.display.stop()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        """True: this handler replaces Snakemake's own."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """False."""
        return False

    @property
    def has_filter(self) -> bool:
        """True."""
        return True

    @property
    def has_formatter(self) -> bool:
        """True."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """False."""
        return False
