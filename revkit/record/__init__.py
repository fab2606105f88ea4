"""What happened in a run, as columns, and what follows from it.

record   everything that is known about a run
join     how two records become one, column by column
samples  several samples of one row as one value
metrics  the figures of a run
totals   the figures of many runs, in memory that does not grow
columns  the record as columns of the caller's frame
frames   the record as frames of its own
latency  service times and waits as frames, by group
"""
