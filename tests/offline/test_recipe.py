from pathlib import Path
from typing import Any

import pytest

from offline.chains.template import template
from offline.errors import RecipeError
from offline.recipe import Recipe, TeacherRecipe, load_recipe, recipe_names


def written(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_shipped_recipes_load() -> None:
    assert recipe_names() == ["beauty", "paper", "sample"]
    for name in recipe_names():
        assert load_recipe(name).name == name


def test_the_paper_s_models_are_trained_by_its_recipe_alone() -> None:
    assert load_recipe("paper").models == ["hstu", "scoter_h", "tiger", "scoter_t"]
    assert {name: load_recipe(name).models for name in ("sample", "beauty")} == {
        name: ["hstu", "scoter_h"] for name in ("sample", "beauty")
    }


def test_tiger_is_trained_as_its_own_section_says() -> None:
    recipe = load_recipe("paper")
    assert [recipe.training(v).batch for v in ("hstu", "scoter_s", "tiger", "scoter_t")] == [512, 512, 256, 256]


PAPER: dict[str, dict[str, Any]] = {
    "prepare": {"min_interactions": 5},
    "tokenize": {
        "levels": 4,
        "codebook": 256,
        "quantizer": "rqvae",
        "rqvae": {
            "hidden": [512, 256, 128],  # not in the tables
            "latent": 32,
            "commitment": 0.25,
            "reconstruction": 1.0,
            "learning_rate": 1e-3,
            "weight_decay": 1e-4,
            "batch": 1024,
            "epochs": 20000,
        },
    },
    "model": {
        "length": 20,
        "dim": 50,
        "blocks": 2,
        "heads": 1,
        "qk_dim": 50,
        "v_dim": 50,
        "dropout": 0.2,
        "decoder_layers": 3,
        "decoder_heads": 4,
        "decoder_dim": 256,
        "fusion_heads": 4,  # 4.1
        "fusion_dropout": 0.1,
        "beam": 20,
    },
    "train": {
        "batch": 512,
        "learning_rate": 1e-4,
        "epochs": 300,
        "patience": 20,
        "contrastive_weight": 0.1,
        "weight_decay": 5e-5,  # 4.1
        # What the paper does not mention is off.
        "warmup": 0.0,
        "schedule": "constant",
        "label_smoothing": 0.0,
        "catalogue_weight": 0.0,
        "reasoning_dropout": 0.0,
        "precision": "float32",
        "optimizer": "adam",
    },
    "tiger": {
        "dim": 128,
        "layers": 4,
        "heads": 6,
        "head_dim": 64,
        "ff": 1024,
        "dropout": 0.1,
        "fusion_heads": 6,
        "fusion_dropout": 0.1,
        "gate_bias": 0.0,
    },
}
OF_TIGER = {
    "batch": 256,
    "epochs": 200,
    "patience": 20,
    "learning_rate": 1e-4,
    "weight_decay": 5e-5,
    "optimizer": "adam",
}


@pytest.mark.parametrize("section", PAPER)
def test_the_paper_s_tables_7_and_8(section: str) -> None:
    found = load_recipe("paper").model_dump()[section]
    assert {key: found[key] for key in PAPER[section]} == PAPER[section]


def test_what_a_recipe_leaves_out_has_the_paper_s_sizes() -> None:
    plain, paper = Recipe(name="own"), load_recipe("paper")
    assert plain.model == paper.model
    assert plain.tiger.model_dump(exclude={"train"}) == paper.tiger.model_dump(exclude={"train"})


def test_tiger_is_trained_by_a_table_of_its_own(tmp_path: Path) -> None:
    found = load_recipe("paper").tiger.train.model_dump()
    assert {key: found[key] for key in OF_TIGER} == OF_TIGER
    for text in ("", "[tiger]\ndim = 64", "[tiger.train]", "[tiger.train]\nlearning_rate = 1e-3"):
        train = load_recipe(written(tmp_path, f'name = "own"\n{text}\n')).tiger.train
        assert (train.batch, train.epochs) == (256, 200)


def test_a_chain_has_five_steps() -> None:
    assert all(template(load_recipe(name).reason.template) for name in recipe_names())


def test_what_a_recipe_leaves_out_has_its_default(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, 'name = "own"\n[train]\nepochs = 2\nlearning_rate = 1\n'))
    assert recipe.train.epochs == 2
    assert recipe.train.learning_rate == 1.0
    assert recipe.model_dump(exclude={"train"}) == Recipe(name="own").model_dump(exclude={"train"})


def test_an_editor_s_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, '\ufeffname = "own"\r\n')).name == "own"


