"""Resizing, cropping and augmentation, beside what TensorFlow's operations made of the same pixels."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervla.data import augment as augmentations
from hypervla.data.augment import (
    OCTO,
    OCTO_BASE,
    OPENVLA,
    Augmentation,
    augment,
    draw,
    drawn_by,
    resize,
)

STILL = Augmentation((1.0, 1.0), (1.0, 1.0), brightness=0.0, contrast=(1.0, 1.0), saturation=(1.0, 1.0), hue=0.0)
NAMED = {"OCTO": OCTO, "OCTO_BASE": OCTO_BASE, "OPENVLA": OPENVLA}
# From TensorFlow 2.21 on x86-64: augmentation, the uniform number of its seed, the pixels dlimp's augment_image made.
TENSORFLOW = [
    (
        "OCTO",
        0.23098063468933105,
        "184572b51663a2ad1d5ea3a03282aad1417ec4e03b96b70f4d928f217199c4316db3d22a6bb4ba3e8db3a14e97b2205ca2c1195ba6b82e7d"
        "a59b3d88",
    ),
    (
        "OCTO",
        0.08216607570648193,
        "114c6d9d156b8f7b20609874398ea9c43688c1bd3da2b1164f8863297d99bd277bb7b92d6ba38b4396ac6c5188ac176aa7a91d5b9a913388"
        "a4664078",
    ),
    (
        "OCTO_BASE",
        0.19635701179504395,
        "1649609d1d7094811b5388762f8996b83c8bc3bb399fa11d447966207986ad2d7db8b32a609f933a929d7c45869d1d6da8a51e529d992b84"
        "927d3781",
    ),
    (
        "OPENVLA",
        0.35005688667297363,
        "163f71b31c5494ba19579bbb276d9ed33c75b5e13a83b010468aaa175c8dc22b64a4d02d67abcb377cacc5458cb11a5393bf1c569bc6266b"
        "9cbe357c",
    ),
]
LANCZOS = {
    7: "00518b630074e1222e94d7226bc7b6437ade2c65a23c40848e3b72cc7a1f8ed1006ab9a72f77dc07609ce02277ce9764a7ff1581c4005e"
    "9e9d276ece05538fff1170dcad4696ff3775b87b3f8fc05c64b18f4787d80a68be892992f45a6aadfa1f87e2915893ff3c80cb005bb17c1b85"
    "e7505da0f7117ad8894b85ff2f73c90055ad78197ee441579ad50f74c9764583f1296c",
    4: "7c51576fa6a1b05e717eac63a4597888af5b704e8da3b05e674c979a97666b73bdb775285a71bebf775e4683afa46b59",
}
"""By size: enlarged `pattern(4, 5)`, reduced `pattern(7, 9)`."""
"""`pattern(7, 9)` cropped to its middle 90 %."""


def pattern(height: int, width: int) -> np.ndarray:
    """Pixels that jump up and down."""
    return (np.arange(height * width * 3) * 67 % 256).astype(np.uint8).reshape(height, width, 3)


def decoded(text: str, height: int, width: int) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(height, width, 3)


def noise(height: int = 24, width: int = 20, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def differ(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def fixed(monkeypatch: pytest.MonkeyPatch, **numbers: object) -> None:
    """Augmentation draws these numbers, and nothing else changes."""
    drawn = replace(drawn_by(STILL, 0.5), **numbers)
    monkeypatch.setattr(augmentations, "draw", lambda augmentation, seed: drawn)


@pytest.mark.parametrize(("name", "u", "wanted"), TENSORFLOW)
def test_publishedare_those_of_the_published_pipeline(
    monkeypatch: pytest.MonkeyPatch, name: str, u: float, wanted: str
) -> None:
    monkeypatch.setattr(augmentations, "draw", lambda augmentation, seed: drawn_by(augmentation, u))
    found, published = augment(pattern(4, 5), NAMED[name], 0), decoded(wanted, 4, 5)
    assert differ(found, published) <= 1
    assert (found == published).mean() > 0.95


@pytest.mark.parametrize(("size", "shape"), [(7, (4, 5)), (4, (7, 9))])
def test_resized_publishedare_those_of_the_published_pipeline(size: int, shape: tuple[int, int]) -> None:
    found, published = resize(pattern(*shape), size), decoded(LANCZOS[size], size, size)
    assert differ(found, published) <= 1
    assert (found == published).mean() > 0.95


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    image = noise(20, 20)
    assert resize(image, 20) is image


def test_hard_edges_are_rounded_and_clipped_once() -> None:
    image = np.zeros((60, 60, 3), np.uint8)
    image[::2, 20:40] = 255
    across = np.arange(60)[None] + 0.5 - (np.arange(20)[:, None] + 0.5) * 3
    weights = np.where(np.abs(across) < 9, np.sinc(across / 3) * np.sinc(across / 9), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    wanted = np.clip(np.rint(np.einsum("yh,xw,hwc->yxc", weights, weights, image)), 0, 255)
    assert differ(resize(image, 20), wanted) <= 1
    narrow = np.clip(np.rint(np.einsum("yh,hwc->ywc", weights, image)), 0, 255)
    assert differ(resize(image, (20, 60)), narrow) <= 1


def test_views_that_are_not_contiguous_are_read_as_they_look() -> None:
    image = noise(40, 30)
    np.testing.assert_array_equal(resize(image[::-2, ::2], 8), resize(image[::-2, ::2].copy(), 8))
    np.testing.assert_array_equal(augment(image[::-2, ::2], OCTO, 1), augment(image[::-2, ::2].copy(), OCTO, 1))


@given(st.floats(0, 1, exclude_max=True), st.sampled_from([OCTO, OCTO_BASE, OPENVLA]))
def test_every_number_drawn_is_in_its_range_and_the_crop_inside_the_image(u: float, ranges: Augmentation) -> None:
    drawn = drawn_by(ranges, u)
    top, left, height, width = drawn.box
    assert min(top, left) >= 0
    assert max(top + height, left + width) <= 1 + 1e-9
    if max(height, width) < 1:
        assert ranges.area[0] - 1e-9 <= height * width <= ranges.area[1] + 1e-9
        assert ranges.ratio[0] - 1e-9 <= width / height <= ranges.ratio[1] + 1e-9
    assert abs(drawn.brightness) <= ranges.brightness
    assert abs(drawn.hue) <= ranges.hue
    for value, (low, high) in ((drawn.contrast, ranges.contrast), (drawn.saturation, ranges.saturation)):
        assert low - 1e-9 <= value <= high + 1e-9


def test_one_number_moves_all_of_them_from_end_to_end() -> None:
    low, middle, high = drawn_by(OCTO, 0.0), drawn_by(OCTO, 0.5), drawn_by(OCTO, 1.0)
    assert (low.brightness, low.contrast, low.saturation, low.hue) == (-0.1, 0.9, 0.9, -0.05)
    assert (high.brightness, high.contrast, high.saturation, high.hue) == pytest.approx((0.1, 1.1, 1.1, 0.05))
    assert (middle.brightness, middle.contrast, middle.hue) == pytest.approx((0, 1, 0))
    # √(0.8 / 0.9) and √(0.8 × 0.9) of the image at its upper left; √(1 / 1.1) by all of it at the lower edge
    assert low.box == pytest.approx((0, 0, 0.942809, 0.848528), abs=1e-6)
    assert high.box == pytest.approx((1 - 0.953463, 0, 0.953463, 1), abs=1e-6)


def test_the_same_seed_draws_the_same_numbers_and_another_seed_others() -> None:
    assert draw(OCTO, (3, 1)) == draw(OCTO, (3, 1))
    assert len({draw(OCTO, (3, camera)).hue for camera in range(20)}) == 20
    np.testing.assert_array_equal(augment(noise(), OCTO, 5), augment(noise(), OCTO, 5))


def test_where_nothing_is_to_change_nothing_does() -> None:
    for image in (noise(), np.full((3, 4, 3), 255, np.uint8), np.zeros((3, 4, 3), np.uint8)):
        np.testing.assert_array_equal(augment(image, STILL, 0), image)


def test_the_image_given_is_left_alone_and_the_one_wanted_is_filled() -> None:
    image, out = noise(), np.empty((24, 20, 3), np.uint8)
    assert augment(image, OCTO, 1, out) is out
    np.testing.assert_array_equal(image, noise())
    np.testing.assert_array_equal(out, augment(image, OCTO, 1))


def test_images_of_other_sizes_in_between_change_nothing() -> None:
    first = augment(noise(), OCTO, 2)
    augment(noise(7, 31), OCTO, 2)
    np.testing.assert_array_equal(augment(noise(), OCTO, 2), first)


def test_brightness_is_added_and_kept_in_range(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, brightness=0.1)
    wanted = np.minimum(noise().astype(float) + 25.5, 255)
    assert differ(augment(noise(), OCTO, 0), wanted) <= 1


def test_contrast_is_about_each_colours_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed(monkeypatch, contrast=0.9)
    mean = noise().reshape(-1, 3).mean(axis=0)
    assert differ(augment(noise(), OCTO, 0), (noise() - mean) * 0.9 + mean) <= 1


@pytest.mark.parametrize("numbers", [{"hue": 0.05}, {"hue": -0.1}, {"saturation": 0.9}, {"saturation": 1.2}])
def test_hue_turns_and_saturation_scales_as_in_hsv(monkeypatch: pytest.MonkeyPatch, numbers: dict[str, float]) -> None:
    fixed(monkeypatch, **numbers)

    def changed(pixel: np.ndarray) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        hue, saturation = hue + numbers.get("hue", 0), min(1, saturation * numbers.get("saturation", 1))
        return [255 * part for part in colorsys.hsv_to_rgb(hue % 1, saturation, value)]

    image = np.concatenate([noise(), 255 * (noise() > 127).astype(np.uint8)])
    wanted = np.apply_along_axis(changed, 2, image)
    assert differ(augment(image, OCTO, 0), wanted) <= 1


def test_a_crop_moves_publishedin_straight_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    slope = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], 8, 0).repeat(3, 2)  # 10 a column
    fixed(monkeypatch, box=(0.0, 0.25, 1.0, 0.5))
    found = augment(slope, OCTO, 0)[0, :, 0].astype(float)
    np.testing.assert_allclose(found, 0.25 * 190 + 0.5 * np.arange(0, 200, 10), atol=1)
