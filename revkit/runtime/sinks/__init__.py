"""Where the drain takes what happened: each sink owns one kind of effect.

store     puts replies into the store, and takes kept ones out of it
events    sends events to observers
progress  calls the user's callback, and updates the display
"""
