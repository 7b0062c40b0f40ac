"""SAM's mask decoder for many prompts on one plane: the public one's results with about half of its arithmetic.

Three identities, each exact but for rounding:

- A prompt has few tokens (T = 7) and a plane many pixels (N = 4096). With q = Wq t + bq of a token and k = Wk p + bk of
  a pixel, q · k = (Wkᵀ q) · p + const, and the constant drops out of a softmax over pixels. So the tokens are taken to
  the pixels' space, and no pixel is ever projected; likewise for values, and for attention the other way round.
- A transposed convolution with kernel = stride = 2 is one matrix product per pixel, so channels stay last throughout.
- Without a previous mask all prompts see the same pixels in the first layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class MaskDecoder:
    """The mask decoder and the prompt encoder of a `segment_anything.modeling.Sam`, whose weights it shares.

    `decode` gives what the model's `prompt_encoder` and `mask_decoder` give with `multimask_output=True`.
    """

    def __init__(self, model: Any) -> None:
        self._prompts = model.prompt_encoder
        self._decoder = model.mask_decoder
        self._grid = tuple(int(n) for n in model.prompt_encoder.image_embedding_size)
        self._positions = pixels(model.prompt_encoder.get_dense_pe())
        first, self._norm, self._first_activation, second, self._second_activation = model.mask_decoder.output_upscaling
        self._first, self._second = _as_linear(first), _as_linear(second)

    def decode(
        self, image: torch.Tensor, coordinates: torch.Tensor, labels: torch.Tensor, previous: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (b, 3, h, w) and scores (b, 3) of b prompts.

        Parameters
        ----------
        image : (1, N, C) the plane's embedding, as from `pixels`
        coordinates, labels : (b, 1, 2) and (b, 1) a point for each prompt, in the model's frame
        previous : (b, 1, h, w) logits, or None
        """
        scores, tokens, keys = self._look(image, coordinates, labels, previous)
        return self._masks(tokens, keys), scores

    def _look(
        self,
        image: torch.Tensor,
        coordinates: torch.Tensor,
        labels: torch.Tensor,
        previous: torch.Tensor | None,
        leading: tuple[torch.Tensor, ...] = (),
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores (b, 3), the tokens (b, 3, C) of the masks, and pixels (b, N, C), after the transformer.

        leading : the decoder's tokens (n, C) that stand before those of the score and the masks
        """
        import torch

        sparse, _ = self._prompts(points=(coordinates, labels), boxes=None, masks=None)
        decoder = self._decoder
        own = torch.cat([*leading, decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(sparse), -1, -1), sparse], 1)
        keys = image + self._prompts.no_mask_embed.weight if previous is None else self._with_masks(image, previous)
        tokens, keys = self._transform(tokens, keys)
        tokens = tokens[:, sum(map(len, leading)) :]
        scores = decoder.iou_prediction_head(tokens[:, 0])[:, 1:]
        return scores, tokens[:, 2 : 1 + decoder.num_mask_tokens], keys

    def _with_masks(self, image: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """The plane's pixels plus the embeddings (b, N, C) of previous masks."""
        import torch

        *layers, last = self._prompts.mask_downscaling  # the last one is a 1 × 1 convolution
        for layer in layers:
            previous = layer(previous)
        weight = last.weight.flatten(1).T.expand(len(previous), -1, -1)
        return torch.baddbmm(image + last.bias, previous.flatten(2).transpose(1, 2), weight)

    def _transform(self, prompt: torch.Tensor, keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The two-way transformer: tokens (b, T, C) and pixels (b or 1, N, C); returns both, as (b, …)."""
        transformer = self._decoder.transformer
        queries = prompt
        for layer in transformer.layers:
            if layer.skip_first_layer_pe:
                queries = layer.self_attn(queries, queries, queries)
            else:
                placed = queries + prompt
                queries = queries + layer.self_attn(placed, placed, queries)
            queries = layer.norm1(queries)
            positioned = keys + self._positions
            queries = queries + to_pixels(layer.cross_attn_token_to_image, queries + prompt, positioned, keys)
            queries = layer.norm2(queries)
            queries = layer.norm3(queries + layer.mlp(queries))
            attention = layer.cross_attn_image_to_token
            keys = layer.norm4(plus_from_pixels(attention, positioned, queries + prompt, queries, keys))
        attention = transformer.final_attn_token_to_image
        attended = to_pixels(attention, queries + prompt, keys + self._positions, keys)
        return transformer.norm_final_attn(queries + attended), keys

    def _masks(
        self, tokens: torch.Tensor, keys: torch.Tensor, finer: tuple[torch.Tensor, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits (b, M, 4 h, 4 w) of the tokens (b, M, C) of M masks on pixels (b, N, C).

        finer : what is added to the pixels of each step of enlargement, (1, N, 4, C / 4) and (1, N, 4, C / 2), the
            latter being 4 times C / 8
        """
        import torch
        from torch.nn import functional

        heads = self._decoder.output_hypernetworks_mlps[1:]
        weights = torch.stack([head(tokens[:, i]) for i, head in enumerate(heads)], 2)  # (b, C', M)
        x = functional.linear(keys, *self._first)
        x = x.view(*x.shape[:2], 4, -1)
        x = x if finer is None else x + finer[0]
        x = functional.layer_norm(x, x.shape[-1:], self._norm.weight, self._norm.bias, self._norm.eps)
        x = functional.linear(self._first_activation(x), *self._second)
        x = x if finer is None else x + finer[1]
        x = self._second_activation(x).view(len(x), -1, weights.shape[1]) @ weights
        # Each pixel has become 2 × 2 and each of those 2 × 2: (h, w), (row, column), (row, column) of the two steps.
        rows, columns = self._grid
        x = x.view(len(x), rows, columns, 2, 2, 2, 2, -1).permute(0, 7, 1, 3, 5, 2, 4, 6)
        logits: torch.Tensor = x.reshape(len(x), -1, 4 * rows, 4 * columns)
        return logits


def pixels(image: torch.Tensor) -> torch.Tensor:
    """(1, C, h, w) as (1, h · w, C)."""
    return image.flatten(2).transpose(1, 2).contiguous()


def _as_linear(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight (4 C', C) and bias (4 C') of a transposed convolution with kernel = stride = 2; offsets come first."""
    weight = layer.weight.permute(2, 3, 1, 0).reshape(-1, layer.in_channels).contiguous()
    return weight, layer.bias.repeat(4)


def _heads(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """(b, T, heads · d) as (b, heads, T, d)."""
    split: torch.Tensor = x.view(*x.shape[:2], attention.num_heads, -1)
    return split.transpose(1, 2)


def to_pixels(attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attention of tokens (b, T, C) to pixels (b or 1, N, C), as `segment_anything.modeling.transformer.Attention`."""
    query = _heads(attention, attention.q_proj(queries))
    heads, _, channels = query.shape[1:]
    by_head = (heads, channels, -1)
    query = (query * channels**-0.5) @ attention.k_proj.weight.view(by_head)  # (b, heads, T, C)
    scores = query.flatten(1, 2) @ keys.transpose(1, 2)
    seen = (scores.softmax(2) @ values).view(query.shape)
    value = seen @ attention.v_proj.weight.view(by_head).transpose(1, 2)
    out: torch.Tensor = attention.out_proj(value.transpose(1, 2).flatten(2) + attention.v_proj.bias)
    return out


def plus_from_pixels(
    attention: Any, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, residual: torch.Tensor
) -> torch.Tensor:
    """`residual` plus the attention of pixels (b or 1, N, C) to tokens (b, T, C)."""
    import torch

    key = _heads(attention, attention.k_proj(keys))
    value = _heads(attention, attention.v_proj(values))
    heads, tokens, channels = key.shape[1:]
    key = key * channels**-0.5
    by_head = (heads, channels, -1)
    constant = key @ attention.q_proj.bias.view(by_head)  # (b, heads, T, 1)
    key = (key @ attention.q_proj.weight.view(by_head)).flatten(1, 2)
    scores = (key @ queries.transpose(1, 2)).view(len(key), heads, tokens, -1) + constant
    weights = scores.softmax(2).flatten(1, 2)  # over tokens: pixels stay last, where they are many
    # The weights of a head sum to 1, so its share of the bias may go with the values.
    value = value @ attention.out_proj.weight.T.reshape(by_head) + attention.out_proj.bias / heads
    return torch.baddbmm(residual, weights.transpose(1, 2), value.flatten(1, 2))
