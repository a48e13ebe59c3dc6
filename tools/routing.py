"""The load of every expert as a heat map, per layer and modality.

    python -m tools.routing REPOSITORY --output routing.png [--image FILE ...] [--audio FILE ...] [--video FILE ...]
                            [--text TEXT ...] [--json FILE]

The default inputs are the files of the demo. A cell is the share of a modality's token assignments that an expert of
a layer gets, times the number of experts: 1 everywhere is a perfect balance.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch.nn.functional import one_hot
from transformers import AutoModelForMultimodalLM, AutoProcessor

from ming.cli.checks import check_image_output, check_media, check_output, find_model, read_config
from ming.cli.usage import exit_code, user_input
from ming.files import replacing
from ming.loading import DTYPES
from ming.modeling_bailing_moe import ROUTERS
from ming.training.chats import prompt_batch

DEMO = Path(__file__).resolve().parents[1] / "demo"
DEFAULTS: dict[str, list] = {
    "text": ["What comes after three?", "Draw a large red star in the center on a white background."],
    "image": [DEMO / "picture.jpg"],
    "audio": [DEMO / "recording.wav", DEMO / "question.wav"],
    "video": [DEMO / "clip.mp4"],
}


@torch.no_grad()
def expert_load(model, inputs) -> dict[str, torch.Tensor]:
    """Load of every expert, per router that got a token: float32 [layers, E], 1 where balanced.

    Args:
        model: a `BailingMMNativeForConditionalGeneration`.
        inputs: the processor's output [B, L] for chats of any kind.
    """
    options = {"output_router_logits": True, "use_cache": False, "logits_to_keep": 1}
    logits = torch.stack([layer.float() for layer in model(**inputs, **options).router_logits])  # [layers, T, E]
    config = model.config.llm_config
    chosen = logits.topk(config.num_experts_per_tok, dim=-1).indices
    assigned = one_hot(chosen, config.num_experts).sum(dim=-2).float() / config.num_experts_per_tok
    types = inputs.get("mm_token_type_ids", torch.zeros_like(inputs["input_ids"])).reshape(-1)
    # Types are text, image, video, audio; videos use the router of images.
    routers = torch.tensor([0, 1, 1, 2], device=types.device)[types]
    valid = inputs["attention_mask"].reshape(-1).bool()
    loads = {}
    for index, name in enumerate(ROUTERS):
        seen = valid & (routers == index)
        if seen.any():
            loads[name] = assigned[:, seen].mean(dim=1).cpu() * config.num_experts
    return loads


def chats_of(media: dict[str, list]) -> list[list[dict]]:
    """One chat per text and file; a file is sent with a request to describe it."""
    chats = []
    for kind, items in media.items():
        for item in items:
            content = [{"type": "text", "text": item if kind == "text" else f"Describe the {kind}."}]
            if kind != "text":
                content.insert(0, {"type": kind, kind: str(item)})
            chats.append([{"role": "user", "content": content}])
    return chats


def plot(loads: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write one heat map per router: layers from top to bottom, experts from left to right."""
    from matplotlib.figure import Figure  # needed for plotting only

    layers, experts = next(iter(loads.values())).shape
    highest = max(float(load.max()) for load in loads.values())
    figure = Figure(figsize=(2 + len(loads) * max(2.4, experts / 8), max(2.2, 1 + layers / 5)), layout="constrained")
    axes = figure.subplots(1, len(loads), squeeze=False)[0]
    for axis, (name, load) in zip(axes, loads.items(), strict=True):
        image = axis.imshow(load.numpy(), vmin=0, vmax=highest, cmap="viridis", aspect="auto")
        axis.set(title=f"{name} router", xlabel="expert", ylabel="layer")
    figure.colorbar(image, ax=list(axes), label="load (1 = balanced)")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    """Write the heat map.

    Raises:
        UsageError: a file or an option that cannot be used; no weights were read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.routing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", help="directory or Hub id")
    parser.add_argument("--output", type=Path, default=Path("routing.png"), help="image to write")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    for kind in DEFAULTS:
        parser.add_argument(f"--{kind}", nargs="+", default=[], help="inputs instead of those of the demo")
    parser.add_argument("--dtype", default="auto", choices=("auto", *DTYPES))
    parser.add_argument("--device-map", help='for example "auto"')
    args = parser.parse_args(arguments)
    read_config(find_model(args.repository, "repository"), "repository")
    check_image_output("--output", str(args.output))
    if args.json:
        check_output("--json", str(args.json))
    media: dict[str, list] = {kind: getattr(args, kind) for kind in DEFAULTS}
    for kind in ("image", "audio", "video"):
        for source in media[kind]:
            check_media(f"--{kind}", source, kind)
    with user_input():
        processor = AutoProcessor.from_pretrained(args.repository)
        inputs = prompt_batch(processor, chats_of(media if any(media.values()) else DEFAULTS))
    model = AutoModelForMultimodalLM.from_pretrained(
        args.repository, dtype=args.dtype, device_map=args.device_map, load_talker=False
    ).eval()
    loads = expert_load(model, inputs.to(model.device, model.dtype))
    plot(loads, args.output)
    for name, load in loads.items():
        sys.stdout.write(
            f"{name}: most loaded expert {load.max():.2f}, idle experts {(load == 0).float().mean():.0%}\n"
        )
    if args.json:
        with replacing(args.json) as path:
            path.write_text(json.dumps({name: load.tolist() for name, load in loads.items()}, indent=1) + "\n")
    sys.stdout.write(f"{args.output}\n")


if __name__ == "__main__":
    sys.exit(exit_code("routing", main))
