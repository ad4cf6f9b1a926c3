"""At the same measured peak, who is fastest, and who can go lowest? Everything a user could pick instead, and ours.

:mod:`.workloads` is what is trained, :mod:`.contestants` who trains it, :mod:`.runner` has them :mod:`.race`,
:mod:`.verdict` judges and :mod:`.figures` draws. ``python -m bench.contest`` runs, ``python -m bench.report`` writes
the page.
"""
