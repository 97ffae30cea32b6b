"""Builds by the thousand in one master, and whatever can go wrong meanwhile, at random.

``python -m soak --help``; the modules: ``kinds`` of builds, ``harm`` that is done, what there
``counts`` afterwards, the ``verdict`` on each build, the ``run`` of it all.
"""
