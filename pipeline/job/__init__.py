"""The driver of a job: check, plan, run the stages until every record is answered, finish, retry dead letters."""
