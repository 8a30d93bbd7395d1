from __future__ import annotations

import torch

# Models this small gain nothing from a second thread, and threads that spin starve on a busy machine.
torch.set_num_threads(1)
