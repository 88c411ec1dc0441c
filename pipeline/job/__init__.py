"""The driver of a job. Modules in the order of a job's life:

    generate.py         the job from `prepare` to `run.json`; start to read here
    preflight.py        check model, bank, router, input and output, and plan the windows
    guard.py            what decides the output, compared with the run that the job continues
    session.py          one command at work on an output: lease, markers, incidents, progress
    windows.py          run the windows one after another; prefetch.py routes the next one meanwhile
    window.py           answer the rows of one window, in passes over the rows without an answer
    watch.py            count the shards of the running window, and stop the job over its error_budget.py
    stop.py             the reasons for which a job stops, and how it does
    result.py           the result of a job, and `run.json`
    retry_dead.py       the job that answers dead letters of a finished run again

To understand one window, read two files: `window.py` here and `pipeline/storage/commit/window.py`, which commits its
shards and closes it.
"""
