"""The stages of a job as Ray Data operators; `dataset.py` chains them. Modules in the order of a record's path:

    read.py             read splits of the input into tables of records
    route.py            tokenise each record once, and choose its mixture of adapters (record_sampling.py: its settings)
    regroup.py          cut blocks of routed records into shards that run together, as planned by shard_plan.py
    generate.py         answer the records of a shard in an actor that holds an engine
    commit.py           write answers and dead letters, with the columns of output_schema.py, through storage.commit
    tables.py           helpers for the tables between the stages, whose columns are in `pipeline.records`

A record that a stage refuses gets a `DeadLetter` in the column `dead`; later stages pass it on, and `commit.py` writes
it to the dead letters. Nothing is imported here: tasks that read and write run in processes that need no torch.
"""
