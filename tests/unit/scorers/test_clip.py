"""CLIP by open_clip: a small one that learns from pairs, and any pretrained one by a single setting."""

import dataclasses
import json
import math
from unittest.mock import Mock

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

from tests.helpers import tiny_models
from tests.helpers.malicious_files import Called
from thousandwords.scorers.clip import model as clip
from thousandwords.scorers.clip.hard_negatives import hard_captions
from thousandwords.scorers.clip.model import CLIP, CLIPConfig
from thousandwords.training.config import TrainingConfig

TINY = CLIPConfig(**tiny_models.TINY["scorers"]["clip"])
CAPTIONS = ["a red square", "a blue square", "a red circle", "a blue circle"]
RESNET = {"vision_layers": (1, 1, 1, 1), "vision_width": 4, "vision_patch_size": 32, "vision_heads": 2}


def tiny_scorer(image_size: int = 16, **settings) -> CLIP:
    torch.manual_seed(0)
    return CLIP(dataclasses.replace(TINY, **settings), image_size)


def pretrained(name: object, image_size: int = 64) -> CLIP:
    return CLIP(CLIPConfig(pretrained=str(name)), image_size).eval()


@pytest.fixture
def pretrained_folder(tmp_path):
    """A folder as open_clip publishes it, with a tiny model."""
    torch.manual_seed(1)
    architecture = clip.architecture_from_config(TINY, image_size=24)
    model = open_clip.CLIP(**architecture["model_cfg"])
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    settings = {"model_cfg": architecture["model_cfg"], "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    return tmp_path


def test_the_loss_is_that_of_open_clip():
    scorer, images = tiny_scorer(), torch.rand(4, 3, 16, 16)

    loss, logs = scorer.loss(images, CAPTIONS, step=0, rng=torch.Generator())

    normalized, labels = (images - scorer.mean) / scorer.std, torch.arange(4)
    both = scorer.clip.get_logits(normalized, scorer.tokenizer(CAPTIONS))
    first, second = (torch.nn.functional.cross_entropy(logits, labels) for logits in both)
    torch.testing.assert_close(loss, (first + second) / 2)
    assert set(logs) == {"accuracy", "logit_scale"}
    assert logs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    torch.nn.init.constant_(scorer.clip.logit_scale, 9.0)
    _, logs = scorer.loss(images, CAPTIONS, step=0, rng=torch.Generator())
    assert logs["logit_scale"].item() == pytest.approx(100)  # clamped


def test_hard_captions_are_negatives_of_every_image_and_have_no_image_of_their_own():
    images, captions = torch.eye(3)[:2], torch.eye(3)  # two pairs, and one more caption

    loss = clip.ContrastiveLoss()(images, captions, torch.tensor(1.0))

    per_image = -math.log(math.e / (math.e + 1 + 1))
    per_caption = -math.log(math.e / (math.e + 1))
    assert loss.item() == pytest.approx((per_image + per_caption) / 2)
    assert clip.accuracy(images, captions) == 1


def test_one_setting_adds_hard_captions_to_the_loss():
    scorer, counts = tiny_scorer(hard_captions=2), []
    for module in (scorer.clip.visual, scorer.clip.token_embedding):
        module.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))

    scorer.loss(torch.rand(4, 3, 16, 16), CAPTIONS, step=0, rng=torch.Generator())

    assert counts == [4, 12]  # images, captions


def test_hard_captions_alternate_between_one_word_replaced_all_exchanged_and_two_exchanged():
    captions = ["a red cat on a blue mat", "a red mat on a blue cat", "a blue cat on a red mat"]

    replaced, all_exchanged, two_exchanged = hard_captions(captions, 3, seed=0)[:3]

    assert sum(a != b for a, b in zip(captions[0].split(), replaced.split(), strict=True)) == 1
    assert all_exchanged == "a blue mat on a red cat"
    assert two_exchanged in ("a blue cat on a red mat", "a red mat on a blue cat")


