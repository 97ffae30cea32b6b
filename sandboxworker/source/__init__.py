"""The source, without a network: fetched on the master's side, sent into the sandbox.

A git step's commands run inside, as they are; the repositories that they ask for are mirrored by
the master beforehand, what they need of them is put into the sandbox, and git's ``insteadOf``
settings, in the command's environment, lead the URLs there.
"""
