"""When each row runs, on which worker, and whether it is retried. Pure: time is an argument.

events     the vocabulary: attempts, outcomes, stops, holds
policy     retries, the number of workers, the limit of failures
buckets    the arithmetic of rate limits
accounts   the arithmetic of budgets
limits     RateLimit and Budget, which runs share
adaptive   finds how many attempts may run, by their effect on the server's throughput
throttle   the limits of one run: whether an attempt may start now
holds      when nothing might start, and why
access     whether a 403 is one row's error or ends the run
outage     whether the server is away, and how it is probed
refusals   what a 429, 503 or 529 means for the run and for its row
pacing     slower starts where the server refuses most of them
crowding   fewer attempts at a time where the machine has no room for all
unsettled  rows that have failed so far: to be tried again, or parked
scheduler  hands out attempts, and decides about their outcomes
"""
