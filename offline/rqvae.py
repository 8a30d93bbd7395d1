"""RQ-VAE (A.1, Table 7, Fig. 6): an autoencoder whose latent vector is quantised residually.

Encoder and decoder are MLPs. Codebooks start as k-means of what the untrained encoder makes of the items; a code that
no item of an epoch chose is moved onto the residual of a random item. Gradients pass the quantisation straight through.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from offline.errors import TrainingError
from offline.progress import progress
from offline.quantize import Quantization, ResidualKMeans, assign
from offline.recipe import RqvaeRecipe
from offline.stage import console
from offline.tensors import load_tensors, save_tensors
from offline.threads import one_thread

START_ROWS_PER_CODE = 64  # items that k-means starts each code from, at most
START_ITERATIONS = 20
SAVE_EVERY = 60.0  # seconds


class Network(nn.Module):
    """Encoder, codebooks and decoder; x is float32 [B, D], scaled to a mean square of about 1."""

    def __init__(self, width: int, levels: int, codebook: int, recipe: RqvaeRecipe) -> None:
        super().__init__()
        sizes = [width, *recipe.hidden, recipe.latent]
        self.encoder, self.decoder = _mlp(sizes), _mlp(sizes[::-1])
        self.codebooks = nn.ParameterList(torch.zeros(codebook, recipe.latent) for _ in range(levels))
        self.commitment = recipe.commitment

    def quantize(self, latent: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Residual quantisation of latent [B, d].

        Returns codes int64 [B, L], the sum of the chosen codes [B, d], the residual before each level [L, B, d] and the
        loss: at each level the code drawn to the residual, and `commitment` times the residual drawn to the code.
        """
        residual, total = latent, torch.zeros_like(latent)
        loss = latent.new_zeros(())
        codes, residuals = [], []
        for book in self.codebooks:
            with torch.no_grad():
                code = (0.5 * book.square().sum(1) - residual @ book.T).argmin(1)
            # A product instead of a look-up: its gradient is a product too, whose sums have one order on a GPU as well.
            chosen = F.one_hot(code, len(book)).to(book.dtype) @ book
            loss = loss + F.mse_loss(chosen, residual.detach())
            loss = loss + self.commitment * F.mse_loss(residual, chosen.detach())
            codes.append(code)
            residuals.append(residual.detach())
            residual = residual - chosen.detach()
            total = total + chosen.detach()
        return torch.stack(codes, 1), total, torch.stack(residuals), loss

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reconstruction [B, D], quantisation loss, codes int64 [B, L] and residuals [L, B, d]."""
        latent = self.encoder(x)
        codes, total, residuals, loss = self.quantize(latent)
        return self.decoder(latent + (total - latent).detach()), loss, codes, residuals


class ResidualVAE:
    """The quantiser; with a `checkpoint`, training that was cut off goes on from there, to the same result."""

    def __init__(self, levels: int, codebook: int, seed: int, recipe: RqvaeRecipe, checkpoint: Path | None) -> None:
        self.levels, self.codebook, self.seed, self.recipe = levels, codebook, seed, recipe
        self.checkpoint = checkpoint

    def fit(self, vectors: NDArray[np.float32]) -> Quantization:
        """Train, then quantise. Raises TrainingError if the loss is not finite."""
        with one_thread(), torch.random.fork_rng():
            torch.manual_seed(self.seed)
            return _Training(self, vectors).go()


class _Training:
    def __init__(self, settings: ResidualVAE, vectors: NDArray[np.float32]) -> None:
        self.settings, self.recipe = settings, settings.recipe
        # Unit vectors have components of about 1 / sqrt(D): scaled, losses and their weights mean the same at every D.
        self.scale = float(np.sqrt(np.mean(np.square(vectors, dtype=np.float64))))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.data = torch.from_numpy(vectors / np.float32(self.scale)).to(self.device)  # [N, D]
        self.network = Network(vectors.shape[1], settings.levels, settings.codebook, self.recipe).to(self.device)
        others = [*self.network.encoder.parameters(), *self.network.decoder.parameters()]
        self.optimizer = torch.optim.Adam(
            [  # Decay would draw codes to zero that nobody chooses, and the chosen ones off their items.
                {"params": others, "weight_decay": self.recipe.weight_decay},
                {"params": list(self.network.codebooks), "weight_decay": 0.0},
            ],
            lr=self.recipe.learning_rate,
        )
        self.random = np.random.default_rng(settings.seed)
        self.epochs: list[dict[str, float]] = []

    def go(self) -> Quantization:
        if not self._resume():
            self._start_codebooks()
        saved = time.monotonic()
        with progress() as bars:
            bar = bars.add_task("rqvae", total=self.recipe.epochs, completed=len(self.epochs))
            while len(self.epochs) < self.recipe.epochs:
                row = self._one_epoch()
                self.epochs.append(row)
                bars.update(
                    bar, completed=len(self.epochs), description=f"rqvae reconstruction {row['reconstruction']:.4f}"
                )
                if time.monotonic() - saved > SAVE_EVERY:
                    self._save()
                    saved = time.monotonic()
        network = self.network.cpu().eval()
        books = [book.detach().numpy().copy() for book in network.codebooks]
        with torch.no_grad():
            latents = network.encoder(self.data.cpu()).numpy()

        def decode(summed: NDArray[np.float32]) -> NDArray[np.float32]:
            with one_thread(), torch.no_grad():
                decoded: NDArray[np.float32] = network.decoder(torch.from_numpy(summed)).numpy() * self.scale
            return decoded

        return Quantization(assign(latents, books), books, latents, decode, self.epochs)

    def _start_codebooks(self) -> None:
        """K-means of what the untrained encoder makes of (a sample of) the items."""
        wanted = START_ROWS_PER_CODE * self.settings.codebook
        rows = np.sort(self.random.permutation(len(self.data))[:wanted])
        with torch.no_grad():
            latents = self.network.encoder(self.data[torch.from_numpy(rows)]).cpu().numpy()
            spread = float(latents.std())
            start = ResidualKMeans(self.settings.levels, self.settings.codebook, START_ITERATIONS, self.settings.seed)
            for parameter, book in zip(self.network.codebooks, start.fit(latents).codebooks, strict=True):
                # Fewer distinct items than codes: the spare ones lie about.
                spare = self.random.normal(0, spread, (len(parameter) - len(book), book.shape[1]))
                parameter.copy_(torch.from_numpy(np.concatenate([book, spare.astype(np.float32)])))

    def _one_epoch(self) -> dict[str, float]:
        order = torch.from_numpy(self.random.permutation(len(self.data)))
        used = torch.zeros(self.settings.levels, self.settings.codebook, dtype=torch.bool, device=self.device)
        sums = np.zeros(2)
        residuals = torch.empty(self.settings.levels, 0, self.recipe.latent)
        for rows in order.split(self.recipe.batch):
            x = self.data[rows]
            rebuilt, quantization, codes, left = self.network(x)
            residuals = left if left.shape[1] >= residuals.shape[1] else residuals  # the last batch may be of one item
            reconstruction = F.mse_loss(rebuilt, x)
            loss = self.recipe.reconstruction * reconstruction + quantization
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"rqvae: the loss is {loss.item()} in epoch {len(self.epochs) + 1}: lower "
                    "tokenize.rqvae.learning_rate, or use tokenize.quantizer = 'rqkmeans'"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            for level, column in enumerate(codes.T):
                used[level, column] = True
            sums += len(x) * np.array([reconstruction.item(), quantization.item()])
        # Not after the last epoch: nothing would train what was moved.
        moved = self._move_dead_codes(used, residuals) if len(self.epochs) + 1 < self.recipe.epochs else 0
        reconstruction_mean, quantization_mean = (sums / len(self.data)).tolist()
        return {
            "epoch": len(self.epochs) + 1,
            "reconstruction": reconstruction_mean,
            "quantization": quantization_mean,
            "moved": moved,
        }

    @torch.no_grad()
    def _move_dead_codes(self, used: Tensor, residuals: Tensor) -> int:
        """Move codes that were not chosen in an epoch onto residuals [L, B, d] of its last whole batch."""
        moved = 0
        for level, book in enumerate(self.network.codebooks):
            dead = np.flatnonzero(~used[level].cpu().numpy())
            dead = dead[: residuals.shape[1]]
            if not len(dead):
                continue
            picked = self.random.choice(residuals.shape[1], len(dead), replace=False)
            book[torch.from_numpy(dead)] = residuals[level, torch.from_numpy(picked)]
            for moment in ("exp_avg", "exp_avg_sq"):  # of the code's former place
                self.optimizer.state[book][moment][torch.from_numpy(dead)] = 0.0
            moved += len(dead)
        return moved

    def _save(self) -> None:
        if self.settings.checkpoint is None:
            return
        save_tensors(
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": self.random.bit_generator.state,
                "epochs": self.epochs,
            },
            self.settings.checkpoint,
        )

    def _resume(self) -> bool:
        path = self.settings.checkpoint
        if path is None or not path.is_file():
            return False
        kept: dict[str, Any] = load_tensors(path)
        self.network.load_state_dict(kept["network"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.random.bit_generator.state = kept["random"]
        self.epochs = kept["epochs"]
        console.print(f"  going on after epoch {len(self.epochs)}")
        return True


def _mlp(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
