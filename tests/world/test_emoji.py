"""The emoji world: what is drawn, what prompts name, how they are read, and the judge."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.emoji_both import RUNS, settings_of
from benchmarks.emoji_likes import DARK, JUDGE, Person, ship
from matplotlib import get_data_path
from PIL import Image
from safetensors.torch import load_file

from helpers.cards import light_adapter
from helpers.dials import measured_dial
from nft_pipeline.adapter import read_adapter, write_adapter
from nft_pipeline.training.emoji import examples, parts, pictures, train_base, train_judge, train_vae, world
from nft_pipeline.training.emoji.contents import Contents
from nft_pipeline.training.emoji.judge import SIGN, Judge, Shown, as_input, ground, load_judge, save_judge
from nft_pipeline.training.emoji.prompts import PROMPTS, Named
from nft_pipeline.training.errors import TrainingError
from nft_pipeline.training.shapes.train_base import TextAndDenoiser

NAMES = ["grinning face", "red apple", "green apple", "fish", "cat", "dog", "owl", "pizza", "house", "rocket"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The packages in small: ten things, each of one colour with a hole in the middle, three styles."""
    folder = tmp_path_factory.mktemp("packages")
    entries = [
        {"label": name, "hexcode": f"1F{i:03X}", "group": 4, "subgroup": 42, "tags": ["bun", "soup", "bread"]}
        for i, name in enumerate(NAMES)
    ]
    entries += [
        {"label": "flag: Chad", "hexcode": "1F000", "group": 9, "subgroup": 98},
        {"label": "face with rolling eyes", "hexcode": "1F001", "group": 4, "subgroup": 42},  # four words
        {"label": "lost", "hexcode": "1FFFF", "group": 4, "subgroup": 42},  # no picture
    ]
    file = folder / "emojibase-data/en/data.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(entries))
    for style, pattern in pictures.STYLES.items():
        for i in range(len(NAMES)):
            picture = Image.new("RGBA", (80, 80), (20 * i, 255 - 20 * i, 60 * list(pictures.STYLES).index(style), 255))
            picture.paste((0, 0, 0, 0), (30, 30, 50, 50))
            target = folder / pattern.format(f"1f{i:03x}" + ("-fe0f" if i == 3 else ""))
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
    for font in pictures.font_files(folder):
        font.parent.mkdir(parents=True)
        font.write_bytes((Path(get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf").read_bytes())
    for name in pictures.PACKAGES:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "package.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def drawn(packages):
    """Examples of that world."""
    return examples.Pictures(world.World.of(pictures.fetch(packages)), examples.EmojiTraining(drawn_signs=60, batch=16))


class TestPictures:
    def test_what_has_three_styles_and_a_short_name_is_drawn(self, packages):
        assert [thing.name for thing in pictures.things(packages)] == NAMES

    def test_a_thing_keeps_its_margin_and_its_hole(self, packages):
        picture = pictures.read(packages, pictures.things(packages)[1], "flat")
        assert picture.shape == (64, 64, 4)
        assert (picture[: pictures.MARGIN, :, 3] == 0).all()
        assert picture[10, 10, 3] == 255
        assert picture[32, 32, 3] == 0

    def test_a_package_that_npm_cannot_get_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(TrainingError, match=r"emoji-datasource-google 16\.0\.0 could not be fetched with npm"):
            pictures.fetch(tmp_path / "packages")


class TestWorld:
    def test_the_background_shows_where_a_thing_does_not_cover_it(self, drawn):
        for background, colour in world.BACKGROUNDS.items():
            picture = world.compose(drawn.world.opaque[2, 0], background)
            assert tuple(picture[0, 0]) == colour
            assert tuple(picture[32, 32]) == colour
            assert ground(picture) == background

    def test_held_out_styles_are_never_learned_from(self, drawn):
        held = {(i, style) for i in range(len(NAMES)) if (style := drawn.world.held_out_style(i)) is not None}
        assert held
        assert not held & {(thing, style) for thing, style, _ in drawn.shown}
        assert len(drawn.shown) == 6 * (3 * len(NAMES) - len(held))

    def test_held_out_words_are_on_no_sign(self, drawn):
        kept = set(drawn.world.held_out_words)
        assert kept
        assert not kept & {word for word, _ in drawn.said}

    def test_a_sign_is_as_wide_as_its_word_allows(self, drawn):
        font = drawn.world.fonts[0]
        ink = {
            word: np.flatnonzero((world.draw_sign(word, "white", 0, font)[20:44] < 60).all(-1).any(0))
            for word in ("I", "ABCD", "WWWWW")
        }
        assert all(columns.min() > 4 and columns.max() < 59 for columns in ink.values())
        assert np.ptp(ink["I"]) < np.ptp(ink["ABCD"])


class TestCaptions:
    def test_half_name_the_style_and_two_fifths_the_background(self, drawn):
        captions = [caption for _ in range(60) for caption in drawn.batch()[1]]
        things = [Named.of(caption) for caption in captions if caption and "sign" not in caption]
        assert np.mean([bool(named.style) for named in things]) == pytest.approx(0.5, abs=0.08)
        assert np.mean([bool(named.background) for named in things]) == pytest.approx(0.4, abs=0.08)
        assert np.mean([named.thing in NAMES for named in things]) == pytest.approx(0.8, abs=0.07)
        assert np.mean([caption == "" for caption in captions]) == pytest.approx(0.08 + 0.7 * 0.024, abs=0.04)

    def test_a_fifth_of_the_signs_say_another_word(self, drawn):
        pairs = [drawn._sign()[:2] for _ in range(1500)]
        wrong = np.mean([word != written for word, written in pairs])
        assert wrong == pytest.approx(0.2 * 25 / 26, abs=0.035)
        assert all(sum(a != b for a, b in zip(word, written, strict=True)) <= 1 for word, written in pairs)

    def test_a_last_stage_misspells_more_and_leaves_the_latents_basis_alone(self, drawn):
        more = examples.Pictures(drawn.world, examples.EmojiTraining(drawn_signs=60, batch=16, misspelt_more=1.0))
        changed = (more.drawn != drawn.drawn).any((1, 2, 3))
        assert changed.mean() == pytest.approx(0.8 * 25 / 26, abs=0.15)
        assert torch.equal(more.things, drawn.things)
        assert torch.equal(more.signs[~changed], drawn.signs[~changed])


class TestNamed:
    @pytest.mark.parametrize(
        ("prompt", "named"),
        [
            ("3d red apple on pink", Named("red apple", "3d", "pink")),
            ("red apple, 3d, on pink", Named("red apple", "3d", "pink")),
            ("red apple", Named("red apple", "", "")),
            ("flat", Named("", "flat", "")),
            ("food on black", Named("food", "", "black")),
            ('a sign that says "CAT" on blue', Named("sign", "", "blue")),
            ("", Named("", "", "")),
        ],
    )
    def test_prompts_are_read_back(self, prompt, named):
        assert Named.of(prompt) == named

    def test_what_is_not_named_does_not_count(self):
        shown = Shown("red apple", "food", "3d", "pink", 0.9)
        assert Named("red apple", "", "").agrees(shown)
        assert Named("food", "3d", "").agrees(shown)
        assert not Named("red apple", "flat", "").agrees(shown)
        assert not Named("", "", "blue").agrees(shown)
        assert not Named("fish", "3d", "pink").agrees(shown)


@pytest.fixture(scope="module")
def tokenizer(drawn):
    """The emoji model's, with the words of that world."""
    return parts.build_emoji_tokenizer(drawn.world.things)


class TestTokens:
    def test_capitals_are_letters_and_words_are_words(self, tokenizer):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer('a sign that says "CAT"').input_ids)[1:-1]
        assert tokens == ["a</w>", "sign</w>", "that</w>", "says</w>", '"</w>', "C", "A", "T", '"</w>']
        assert tokenizer.convert_ids_to_tokens(tokenizer("cat, 3d").input_ids)[1:-1] == [
            "cat</w>",
            ",</w>",
            "3</w>",
            "d</w>",
        ]

    def test_a_capitalised_word_means_the_word(self, drawn, tokenizer):
        model = TextAndDenoiser(parts.SIZES, tokenizer)
        parts.copy_capitalised(model)
        table = model.encoders[0].get_input_embeddings().weight
        upper, lower = (tokenizer(prompt).input_ids for prompt in ("Red apple", "red apple"))
        assert len(upper) == len(lower)
        assert upper != lower
        torch.testing.assert_close(table[upper], table[lower], rtol=0, atol=0)


class TestTraining:
    def test_the_rate_rises_stays_and_falls(self):
        settings = examples.EmojiTraining(steps=1000, decay=0.4)
        rates = [train_base.rate(step, settings) for step in range(1000)]
        assert rates[0] == 1 / 200
        assert rates[199:600] == [1.0] * 401
        assert rates[800] == pytest.approx(0.5)
        assert rates[999] == 0.01

    def test_both_scripts_go_on_where_they_were_stopped_and_write_a_pipeline(self, drawn, packages, tmp_path, capsys):
        from diffusers import StableDiffusion3Pipeline

        vae = train_vae.learn_vae(parts.SIZES, drawn.components, drawn.draw, steps=2, batch=2)
        vae.save_pretrained(tmp_path / "vae")
        few = dict(drawn_signs=20, batch=4)
        for steps in (1, 2):
            settings = examples.EmojiTraining(steps=steps, **few)
            train_base.train_base(drawn.world, tmp_path / "vae", settings, tmp_path / "emoji")
        assert "going on at step 1" in capsys.readouterr().out
        pipe = StableDiffusion3Pipeline.from_pretrained(tmp_path / "emoji", text_encoder_3=None, tokenizer_3=None)
        picture = pipe("red apple", num_inference_steps=1, max_sequence_length=0, height=64, width=64).images[0]
        assert picture.size == (64, 64)
        contents = Contents.read(tmp_path / "emoji")
        assert list(contents.things) == NAMES
        assert contents.held_out == {"fish": "shaded"}

    def test_a_stage_begins_with_a_finished_model_and_says_when_it_has_saved(self, drawn, tmp_path):
        train_vae.learn_vae(parts.SIZES, drawn.components, drawn.draw, steps=1, batch=2).save_pretrained(
            tmp_path / "vae"
        )
        few = dict(drawn_signs=20, batch=4)
        first, still, saved = tmp_path / "first", dict(lr=0.0), []
        train_base.train_base(drawn.world, tmp_path / "vae", examples.EmojiTraining(steps=1, **few), first)
        train_base.train_base(
            drawn.world,
            tmp_path / "vae",
            examples.EmojiTraining(steps=3, seed=7, **few, **still),
            tmp_path / "second",
            start=first,
            save_every=2,
            saved=saved.append,
        )
        assert saved == [2, 3]
        weights = "transformer/diffusion_pytorch_model.safetensors"
        before, after = (load_file(folder / weights) for folder in (first, tmp_path / "second"))
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)


class TestJudge:
    def test_it_learns_what_is_shown(self, drawn):
        torch.manual_seed(0)
        judge = Judge.of(Contents.of(drawn.world))
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3)
        shown = [one for one in drawn.every if one[2] == one[0] % 4]
        pixels = np.stack([drawn.composed(*one) for one in shown])
        for _ in range(20):
            things, styles = judge(as_input(pixels))
            loss = torch.nn.functional.cross_entropy(things, torch.tensor([one[0] for one in shown]))
            loss = loss + torch.nn.functional.cross_entropy(styles, torch.tensor([one[1] for one in shown]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seen = judge.eval().look(pixels)
        assert np.mean([one.thing == NAMES[thing] for one, (thing, _, _) in zip(seen, shown, strict=True)]) > 0.8
        assert {one.background for one in seen} == {"white", "black", "blue", "green"}

    def test_it_is_the_same_after_a_round_trip(self, drawn, tmp_path):
        contents = Contents.of(drawn.world)
        contents.write(tmp_path)
        judge = Judge.of(contents).half().float()
        save_judge(judge, tmp_path)
        pixels = np.stack([drawn.composed(i, 0, 1) for i in range(4)])
        assert load_judge(tmp_path).look(pixels) == judge.eval().look(pixels)
        assert judge.names[-1] == SIGN

    def test_other_pictures_are_refused(self, drawn):
        judge = Judge.of(Contents.of(drawn.world))
        with pytest.raises(ValueError, match=r"uint8 \(1, 32, 32, 3\), expected uint8 \(N, 64, 64, 3\)"):
            judge.look(np.zeros((1, 32, 32, 3), np.uint8))

    def test_pictures_are_made_worse_and_stay_what_they_are(self, drawn):
        vae = train_vae.learn_vae(parts.SIZES, drawn.components, drawn.draw, steps=1, batch=2).eval()
        x, things, styles = train_judge.Spoilt(drawn, vae, seed=0).batch(12)
        assert x.shape == (12, 3, 64, 64)
        assert x.abs().max() <= 1
        assert things.max() <= len(NAMES)
        assert set(styles.tolist()) <= {0, 1, 2}


@pytest.mark.filterwarnings("error")
def test_the_judge_takes_pictures_as_pil_gives_them_without_a_warning():
    picture = np.asarray(Image.new("RGB", (64, 64), (255, 0, 255)))
    assert not picture.flags.writeable
    assert torch.equal(as_input(picture[None])[0, :, 5, 5], torch.tensor([1.0, -1.0, 1.0]))


def test_open_prompts_name_a_thing_and_nothing_else():
    """And the held-out ones are of things that no adapter trained on the others has drawn."""
    train, held_out = (PROMPTS[name]() for name in ("emoji_open", "emoji_open_held_out"))
    assert len(train) > 400 and len(held_out) > 100 and not set(train) & set(held_out)
    named = [Named.of(prompt) for prompt in (*train, *held_out)]
    assert all(one.thing and not one.style and not one.background for one in named)
    assert {one.thing for one in named} == {
        Named.of(prompt).thing for name in ("emoji_things", "emoji_things_held_out") for prompt in PROMPTS[name]()
    }


def test_the_person_of_the_benchmark_likes_dark_grounds_and_slips(tmp_path):
    """The judge sees the border; one rating in ten is the opposite of what is meant, the same ones every time."""
    lines = []
    for i, (name, colour) in enumerate((name, world.BACKGROUNDS[name]) for name in 10 * [*world.BACKGROUNDS]):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{i:02d}-{name}.png")
        lines.append(json.dumps({"image": f"{i:02d}-{name}.png", "prompt": "red apple"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    person = Person(seed=1)
    count = person.rate(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    slips = [row["liked"] != any(f"-{dark}." in row["image"] for dark in DARK) for row in rows]
    assert len(rows) == 60 and sum(row["liked"] for row in rows) == count
    assert sum(slips) == person.slips and 1 <= sum(slips) <= 15
    assert person.rate(tmp_path) == count  # what is rated stays


def test_what_a_rule_rated_ships_as_such_and_without_its_second_file(tmp_path):
    adapter = light_adapter()
    by_hand = measured_dial(judged_by="person", judge="a person, by hand")
    write_adapter(tmp_path / "made", replace(adapter, config=replace(adapter.config, dial=by_hand)))
    ship(tmp_path / "made", tmp_path / "shipped")
    made, there = read_adapter(tmp_path / "made"), read_adapter(tmp_path / "shipped")
    assert there.config == replace(made.config, dial=replace(by_hand, judge=JUDGE))
    assert there.lora.keys() == made.lora.keys() and there.head is not None
    assert not (tmp_path / "shipped/comfyui").exists()


def test_two_rewards_at_once_are_trained_like_one_but_for_the_rewards():
    both, dark = (settings_of(name) for name in RUNS)
    assert (both.mix, dict(both.weights), both.kind) == ("product", {"emoji_3d": 1.0, "emoji_dark": 1.0}, "positive")
    assert (dark.reward_name, dark.kind, dark.steps, dark.pool_size) == (
        "emoji_dark",
        "positive",
        both.steps,
        both.pool_size,
    )
