"""The cache gives what transformers' own gives, whatever is done to it."""

import numpy as np
import pytest
import torch
from shapes import SHAPES, tiny_model
from transformers import DynamicCache

from dailydialog_gym.models.cache import ROOM, FixedCache, RoomyCache, read_prompts
from dailydialog_gym.models.forward import forward_cached


def keys(cache):
    """What the first layer holds, without the empty columns after it."""
    return cache.layers[0].keys[..., : cache.get_seq_length(), :]


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_logits_equal_those_with_transformers_own_cache(kind):
    model = tiny_model(kind)
    caches = DynamicCache(), RoomyCache()

    def equal(input_ids):
        expected = model(input_ids, past_key_values=caches[0]).logits[:, -1:]
        mask = torch.ones(len(input_ids), caches[0].get_seq_length(), dtype=torch.long)
        positions = (mask.cumsum(-1) - 1)[:, -input_ids.shape[1] :]
        ours = forward_cached(model, input_ids, mask, positions, caches[1]).logits
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(*map(keys, caches), rtol=0, atol=1e-6)

    equal(torch.randint(50, (2, 3)))
    for change in (
        lambda cache: cache.batch_repeat_interleave(3),
        lambda c: c.batch_select_indices(torch.tensor([4, 1])),
    ):
        for cache in caches:
            change(cache)
        for _ in range(3):
            equal(torch.randint(50, (len(keys(caches[0])), 1)))


def test_what_is_held_is_copied_only_when_the_room_is_used_up():
    cache, one = RoomyCache(), torch.ones(1, 1, 1, 4)
    places = []
    for _ in range(2 * ROOM + 4):
        cache.update(one, one, 0)
        places.append(keys(cache).data_ptr())
    assert len(set(places)) == 4  # the first is the caller's own
    assert not cache.layers[0].keys[..., cache.get_seq_length() :, :].any()
    assert cache.get_seq_length() == len(places) and (keys(cache) == 1).all()


@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_a_fixed_cache_gives_the_same_logits_from_the_same_place_each_time(kind):
    model = tiny_model(kind)
    first, prompt, columns = 2, 5, 11  # two columns of padding in all rows, of which the caches hold nothing
    fixed, places = FixedCache(columns), []
    for padding in ([0, 2, 1], [2, 0, 0]):
        ids, mask = torch.randint(50, (3, columns)), torch.zeros(3, columns, dtype=torch.long)
        mask[:, first:prompt] = torch.arange(3) >= torch.tensor(padding)[:, None]
        cache = RoomyCache()

        def positions(mask):
            return (mask.cumsum(-1) - 1).clamp(min=0)

        seen = mask[:, first:prompt]
        model(ids[:, first:prompt], attention_mask=seen, position_ids=positions(seen), past_key_values=cache)
        fixed.hold(cache, first)
        for t in range(prompt, columns):
            mask[:, t] = 1
            logits = [
                model(
                    ids[:, t : t + 1],
                    attention_mask=seen,
                    position_ids=positions(seen)[:, -1:],
                    past_key_values=held,
                ).logits
                for held, seen in ((cache, mask[:, first : t + 1]), (fixed, mask))
            ]
            torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
        places.append(keys(fixed).data_ptr())
    assert places[0] == places[1] and fixed.get_seq_length() == columns


@pytest.mark.parametrize("lengths", [[5], [3, 9, 1, 9, 4, 6, 2], [7, 7, 7, 7, 7], range(40, 0, -1)])
@pytest.mark.parametrize("kind", SHAPES)
@torch.no_grad()
def test_prompts_read_in_groups_are_those_read_at_once(kind, lengths):
    model = tiny_model(kind)
    columns, rows = max(lengths), len(lengths)
    mask = (np.arange(columns) >= columns - np.array(lengths)[:, None]).astype(np.int64)
    ids = np.random.default_rng(0).integers(1, 50, (rows, columns)) * mask
    read_columns = []

    def read(input_ids, attention_mask, cache):
        read_columns.append(attention_mask.size)
        input_ids, attention_mask = torch.from_numpy(input_ids), torch.from_numpy(attention_mask)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        inputs = {"attention_mask": attention_mask, "position_ids": positions, "past_key_values": cache}
        logits = model(input_ids, **inputs, logits_to_keep=1).logits[:, 0]
        return logits, logits[:, 0]

    (logits, first), cache = read_prompts(read, ids, mask)
    if len(set(lengths)) > 4:
        assert sum(read_columns) < 0.9 * mask.size
    whole = RoomyCache()
    torch.testing.assert_close((logits, first), read(ids, mask, whole), rtol=0, atol=1e-5)
    assert cache.get_seq_length() == columns
    mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
    one = np.ones((rows, 1), np.int64)
    torch.testing.assert_close(read(one, mask, cache), read(one, mask, whole), rtol=0, atol=1e-5)
    there = torch.from_numpy(mask).bool()
    torch.testing.assert_close(keys(cache).transpose(1, 2)[there], keys(whole).transpose(1, 2)[there])
    assert keys(cache).isfinite().all()
