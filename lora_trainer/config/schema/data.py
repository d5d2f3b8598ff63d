"""Pictures, captions, buckets, augmentation and masks."""

from __future__ import annotations

from typing import Any

import attrs

from lora_trainer.config.param import param, section

Size = int | tuple[int, int]


@attrs.frozen
class SubsetConfig:
    """One table of [[data.subsets]]: the names and values that it sets; the others come from [data] (config.subsets)."""

    values: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """The value that the table sets, else `default`."""
        return dict(self.values).get(name, default)


@section
class DataConfig:
    train_data_dir: str = param(
        "",
        "Folder",
        "A folder of pictures, or of folders called NUMBER_NAME, for example `10_mika`: each picture is repeated 10 times, and mika is its "
        "caption where it has none.",
        basic=True,
        kind="folder",
    )
    reg_data_dir: str = param(
        "",
        "Regularisation folder",
        "Pictures of what the subject is in general (`1_girl`), so that the model does not forget it; shown as often as the others.",
        kind="folder",
    )
    in_json: str = param(
        "",
        "Metadata file",
        "A JSON file with captions and tags of the pictures, as sd-scripts' tools write it, or rows with file_name "
        "and text (.jsonl, .csv). Its names are looked for in the folder.",
        kind="file",
    )
    dataset_config: str = param(
        "",
        "Dataset file",
        "sd-scripts' dataset TOML: several folders, each with its own options. The folders above are not used then.",
        kind="file",
    )
    trigger_word: str = param(
        "",
        "Trigger word",
        "Is put in front of every caption that lacks it; write it in a prompt to call up the subject. Rare and short is best.",
        basic=True,
        kind="trigger",
        group="Subject",
    )
    class_tokens: str = param(
        "",
        "Class word",
        "What the subject is in general (girl, dog, building). Used with the trigger word where a picture has no caption.",
        basic=True,
        group="Subject",
    )
    num_repeats: int = param(
        1,
        "Repeats",
        "How often each picture is seen in one epoch. A folder called NUMBER_NAME, for example `10_mika`, sets its own number.",
        low=1,
        high=10000,
        basic=True,
        group="Subject",
    )
    caption_extension: str = param(
        "", "Caption files", "Ending of the caption files. Empty: .txt and .caption are both found.", group="Subject"
    )
    leave_out: tuple[str, ...] = param(
        (), "Left out", "Pictures of the folder that are not trained on (paths inside the folder).", kind="hidden"
    )
    resolution: Size = param(
        512,
        "Training size",
        "Width and height in pixels that pictures are resized to; with buckets, the area. One number means a square.",
        low=64,
        high=4096,
        basic=True,
        kind="size",
        group="Sizes",
    )
    batch_size: int = param(
        1,
        "Pictures per step",
        "More is steadier and faster per picture, and needs more memory.",
        low=1,
        high=256,
        kohya="train_batch_size",
        basic=True,
        group="Sizes",
    )
    enable_bucket: bool = param(
        True,
        "Group by shape",
        "Keeps the shape of pictures: they are grouped into sizes of about the same area instead of being cut square.",
        group="Sizes",
    )
    min_bucket_reso: int = param(
        256,
        "Smallest side of a group",
        "No group of pictures has a side shorter than this many pixels.",
        low=32,
        high=4096,
        group="Sizes",
        when="enable_bucket",
    )
    max_bucket_reso: int = param(
        1024,
        "Longest side of a group",
        "No group of pictures has a side longer than this many pixels.",
        low=64,
        high=8192,
        group="Sizes",
        when="enable_bucket",
    )
    bucket_reso_steps: int = param(
        64,
        "Step between group sizes",
        "Sides of groups are multiples of this many pixels; a multiple of 8.",
        low=8,
        high=512,
        group="Sizes",
        when="enable_bucket",
    )
    bucket_no_upscale: bool = param(
        False, "Never enlarge", "Pictures smaller than the training size keep their own size.", group="Sizes", when="enable_bucket"
    )
    resize_interpolation: str = param(
        "lanczos",
        "Resizing",
        "How pictures are resized.",
        choices=("lanczos", "area", "bicubic", "cubic", "bilinear", "linear", "box", "nearest"),
        group="Sizes",
    )
    cache_latents: bool = param(
        True,
        "Keep pictures encoded",
        "Each picture is encoded once and kept: faster, and the VAE is not needed while training.",
        group="Encoded pictures",
    )
    cache_latents_to_disk: bool = param(
        True,
        "Keep them for later runs",
        "Encoded pictures are kept on disk under a hash of their content: a later run begins at once, and a changed picture, VAE "
        "or size is encoded anew. Off: in memory only.",
        group="Encoded pictures",
        when="cache_latents",
    )
    vae_batch_size: int = param(
        1,
        "Pictures encoded together",
        "More is faster on a GPU and needs more memory. With 1, a cached picture is the same as one that is encoded anew, on a CPU bit "
        "for bit.",
        low=1,
        high=64,
        group="Encoded pictures",
        when="cache_latents",
    )
    npz_caches: bool = param(
        False,
        "Use sd-scripts' caches",
        "Reads the .npz files that sd-scripts left beside pictures, where they are newer than the picture and match its size. "
        "They do not say which VAE made them: one is compared with this VAE.",
        group="Encoded pictures",
        when="cache_latents",
    )
    cache_text_encoder_outputs: bool = param(
        False,
        "Captions encoded beforehand",
        "The captions of each epoch are encoded before its steps, and the text encoders leave the graphics card meanwhile (the trainer's "
        "own: what a WebUI lends stays). Shuffled and dropped tags are encoded as they are drawn. Not while the text encoder is trained.",
        group="Encoded captions",
    )
    cache_text_encoder_outputs_to_disk: bool = param(
        False,
        "Keep them for later runs",
        "Encoded captions are kept on disk under a hash of their text and of the encoders that read them. Those that change each "
        "time (shuffled, with dropped tags) are not.",
        group="Encoded captions",
    )
    shuffle_caption: bool = param(
        False,
        "Shuffle tags",
        "Shuffles the comma-separated parts of a caption anew each time, after those that are kept in front.",
        group="Captions",
    )
    keep_tokens: int = param(
        0,
        "Parts kept in front",
        "How many comma-separated parts stay in place when tags are shuffled. The trigger word is counted automatically.",
        low=0,
        high=255,
        group="Captions",
    )
    caption_dropout_rate: float = param(
        0.0, "Drop captions", "Share of times that a picture is seen without its caption.", low=0.0, high=1.0, group="Captions"
    )
    caption_dropout_every_n_epochs: int = param(
        0,
        "Drop captions every n epochs",
        "In every n-th epoch all pictures are seen without their captions. 0: never.",
        low=0,
        high=100000,
        group="Captions",
    )
    caption_tag_dropout_rate: float = param(
        0.0,
        "Drop tags",
        "Share of times that each comma-separated part is left out, except those kept in front and the trigger word.",
        low=0.0,
        high=1.0,
        group="Captions",
    )
    caption_prefix: str = param(
        "",
        "Put in front",
        "Stands before every caption, with a space between. It is shuffled with the rest unless its parts are kept in front.",
        group="Captions",
    )
    caption_suffix: str = param("", "Put behind", "Stands behind every caption, with a space between.", group="Captions")
    caption_separator: str = param(
        ",", "Separator", "What stands between the parts of a caption that are shuffled or dropped.", group="Captions"
    )
    keep_tokens_separator: str = param(
        "",
        "Mark of kept parts",
        "For example |||: what comes before it in a caption is kept in front, what comes after a second one is kept at the end. "
        "It is used instead of the number of parts, where parts are shuffled or dropped.",
        group="Captions",
    )
    secondary_separator: str = param(
        "",
        "Second separator",
        "For example ;;;: parts that it joins are shuffled and dropped as one, and read with the usual separator between.",
        group="Captions",
    )
    enable_wildcard: bool = param(
        False,
        "Lines and {a|b}",
        "One of several lines in a caption is chosen at random, and so is one of the words in {red|blue}; {{ and }} are plain "
        "brackets. The first line gets what is put in front, the last what is put behind. Off: the first line is read.",
        group="Captions",
    )
    token_warmup_min: int = param(
        1,
        "Parts at first",
        "How many parts after the kept ones are read at the first step, when captions grow.",
        low=0,
        high=1000,
        group="Captions",
        when="token_warmup_step",
    )
    token_warmup_step: float = param(
        0.0,
        "Growing captions",
        "Captions grow to their full length until this step; below 1 it is a share of all steps. 0: whole from the beginning.",
        low=0.0,
        high=10_000_000.0,
        group="Captions",
    )
    flip_aug: bool = param(
        False,
        "Mirror at random",
        "Half of the time a picture is seen mirrored. Not for subjects whose left and right differ.",
        group="Variation",
    )
    color_aug: bool = param(
        False,
        "Vary colours",
        "A third of the time hue or brightness is changed a little. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    random_crop: bool = param(
        False,
        "Cut at random",
        "What does not fit the group's shape is cut at a random place instead of the middle. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    face_crop_aug_range: str = param(
        "",
        "Face crop range",
        'For example "2.0,4.0": cuts around the face, between 2 and 4 times its size. The file name gives its middle and size, '
        "NAME_x_y_width_height. Pictures then cannot be kept encoded.",
        group="Variation",
    )
    alpha_mask: bool = param(
        False,
        "Transparency is a mask",
        "What is transparent in a picture is not learned; a picture without transparency counts whole.",
        group="Masks",
    )
    mask_dir: str = param(
        "",
        "Folder of masks",
        "Pictures with the same names: white is learned, black is not, grey partly.",
        kohya="conditioning_data_dir",
        kind="folder",
        group="Masks",
    )
    masks_beside: bool = param(
        False,
        "Masks beside pictures",
        "A file NAME-masklabel.png beside a picture is its mask: white is learned, black is not.",
        group="Masks",
    )
    mask_threshold: float = param(
        0.0,
        "Mask threshold",
        "Above 0: a mask is all or nothing, and what is brighter than this share counts whole.",
        low=0.0,
        high=1.0,
        group="Masks",
    )
    mask_min_value: float = param(
        0.0,
        "Weight outside masks",
        "What lies outside masks counts this much; a little keeps the model from drawing nonsense there.",
        low=0.0,
        high=1.0,
        group="Masks",
    )
    crops: tuple[str, ...] = param(
        (),
        "Chosen parts",
        "The part of a picture that is trained on: key=left,top,right,bottom as shares from 0 to 1. The file is not changed.",
        kind="hidden",
    )
    subsets: tuple[SubsetConfig, ...] = param(
        (), "Folders with their own options", "Tables [[data.subsets]]: image_dir, and whatever differs there from [data].", kind="hidden"
    )