def test_captions_that_share_nothing_are_shuffled():
    caption = "two birds sing at dawn"
    (altered,) = hard_captions([caption], 1, seed=0)
    assert altered != caption and sorted(altered.split()) == sorted(caption.split())
    assert hard_captions(["word", ""], 1, seed=0) == ["word", ""]  # nothing to alter


def test_the_same_seed_gives_the_same_hard_captions():
    assert hard_captions(CAPTIONS, 3, seed=1) == hard_captions(CAPTIONS, 3, seed=1)
    assert hard_captions(CAPTIONS, 3, seed=1) != hard_captions(CAPTIONS, 3, seed=2)


def test_a_small_clip_learns_which_caption_belongs_to_which_image():
    captions = ["a red wall", "a green wall", "a blue wall", "a white wall"]
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    scorer, images = tiny_scorer(), colors.view(4, 3, 1, 1).expand(4, 3, 16, 16)

    _, rows = tiny_models.fit_batch(scorer, TrainingConfig(60, 4, learning_rate=3e-3), (images, captions))

    scores = torch.stack([scorer.score(images, [caption] * 4) for caption in captions])  # (captions, images)
    assert rows[-1]["accuracy"] == 1
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_any_language_has_tokens_and_a_long_caption_is_cut_and_keeps_its_end():
    tokens = tiny_scorer().tokenizer(["a cat", "größer 漢字 😀", "a very " * 20])

    start, end = 49406, 49407
    assert tokens.shape == (3, 20)
    assert tokens[0].tolist() == [start, 320, 2368, end] + [0] * 16
    assert tokens[:, 0].tolist() == [start] * 3 and tokens.amax(dim=1).tolist() == [end] * 3
    assert tokens[2, -1] == end


def test_muon_parameters_are_the_matrices_of_the_transformer_blocks_of_both_towers():
    scorer = tiny_scorer()
    names = {id(weight): name for name, weight in scorer.named_parameters()}

    selected = [names[id(weight)] for weight in scorer.muon_parameters()]

    block = ["attn.in_proj_weight", "attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"]
    towers = ("clip.visual.transformer", "clip.transformer")
    assert selected == [f"{tower}.resblocks.0.{name}" for tower in towers for name in block]
    resnet = tiny_scorer(32, **RESNET)
    selected = {id(weight) for weight in resnet.muon_parameters()}
    names = {name for name, weight in resnet.clip.named_parameters() if id(weight) in selected}
    assert {"visual.conv2.weight", "visual.layer4.0.downsample.0.weight"} <= names
    assert not {"visual.conv1.weight", "token_embedding.weight", "visual.attnpool.c_proj.weight"} & names


@pytest.mark.parametrize("sizes", [{}, RESNET])
def test_the_position_embeddings_of_an_image_tower_can_start_larger(sizes):
    scorer = tiny_scorer(64, vision_position_std=3.0, **sizes)
    visual = scorer.clip.visual
    assert scorer.score(torch.rand(2, 3, 64, 64), ["a cat", "a cat"]).isfinite().all()
    assert 2.5 < getattr(visual, "attnpool", visual).positional_embedding.std() < 3.5


def test_a_pretrained_folder_scores_as_open_clip_does(pretrained_folder):
    name = f"local-dir:{pretrained_folder}"
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)

    score = pretrained(name).score(image[None], ["a red square"])

    reference, preprocess = open_clip.create_model_from_pretrained(name)
    tokens = open_clip.get_tokenizer(name)(["a red square"])
    logits, _ = reference.eval().get_logits(preprocess(to_pil_image(image))[None], tokens)
    assert score.item() == pytest.approx(logits.item() * 0.07, abs=2e-3)  # PIL resizes in whole bytes


