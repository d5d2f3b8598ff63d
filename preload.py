"""The host's command line: it calls preload() before it reads its flags, so nothing but argparse may be imported here."""

import argparse


def preload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lora-trainer-allow-path",
        action="append",
        default=[],
        metavar="FOLDER",
        help="LoRA Trainer: a folder that it may read pictures from and write to besides the WebUI's own, even when the WebUI "
        "listens on the network; may be given several times",
    )
    parser.add_argument(
        "--lora-trainer-allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="LoRA Trainer: a name under which browsers reach this WebUI besides localhost, its addresses and --server-name, such as "
        "that of a reverse proxy or a tunnel; may be given several times",
    )
