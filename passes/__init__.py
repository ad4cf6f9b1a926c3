"""Graph passes of graphremat; import them as ``graphremat.passes``.

The folder lies at the top level of the repository, so a process started there could import it as ``passes`` and end
up with two copies of every class. That is refused here.
"""

if __name__ != "graphremat.passes":
    raise ImportError(f"this package is imported as 'graphremat.passes', not as {__name__!r}")
