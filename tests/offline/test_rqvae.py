from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from offline import rqvae as module
from offline.errors import StageError, TrainingError
from offline.quantize import Quantization, assign, collisions, make_unique
from offline.recipe import RqvaeRecipe
from offline.rqvae import Network, ResidualVAE
from offline.usage import check_collapse
from tests.offline.test_quantize import faiss_codes

RECIPE = RqvaeRecipe(hidden=[32], latent=8, batch=64, epochs=60, learning_rate=3e-3)


def grouped(items: int = 240, width: int = 16, seed: int = 0) -> NDArray[np.float32]:
    """Unit vectors about twelve centres."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(12, width))[random.integers(0, 12, items)] + 0.3 * random.normal(size=(items, width))
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def fit(vectors: NDArray[np.float32], checkpoint: Path | None = None, seed: int = 7, **changes: Any) -> Quantization:
    recipe = RECIPE.model_copy(update=changes)
    return ResidualVAE(levels=3, codebook=16, seed=seed, recipe=recipe, checkpoint=checkpoint).fit(vectors)


def error(found: Quantization, vectors: NDArray[np.float32]) -> float:
    return float(np.mean((vectors - found.rebuilt(found.codes)) ** 2) / np.mean(vectors**2))


@pytest.fixture(scope="module")
def trained() -> Quantization:
    return fit(grouped())


def test_codes_point_into_codebooks_of_the_latent_space(trained: Quantization) -> None:
    assert trained.codes.shape == (240, 3)
    assert trained.codes.dtype == np.int64
    assert [book.shape for book in trained.codebooks] == [(16, 8)] * 3
    assert all(book.dtype == np.float32 for book in trained.codebooks)
    assert trained.latents.shape == (240, 8)
    assert trained.rebuilt(trained.codes).shape == (240, 16)
    np.testing.assert_array_equal(trained.codes, assign(trained.latents, trained.codebooks))


def test_training_rebuilds_embeddings_better_and_says_how_it_went(trained: Quantization) -> None:
    vectors = grouped()
    assert [row["epoch"] for row in trained.epochs] == list(range(1, 61))
    assert trained.epochs[-1]["reconstruction"] < 0.5 * trained.epochs[0]["reconstruction"]
    # What is logged is the error as a share of the vectors' square, which the codes then have.
    assert error(trained, vectors) == pytest.approx(trained.epochs[-1]["reconstruction"], rel=0.2)
    assert error(fit(vectors, epochs=1), vectors) > 1.5 * error(trained, vectors)


def test_the_scale_of_the_embeddings_changes_nothing(trained: Quantization) -> None:
    scaled = fit(8 * grouped())  # by a power of two, so that no rounding differs
    np.testing.assert_array_equal(scaled.codes, trained.codes)
    np.testing.assert_allclose(scaled.rebuilt(scaled.codes), 8 * trained.rebuilt(trained.codes), rtol=1e-6)


def test_codes_made_unique_stay_near_in_the_latent_space() -> None:
    vectors = np.repeat(grouped(60), 4, axis=0)  # each item four times
    found = fit(vectors, epochs=20)
    assert collisions(found.codes) >= 180
    codes = make_unique(found, 16)
    assert collisions(codes) == 0
    np.testing.assert_array_equal(codes[:, 0], found.codes[:, 0])
    moved = np.mean((vectors - found.rebuilt(codes)) ** 2)
    random = np.random.default_rng(0).permutation(codes)
    assert moved < 0.5 * np.mean((vectors - found.rebuilt(random)) ** 2)


def test_the_quantisation_step_is_that_of_faiss_given_the_same_codebooks(trained: Quantization) -> None:
    network = Network(16, 3, 16, RECIPE)
    with torch.no_grad():
        for parameter, book in zip(network.codebooks, trained.codebooks, strict=True):
            parameter.copy_(torch.from_numpy(book))
    codes, total, residuals, _ = network.quantize(torch.from_numpy(trained.latents))
    theirs = faiss_codes(trained.latents, trained.codebooks)
    np.testing.assert_array_equal(codes.numpy(), theirs)
    np.testing.assert_array_equal(trained.codes, theirs)
    rebuilt = sum(book[column] for book, column in zip(trained.codebooks, theirs.T, strict=True))
    np.testing.assert_allclose(total.detach().numpy(), rebuilt, atol=1e-5)
    np.testing.assert_allclose(residuals[0].numpy(), trained.latents)
    np.testing.assert_allclose(residuals[1].numpy(), trained.latents - trained.codebooks[0][theirs[:, 0]], atol=1e-5)


def test_the_gradient_passes_the_quantisation_straight_through() -> None:
    torch.manual_seed(0)
    network = Network(6, 2, 4, RqvaeRecipe(hidden=[5], latent=3, commitment=0.25))
    for book in network.codebooks:
        torch.nn.init.normal_(book)
    latent = torch.randn(7, 3, requires_grad=True)
    _, total, _, loss = network.quantize(latent)
    passed = latent + (total - latent).detach()
    torch.testing.assert_close(passed, total)
    passed.sum().backward(retain_graph=True)
    torch.testing.assert_close(latent.grad, torch.ones_like(latent))
    latent.grad = None
    loss.backward()
    # Of the loss only the commitment reaches the latent vector, from every level.
    codes = network.quantize(latent)[0]
    first = latent.detach() - network.codebooks[0][codes[:, 0]]
    second = first - network.codebooks[1][codes[:, 1]]
    torch.testing.assert_close(latent.grad, (0.25 * 2 * (first + second) / latent.numel()).detach())
    # And each code is drawn to what its own level was given, not to what later levels make of the rest.
    for level, (given, code) in enumerate(zip((latent.detach(), first), codes.T, strict=True)):
        book = network.codebooks[level]
        drawn = torch.zeros_like(book).index_add(0, code, (book[code] - given).detach())
        torch.testing.assert_close(book.grad, (2 * drawn / latent.numel()).detach())


def test_codebooks_start_as_k_means_of_the_latent_vectors() -> None:
    vectors = grouped()
    training = module._Training(ResidualVAE(3, 16, 7, RECIPE, None), vectors)
    training._start_codebooks()
    with torch.no_grad():
        latents = training.network.encoder(training.data)
        codes, total, _, _ = training.network.quantize(latents)
    assert [len(np.unique(column)) for column in codes.numpy().T] == [16] * 3
    assert (latents - total).square().mean() < 0.2 * latents.var()


def test_a_code_that_nobody_chooses_is_moved_to_where_items_are() -> None:
    training = module._Training(ResidualVAE(3, 16, 7, RECIPE, None), grouped())
    training._start_codebooks()
    with torch.no_grad():
        training.network.codebooks[1][5:9] = 1e4  # out of reach
    row = training._one_epoch()
    assert row["moved"] >= 4
    assert training.network.codebooks[1].abs().max() < 100
    found = training.go()
    assert len(np.unique(found.codes[:, 1])) >= 14


def test_a_code_that_was_moved_begins_anew() -> None:
    """Or the step that it was about to take would lead away from where it is now."""
    training = module._Training(ResidualVAE(3, 16, 7, RECIPE, None), grouped())
    training._start_codebooks()
    training._one_epoch()
    book = training.network.codebooks[0]
    assert training.optimizer.state[book]["exp_avg"][5:9].any(1).all()
    with torch.no_grad():
        book[5:9] = 1e4  # out of reach
    training._one_epoch()
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not training.optimizer.state[book][moment][5:9].any()


def test_no_code_is_moved_after_the_last_epoch() -> None:
    """Nothing would train it."""
    moved = [row["moved"] for row in fit(grouped(9), epochs=3).epochs]  # more codes than items
    assert moved[0] > 0
    assert moved[-1] == 0


def test_decay_draws_the_network_s_weights_to_zero_and_no_code() -> None:
    """A code that nobody chooses would drift off, and a chosen one off its items."""

    def after(decay: float) -> tuple[float, torch.Tensor]:
        recipe = RECIPE.model_copy(update={"weight_decay": decay, "epochs": 1})  # after which no code is moved
        training = module._Training(ResidualVAE(3, 16, 7, recipe, None), grouped())
        training._start_codebooks()
        with torch.no_grad():
            training.network.codebooks[0][5:9] = 1e4  # out of reach
        training._one_epoch()
        codes = training.network.codebooks[0][5:9].detach()
        return sum(float(weights.detach().square().sum()) for weights in training.network.encoder.parameters()), codes

    torch.manual_seed(0)
    usual, _ = after(0.0)
    torch.manual_seed(0)
    decayed, codes = after(1.0)
    assert decayed < usual
    assert (codes == 1e4).all()


def test_what_rebuilding_counts_for_is_the_recipes() -> None:
    nothing, usual, much = (fit(grouped(), epochs=10, reconstruction=weight).epochs[-1] for weight in (0, 1, 10))
    assert nothing["reconstruction"] > usual["reconstruction"] > much["reconstruction"]


def test_dead_codes_are_moved_though_the_last_batch_is_of_one_item() -> None:
    vectors = grouped(RECIPE.batch * 3 + 1)
    training = module._Training(ResidualVAE(3, 16, 7, RECIPE, None), vectors)
    training._start_codebooks()
    with torch.no_grad():
        for book in training.network.codebooks:
            book[4:] = 1e3  # where no item is
    assert training._one_epoch()["moved"] == 3 * 12
    for book in training.network.codebooks:  # each to an item of its own
        assert len(np.unique(book.detach().numpy(), axis=0)) == 16


def test_more_codes_than_items() -> None:
    vectors = grouped(9)
    found = fit(vectors, epochs=30)
    assert collisions(make_unique(found, 16)) == 0


def test_a_single_item() -> None:
    found = fit(grouped(1), epochs=2)
    assert make_unique(found, 16).shape == (1, 3)


def test_the_seed_decides(trained: Quantization) -> None:
    again, other = fit(grouped()), fit(grouped(), seed=8)
    np.testing.assert_array_equal(again.codes, trained.codes)
    assert again.epochs == trained.epochs
    assert (other.codes != trained.codes).any()


def test_the_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(grouped(30), epochs=2)
    torch.testing.assert_close(torch.rand(2), expected)


def test_training_that_was_cut_off_goes_on_to_the_same_result(
    trained: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "rqvae.pt"
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    real = module._Training._one_epoch

    def cut(self: Any) -> dict[str, float]:
        if len(self.epochs) == 25:
            raise KeyboardInterrupt
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(module._Training, "_one_epoch", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(grouped(), checkpoint)
    assert {path.name for path in tmp_path.iterdir()} == {"rqvae.pt"}
    found = fit(grouped(), checkpoint)
    np.testing.assert_array_equal(found.codes, trained.codes)
    assert found.epochs == trained.epochs


def test_a_loss_that_is_not_finite_ends_training() -> None:
    reason = r"rqvae: the loss is (nan|inf) in epoch \d: lower tokenize\.rqvae\.learning_rate, or use"
    with pytest.raises(TrainingError, match=reason):
        fit(grouped(), learning_rate=1e25)


def test_a_codebook_that_collapses_is_an_error() -> None:
    found = fit(grouped(), epochs=2)
    collapsed = Quantization(found.codes * np.array([1, 0, 1]), found.codebooks, found.latents, found.decode)
    check_collapse(found, grouped(), 16)
    with pytest.raises(
        StageError, match=r"level 2 of the semantic IDs has collapsed: 240 items use 1 of 16 codes\. Lo"
    ):
        check_collapse(collapsed, grouped(), 16)