def test_a_known_model_takes_its_weights_from_a_file(pretrained_folder, monkeypatch):
    settings = json.loads((pretrained_folder / "open_clip_config.json").read_text())
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", settings["model_cfg"])

    by_file = pretrained(f"tiny:{pretrained_folder}/open_clip_model.safetensors", 24)

    by_folder = pretrained(f"local-dir:{pretrained_folder}", 24)
    assert torch.equal(by_file.embed_captions(CAPTIONS), by_folder.embed_captions(CAPTIONS))


def test_weights_that_would_run_code_are_rejected(pretrained_folder, capsys):
    (pretrained_folder / "open_clip_model.safetensors").unlink()
    weights = {"state_dict": Called(print, "a pickle ran")}
    torch.save(weights, pretrained_folder / "open_clip_pytorch_model.bin")

    with pytest.raises(ValueError, match="would run code as it loads: convert it to safetensors"):
        pretrained(f"local-dir:{pretrained_folder}")
    assert "a pickle ran" not in capsys.readouterr().out


def test_weights_of_another_architecture_are_rejected(pretrained_folder):
    with pytest.raises(
        ValueError, match="belong to another architecture: name the model they were trained as"
    ):
        pretrained(f"ViT-S-32-alt:{pretrained_folder}/open_clip_model.safetensors")


def test_a_quickgelu_tag_of_a_model_without_it_is_rejected_before_any_download_is_used(
    pretrained_folder, monkeypatch
):
    weights = str(pretrained_folder / "open_clip_model.safetensors")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: weights)
    with pytest.raises(ValueError, match="Name the model's -quickgelu variant"):
        pretrained("ViT-B-32:openai")


def test_a_failed_download_says_how_to_do_without(monkeypatch):
    no_network = Mock(side_effect=OSError("no network"))
    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    with pytest.raises(ValueError, match="on a machine with a network and give the file or folder here"):
        pretrained("ViT-B-32:laion2b_s34b_b79k")


def test_a_reduced_vocabulary_splits_rare_words_and_loses_none():
    full, reduced = (tiny_scorer(vocab_size=size) for size in (49_408, 1024))
    caption = "a red square at dusk"

    tokens, reduced_tokens = (scorer.tokenizer([caption])[0] for scorer in (full, reduced))

    assert tokens.tolist()[:7] == [49406, 320, 736, 3999, 536, 19708, 49407]
    used = reduced_tokens[reduced_tokens > 0].tolist()
    assert len(used) > 7 and max(used) == 1023  # the end of a caption is still the highest token
    assert reduced.tokenizer.decode(used[1:-1]).strip() == caption
    assert reduced.clip.token_embedding.weight.shape == (1024, 16)
    assert reduced.score(torch.rand(1, 3, 16, 16), [caption]).isfinite().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("laion2b", "write 'local-dir:FOLDER', 'MODEL:FILE', 'MODEL:TAG'"),
        ("ViT-B-23:openai", "a model that open_clip does not know. Did you mean 'ViT-B-32'?"),
        ("local-dir:nowhere", "but there is no folder nowhere. Write 'local-dir:FOLDER'"),
        ("ViT-B-32:nowhere.safetensors", "but there is no file nowhere.safetensors. Write"),
        (f"ViT-B-32:{__file__}", "test_clip.py' is neither a file that ends in .safetensors,"),
        ("ViT-B-32:nowhere", "nor one of the tags of ViT-B-32: openai, laion400m_e31"),
    ],
)
def test_an_unknown_pretrained_name_says_which_are_known(name, message):
    with pytest.raises(ValueError) as raised:
        pretrained(name)
    assert message in str(raised.value)


def test_images_and_captions_are_checked():
    with pytest.raises(ValueError, match="4 images with 1 captions"):
        tiny_scorer().score(torch.rand(4, 3, 16, 16), ["a cat"])
    with pytest.raises(ValueError, match=r"takes images \(B, 3, H, W\), not \(4, 1, 16, 16\)"):
        tiny_scorer().score(torch.rand(4, 1, 16, 16), CAPTIONS)
