"""The embedded model: a small one that revkit fetches and serves itself, in a child process.

client        what runs use
label_scores  class outputs by the scores of their labels
process       the child process that serves the model
server        the program that it runs
model_file    where the model's file is, and fetching it
"""
