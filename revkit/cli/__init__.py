"""The commands of ``python -m revkit``.

demo    classify reviews, and show where the time went
doctor  which models can be reached
probe   how many requests a server works on at once
"""
