"""What a run gives back.

result      ParallelResult: what became of each row
timing      where the time went: the rest of ParallelResult, a reading of the record
provenance  what a run was made of, as plain JSON
compare     two runs on the same rows, side by side
evaluate    an output against labels that are known to be right
server      a server with slots, and what attempts asked of it
fitting     the server that explains a run best
replay      a run on a server with another number of workers
whatif      predictions of that, and what they rest on
forecast    what a what-if gives back
bottleneck  whether the server limited a run
trace       a run as a trace that Perfetto opens
saved/      a whole result in one Parquet file
"""
