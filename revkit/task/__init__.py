"""What is asked of a model, and what counts as its answer. Pure.

chat        messages and replies
thoughts    takes a model's thoughts out of its reply
outputs     typed outputs: described to a model, read out of its reply
candidates  where the answer may stand in a reply that is not JSON as a whole
lenient     the other ways to write an answer that are read
kinds       the kinds of task: a signature, a template, a function
answer      what counts as an answer: a whole reply, and its values
sentiment   the tasks that are ready to use
tokens      how many tokens a prompt has, and what they cost
"""
