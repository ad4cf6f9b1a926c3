"""What training scripts do, each in a few lines.

A *script* builds its network, compiles with what it is given, trains a little and returns what must not differ between
compilers. ``SCRIPTS["tied_weights"](lambda model, **options: torch.compile(model, **options))`` runs one.
"""

from bench.training_scripts import annotations, forms, graphs, libraries, precision, processes, random_numbers
from bench.training_scripts.parts import DRAWS, NEEDS, SCRIPTS, Compile, Script

THEMES = (annotations, random_numbers, precision, forms, graphs, processes, libraries)
REFUSED = {"second_order_gradients", "flex_attention"}
"""What plain ``torch.compile`` refuses as well; flex attention on the CPU has no backward."""
WRONG = {"a_buffer_that_is_read_and_then_overwritten"}
"""Where plain ``torch.compile`` gives wrong gradients without a word (torch 2.13.0)."""

__all__ = ["DRAWS", "NEEDS", "REFUSED", "SCRIPTS", "THEMES", "WRONG", "Compile", "Script"]
