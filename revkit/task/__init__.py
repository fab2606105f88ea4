"""What is asked of a model, and what counts as its answer. Pure.

chat       messages and replies
outputs    typed outputs: described to a model, read out of its reply
kinds      the kinds of task: a signature, a template, a function
sentiment  the tasks that are ready to use
tokens     how many tokens a prompt has, and what they cost
"""
