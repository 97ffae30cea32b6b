"""A virtual machine with Debian's own kernel, in which tests run that this machine cannot serve.

``python -m tests.vm --help``; ``docs/vm.md`` tells what it is for.
"""
