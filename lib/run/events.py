"""Snakemake as a child of the runner: a logger plugin that writes its events to standard output as lines of JSON.

    python -m lib.run.events <Snakemake's arguments>

The jobs of a dry run come first (the plan), then `{"event": "start"}`, then the run itself.
"""

import json
import os
import signal
import sys
import threading

from snakemake.cli import main
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.registry import LoggerPluginRegistry


class LogHandler(LogHandlerBase):
    writes_to_stream, writes_to_file, has_filter, has_formatter, needs_rulegraph = True, False, True, True, False

    def emit(self, record):
        event, fields = getattr(record, "event", None), vars(record)
        if event == "job_info":
            said = {"id": "jobid", "rule": "rule_name", "wildcards": "wildcards", "title": "rule_msg", "log": "log"}
            say(event, **{name: fields[field] for name, field in said.items()})
        elif event == "job_finished":
            say(event, id=fields["job_id"])
        elif event == "job_error":  # with what a cluster says of the job, and where its own log of the job lies
            said = (fields["rule_msg"] or "").partition("For further error details")[0]
            say(event, id=fields["jobid"], text=" ".join(said.split()), log=fields["log"])
        elif record.levelname in ("ERROR", "CRITICAL"):
            say("message", text=record.getMessage())


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


def let_pods_share_files():
    """Let Snakemake's Kubernetes plugin, where it is installed, use the volume that all pods of its profile mount.

    By itself it assumes that pods share no files, whatever the profile says, and asks for an object store.
    """
    try:
        import snakemake_executor_plugin_kubernetes as plugin
    except ImportError:
        return
    for name in ("implies_no_shared_fs", "job_deploy_sources", "auto_deploy_default_storage_provider"):
        setattr(plugin.common_settings, name, False)


def stop_with_parent():
    """Wait for the end of standard input, which comes when the runner is gone, however it ended; then stop all jobs."""
    os.read(0, 1)
    os.killpg(0, signal.SIGINT)


if __name__ == "__main__":
    let_pods_share_files()
    LoggerPluginRegistry().register_plugin("snakemake_logger_plugin_events", sys.modules[__name__])
    threading.Thread(target=stop_with_parent, daemon=True).start()
    arguments = [*sys.argv[1:], "--logger", "events"]
    try:
        main([*arguments, "--dry-run"])
    except SystemExit as end:
        if end.code:
            raise
    say("start")
    main(arguments)
