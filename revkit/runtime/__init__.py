"""One run: from a plan to its record.

options    the keyword arguments, checked and in groups
plan       what a run is going to do: all that is decided before anything is sent
wiring     makes the parts of one run from its plan
prompts    the rendered prompts of one run
state      what each worker of a function works with, and no other worker
work       what a worker does in one attempt
lookahead  ahead of the workers: which rows need the model at all
engines/   threads and the event loop: two thin ways to run workers
drain      the one drain of a run, which owns every effect
run        starts an engine and drains it
cancel     a token that stops runs from outside
interrupt  what Ctrl-C does
"""
