"""Which row is tried when, by whom, and what becomes of it. Pure: time is an argument.

events     the words that the parts of a run speak to each other
policy     retries, the number of workers, how many failures are too many
buckets    the arithmetic of rate limits and budgets
limits     RateLimit and Budget, which runs share
adaptive   how many attempts may run, found by what they do to the server's throughput
throttle   one run's side of its limits
scheduler  the machine that decides all of it
"""
