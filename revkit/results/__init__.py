"""What a run gives back.

result      ParallelResult: what became of each row
timing      where the time went: the rest of ParallelResult, a reading of the record
provenance  what a run was made of, as plain JSON
compare     two runs on the same rows, side by side
evaluate    an output against labels that are known to be right
whatif      the same run with other numbers of workers: fitted and replayed
forecast    what a what-if gives back
bottleneck  whether the server limited a run
trace       a run as a trace that Perfetto opens
saved/      a whole result in one Parquet file
"""
