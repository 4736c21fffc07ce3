"""Checks of whole models: both pre-training models with losses and gradients, the head alone, classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from ...config.pretraining import LossConfig
from ...model.heads import CommonSpace, Embeddings
from ...model.losses import balanced_sigmoid_cross_entropy, pretraining_loss, smooth_labels, softmax_cross_entropy
from ...model.tokens import AudioTokens, VideoTokens
from ...model.vatt import Classifier
from ..variable_names import place
from .encoders import SPECIFIC, UNIFIED, backbone, grid_of
from .recording import EQUAL, GRADIENT, NOISE, Model, Recording, variable_name

HEADS = ("video.toaud", "video.totxt", "audio.tovid", "text.tovid")


def tx_fac_full(recording: Recording) -> None:
    _pretraining(recording, SPECIFIC)


def ut_fac_full(recording: Recording) -> None:
    _pretraining(recording, UNIFIED)


def _pretraining(recording: Recording, checkpoint: str) -> None:
    model = backbone(recording, checkpoint)
    video, audio = recording.input("in.video"), recording.input("in.audio")[..., 0]
    text = recording.input("in.text").long()
    captions = text.unflatten(0, (len(video), -1))
    for modality, x in (("video", video), ("audio", audio), ("text", text)):
        features = model.backbone.features(modality, x)
        tokens = model.backbone.tokens[modality]
        grid = grid_of(tokens, x) if isinstance(tokens, VideoTokens | AudioTokens) else (x.shape[1],)
        recording.check(f"eval.{modality}.features", features[:, 1:].unflatten(1, grid))
        recording.check(f"eval.{modality}.features_pooled", features[:, 0])
    recording.check("eval.text.word_ids", text, EQUAL)
    recording.check("eval.text.attention_mask", model.backbone.tokens["text"](text)[1][:, 1:], EQUAL)

    model.zero_grad(set_to_none=True)
    embeddings = model(video, audio, captions)
    check_embeddings(recording, "eval.head_stack.bridge.", embeddings)
    masks = recording.input("in.audio_mask"), recording.input("in.text_mask")
    config = LossConfig(temperature=recording.fixtures.temperature)
    losses = pretraining_loss(embeddings, *masks, config, recording.fixtures.ops)
    for name in ("bridge_losses/total_loss", "model_loss", "total_loss"):
        recording.check(f"eval.loss.{name}", losses.total)
    recording.check("eval.loss.bridge_losses/asymmetric_nce/vidtxt_loss", losses.video_text)
    recording.check("eval.loss.bridge_losses/asymmetric_nce/vidaud_loss", losses.video_audio)
    recording.check("eval.loss.regularization_loss", 0.0, note="there is none")
    losses.total.backward()
    check_gradients(recording, "evalgrad.", recording.fixtures.load(checkpoint))


def check_embeddings(recording: Recording, prefix: str, embeddings: Embeddings) -> None:
    flat = (embeddings.video_audio, embeddings.video_text, embeddings.audio, embeddings.text.flatten(0, 1))
    for name, ours in zip(HEADS, flat, strict=True):
        recording.check(prefix + name, ours)


def check_gradients(recording: Recording, prefix: str, model: Model) -> None:
    """Check every trainable variable's gradient; all are recorded."""
    for name in model.trainable():
        tolerance = NOISE if name.endswith("/k/bias") else GRADIENT
        recording.check(prefix + name, model.gradient(name), tolerance)


def fac_head(recording: Recording) -> None:
    """Check the common-space head alone, its parameters from the file.

    First with moving, then with batch statistics.
    """
    variables = {name: variable_name(name.removeprefix("p.")) for name in recording.arrays if name.startswith("p.")}
    inputs = {name: recording.input(f"in.{name}").requires_grad_() for name in ("video", "audio", "text")}
    spaces = [recording.arrays[f"p.{name}.bias"].shape[0] for name in ("aud_to_va", "txt_to_vat")]
    widths = {name: x.shape[1] for name, x in inputs.items()}
    head = CommonSpace(**widths, video_audio=spaces[0], video_text=spaces[1])
    places = {path.removeprefix("p."): place(name, None, False) for path, name in variables.items()}
    state = dict(head.state_dict())
    for path, target in places.items():
        assert target is not None, f"{path} is no part of the head"
        ours = state[target.name.removeprefix("head.")]
        ours.copy_(target.to_ours(recording.input(f"p.{path}"), ours))
    for mode in ("eval", "train"):
        head.train(mode == "train")
        head.zero_grad(set_to_none=True)
        for x in inputs.values():
            x.grad = None
        outputs = (*head.embed_video(inputs["video"]), head.audio(inputs["audio"]), head.text(inputs["text"]))
        probe = torch.zeros(())
        for weight, (name, out) in enumerate(zip(HEADS, outputs, strict=True), 1):
            recording.check(f"{mode}.out.{name}", out)
            probe = probe + weight * out.sin().sum()
        recording.check(f"{mode}.probe", probe)
        probe.backward()
        gradients = {name: p.grad for name, p in head.named_parameters()}
        for name in [n for n in recording.arrays if n.startswith(f"{mode}.grad.")]:
            path = name.removeprefix(f"{mode}.grad.")
            if path.startswith("in."):
                recording.check(name, _present(inputs[path.removeprefix("in.")].grad))
            elif target := places.get(path):
                gradient = _present(gradients[target.name.removeprefix("head.")])
                recording.check(name, target.to_official(gradient, recording.arrays[name].shape))
    for path, target in places.items():
        if target is not None and ".moving_" in path:
            recording.check(f"train.after.{path}", state[target.name.removeprefix("head.")])


def _present(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def finetune(recording: Recording) -> None:
    """Check finetune_*.npz, with the checkpoint of the same name."""
    model = recording.fixtures.load(f"ckpt_{recording.name.removesuffix('.npz')}")
    classifier = model.module
    assert isinstance(classifier, Classifier)
    is_video = classifier.modality == "video"

    def read(name: str) -> Tensor:
        x = recording.input(name)
        return x if is_video else x[..., 0]

    def probabilities(logits: Tensor) -> Tensor:
        return logits.softmax(dim=-1) if is_video else logits.sigmoid()

    with torch.no_grad():
        logits = classifier(read("in.views"), views=recording.number("num_views"))
    recording.check("eval.logits", logits)
    recording.check("eval.probabilities", probabilities(logits))

    x, labels = read("in.train"), recording.input("in.onehot")
    if is_video:
        labels = smooth_labels(labels)
    recording.check("in.onehot_used", labels)
    classifier.zero_grad(set_to_none=True)
    recording.check("single.features_pooled", classifier.backbone.features(classifier.modality, x)[:, 0])
    logits = classifier(x)
    recording.check("single.logits", logits)
    recording.check("single.probabilities", probabilities(logits))
    loss = (softmax_cross_entropy if is_video else balanced_sigmoid_cross_entropy)(logits, labels)
    recording.check("single.loss", loss)
    loss.backward()
    check_gradients(recording, "grad.", model)
