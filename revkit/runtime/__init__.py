"""One run: from a plan to its record.

options    the keyword arguments, checked and in groups
plan       what a run is going to do: all that is decided before anything is sent
wiring     makes the parts of one run from its plan
prompts    the rendered prompts of one run
state      what each worker of a function works with, and no other worker
failures   what an attempt's exception comes to
work       what a worker does in one attempt
draws      which of its prompt's replies a row gets, where a model may vary
lookahead  ahead of the workers: which rows need the model at all
engines/   threads and event loops: thin ways to run workers
drain      takes what workers report, and causes every effect
sinks/     the effects: store, events, progress
lifecycle  what is done when, and what a stop does
run        carries the lifecycle out, in a thread or in a task
cancel     a token that stops runs from outside
interrupt  what Ctrl-C does
"""
