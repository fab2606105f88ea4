"""What is asked of a model, and what counts as its answer. Pure.

chat           messages and replies
objects        objects that are made of fields
cells          how a value is written into a prompt
annotations    what a type comes to: the plain type in it, its labels
output_models  a pydantic model class as outputs
thoughts       takes a model's thoughts out of its reply
outputs        typed outputs: described to a model, read out of its reply
candidates     where the answer may stand in a reply that is not JSON as a whole
lenient        the other ways to write an answer that are read
returned       what a function returned, as values of outputs
braces         braces of a template that are text
kinds          the kinds of task: a signature, a template, a function
answer         what counts as an answer: a whole reply, and its values
sentiment      the tasks that are ready to use
tokens         how many tokens a prompt has, and what they cost
"""
