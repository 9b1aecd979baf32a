"""The transformer in plain PyTorch: whole masks, one softmax, every product as in the formula.

It uses the weights of a `Transformer` and only its masks of its code, as the reference for the values of the
fast paths and for the time of a training step. Left out: dropout, caption dropout, gradient scales.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thousandwords.generators.transformer.masks import attention_masks
from thousandwords.generators.transformer.model import Transformer


def logits(model: Transformer, text: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As Transformer.logits: text (B, T), tokens (B, L) -> (B, T, Vt), (B, L, Vi)."""
    config, prefix = model.config, model.text_length + 2
    hidden_states = torch.cat([_text(model, text), _image(model, tokens)[:, :-1]], dim=1)
    if model.next_embedding is not None:  # what is before an image token has that token's position
        before_image = hidden_states[:, prefix - 1 :] + model.next_embedding.weight
        hidden_states = torch.cat([hidden_states[:, : prefix - 1], before_image], dim=1)
    masks = attention_masks(prefix, model.scales, config.kernel)
    turns = _turns(model)[: hidden_states.shape[1]] if config.rotary_extent else None
    for layer, kind in zip(model.layers, model.kinds, strict=True):
        mask = masks[kind][: hidden_states.shape[1], : hidden_states.shape[1]]
        normalized = layer.attention_norm(hidden_states)
        hidden_states = hidden_states + _attention(layer.attention, normalized, mask, turns)
        activations = layer.mlp.hidden(layer.mlp_norm(hidden_states))
        if config.activation == "swiglu":
            count = activations.shape[-1] // 2
            gates = activations[..., :count]
            activations = gates * torch.sigmoid(gates) * activations[..., count:]
        else:
            activations = F.gelu(activations)
        hidden_states = hidden_states + layer.mlp.output(activations)
    states = model.output_norm(hidden_states)
    return model.text_output(states[:, : model.text_length]), model.image_output(states[:, prefix - 1 :])


def loss(model: Transformer, text: Tensor, tokens: Tensor) -> Tensor:
    """As Transformer.loss: the weighted sum of both cross-entropies, pads left out."""
    text_logits, image_logits = logits(model, text, tokens)
    text_loss = F.cross_entropy(text_logits.transpose(1, 2), text, ignore_index=-1)
    image_loss = F.cross_entropy(image_logits.transpose(1, 2), tokens)
    return model.config.text_loss_weight * text_loss + model.config.image_loss_weight * image_loss


def _text(model: Transformer, text: Tensor) -> Tensor:
    is_pad = (text < 0)[..., None]
    embedded = model.text_embedding(text.clamp(min=0)) + model.text_position_embedding.weight
    embedded = torch.where(is_pad, model.pad_embedding.weight.expand_as(embedded), embedded)
    start = model.start_embedding.weight.expand(len(text), 2, -1)
    return torch.cat([start[:, :1], embedded, start[:, 1:]], dim=1)


def _image(model: Transformer, tokens: Tensor) -> Tensor:
    if len(model.scales) == 1:
        rows = model.row_embedding.weight.repeat_interleave(model.side, dim=0)
        return model.image_embedding(tokens) + rows + model.column_embedding.weight.repeat(model.side, 1)
    positions = []
    for number, side in enumerate(model.scales):
        for cell in range(side * side):
            row, column = (int((place + 0.5) * model.side / side) for place in divmod(cell, side))
            place = model.row_embedding.weight[row] + model.column_embedding.weight[column]
            positions.append(place + model.scale_embedding.weight[number])
    return model.image_embedding(tokens) + torch.stack(positions)


def _turns(model: Transformer) -> Tensor:
    """Complex numbers of length 1, (S, x / 2), by which rotary positions turn pairs of channels; text is not turned."""
    count = model.config.width // model.config.num_heads // 4
    places = [(0.0, 0.0)] * (model.text_length + 2)
    for side in model.scales:
        step = model.config.rotary_extent / side
        places += [((cell // side + 0.5) * step, (cell % side + 0.5) * step) for cell in range(side * side)]
    angles = [[place * 10_000 ** (-i / count) for place in pair for i in range(count)] for pair in places]
    return torch.polar(torch.ones(()), torch.tensor(angles))


def _turned(vectors: Tensor, turns: Tensor) -> Tensor:
    pairs = torch.complex(*vectors.float().chunk(2, dim=-1)) * turns
    return torch.cat([pairs.real, pairs.imag], dim=-1).to(vectors.dtype)


def _attention(attention: nn.Module, inputs: Tensor, mask: Tensor, turns: Tensor | None) -> Tensor:
    rows, count, width = inputs.shape
    qkv = attention.query_key_value(inputs).view(rows, count, 3, attention.num_heads, -1)
    queries, keys, values = (part.transpose(1, 2) for part in qkv.unbind(dim=2))
    if turns is not None:
        queries, keys = _turned(queries, turns), _turned(keys, turns)
    scores = queries @ keys.transpose(2, 3) / queries.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return attention.output((weights @ values).transpose(1, 2).reshape(rows, count, width))
