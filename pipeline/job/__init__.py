"""The driver of a job. Modules in the order of a job's life:

    generate.py         the job from `prepare` to `run.json`; start to read here
    preflight.py        check model, bank, router, input and output, and plan the windows
    guard.py            what decides the output, compared with the run that the job continues
    session.py          one command at work on an output: lease, markers, incidents, progress
    passes.py           answer all missing rows in one stream, and again what has no answer, within the error_budget.py
    watch.py            look at a pass in which nothing is committed: stop it if everything fails
    finish.py           finish windows while the stream runs
    stop.py             the reasons for which a job stops, and how it does
    result.py           the result of a job, and `run.json`
    retry_dead.py       the job that answers dead letters of a finished run again

To understand the stream, read two files: `passes.py` here and `pipeline/stages/dataset.py`, which chains the stages.
"""
