"""From interactions and item texts to a release: every stage is one module and one command."""

import os

# oneDNN keeps 1,024 products ready by the shape of their operands. Batches are of ever other shapes, so that nothing is
# found again, and what is kept fills gigabytes while a model trains in bfloat16. Read when the first product is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