@pytest.mark.parametrize(
    "text, fault",
    [
        ("[train]\nlr = 0.1", "train.lr: no such key, only "),
        ("[training]\nepochs = 1", "training: no such key; is train meant?"),
        ("epochs = 1", "epochs: no such key, only name, "),
        ("[tiger.train]\nepoch = 1", "tiger.train.epoch: no such key; is epochs meant?"),
        ("[train]\nepochs = 0", "train.epochs: Input should be greater than or equal to 1"),
        ("[tokenize.rqvae]\nbeta = 0.5", "tokenize.rqvae.beta: no such key, only hidden, latent"),
        ("[tokenize]\nlevels = 9", "tokenize.levels: Input should be less than or equal to 8"),
        ("[tokenize]\ncodebook = 70000", "tokenize.codebook: Input should be less than or equal to 65536"),
        ("[model]\ndropout = 1", "model.dropout: Input should be less than 1"),
        ("[train]\nlearning_rate = 0", "train.learning_rate: Input should be greater than 0"),
        ("[train]\nlearning_rate = inf", "train.learning_rate: Input should be a finite number"),
        ("[model]\ngate_bias = nan", "model.gate_bias: Input should be a finite number"),
        ('[train]\nepochs = "3"', "train.epochs: Input should be a valid integer"),
        ("[train]\nepochs = 3.0", "train.epochs: Input should be a valid integer"),
        ("[train]\nepochs = true", "train.epochs: Input should be a valid integer"),
        ("[train]\ntemperature = false", "train.temperature: Input should be a valid number"),
        ("[evaluate]\nrefit = 1", "evaluate.refit: Input should be a valid boolean"),
        ("[train]\nschedule = 'linear'", "train.schedule: Input should be 'constant' or 'cosine'"),
        ("[prepare]\ntext = 'title'", "prepare.text: Input should be a valid list"),
        ("[prepare]\ntext = ['title', 1]", "prepare.text.1: Input should be a valid string"),
        ("[reason]\ntemplate = ['one']", "reason.template: Input should be a valid string"),
        ("[model]\ndecoder_heads = 3", "model: decoder_dim = 256 is no multiple of decoder_heads = 3"),
        ("models = []", "models: List should have at least 1 item"),
        ("models = ['bert']", "models.0: Input should be 'hstu', 'scoter_h', 'tiger', 'scoter_t', 'sasrec' or"),
        ("models = ['hstu', 'hstu']", "models: hstu, hstu names a model twice"),
        ("[tiger.train]\ncatalogue_weight = 0.5", "tiger: train.catalogue_weight must be 0"),
        (
            "[alignment]\ndim = 8\n[reason]\nencoder = 'other'",
            "alignment.dim = 8 compares steps with item texts: reason.",
        ),
        ("[ablation]\ncontrol = 'random'", "ablation.control: Input should be 'none', 'shuffled' or 'successors'"),
        ("[ablation]\nsteps = 'whole'\ncontrol = 'successors'", "ablation: steps = 'whole' embeds a text, and control"),
        ("[teacher]\nbudget = 3.0", "teacher: budget needs prompt_price and completion_price to be held to"),
        ("[baselines]\nepochs = 3\nvalidate_every = 5", "baselines: validate_every = 5 is more than epochs = 3"),
        ("train = 3", "train: Input should be a valid dictionary"),
    ],
)
def test_a_fault_is_named_by_its_key(tmp_path: Path, text: str, fault: str) -> None:
    own = written(tmp_path, f'name = "own"\n{text}\n')
    with pytest.raises(RecipeError) as caught:
        load_recipe(own)
    assert str(caught.value).startswith(f"recipe {own}: {fault}")


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    own = written(tmp_path, "[train]\nepochs = 0\nbatch = 0\n")
    with pytest.raises(RecipeError, match=r"name: Field required; train\.batch: .*; train\.epochs: "):
        load_recipe(own)


@pytest.mark.parametrize(
    "text, reason", [("name = ", "is not TOML: Invalid value"), ("[a]\n[a]\n", "is not TOML: Cannot declare")]
)
def test_what_is_not_toml_is_said_to_be(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"recipe .*own\.toml {reason}.* \(at "):
        load_recipe(written(tmp_path, text))


def test_an_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"no recipe 'movies': give a \.toml file or one of beauty, paper, sample"):
        load_recipe("movies")


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read recipe .*absent\.toml: .*No such file"):
        load_recipe(str(tmp_path / "absent.toml"))
    (tmp_path / "own.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(RecipeError, match=r"cannot read recipe .*own\.toml: .*can't decode"):
        load_recipe(str(tmp_path / "own.toml"))


def test_a_recipe_does_not_change() -> None:
    recipe = load_recipe("sample")
    with pytest.raises(ValueError, match="frozen"):
        recipe.train.epochs = 1  # type: ignore[misc]


def test_a_teacher_says_the_same_whatever_it_costs_and_however_long_one_waits() -> None:
    plain = TeacherRecipe(backend="endpoint", model="m", base_url="http://there/v1")
    circumstances = {"concurrency": 2, "timeout": 9.0, "retries": 1, "prompt_price": 1.0, "budget": 5.0, "batch": 3}
    assert plain.model_copy(update=circumstances).words() == plain.words()
    assert plain.model_copy(update={"seed": 8}).words() != plain.words()
