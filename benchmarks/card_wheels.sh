#!/usr/bin/env bash
# Collects the wheels with which benchmarks/on_card.py runs from a bare checkout, on a machine that has torch and no registry.
#
#   benchmarks/card_wheels.sh DIR              DIR/needed: what the trainer needs beside torch, about 40 MB
#   benchmarks/card_wheels.sh DIR --second     DIR/second too: bitsandbytes and xformers, about 200 MB
#   benchmarks/card_wheels.sh DIR --sd-scripts DIR/sd-scripts too: a checkout of kohya-ss/sd-scripts, for the comparison of speed
#
# For Python 3.12 and torch 2.11 (CUDA 13.0) on Linux x86_64; another Python: CARD_PYTHON=3.11. Then, on the machine with the card:
#   python benchmarks/on_card.py --wheels DIR
set -euo pipefail
[[ $# -ge 1 ]] || { grep '^#' "$0" | sed 's/^# \{0,1\}//' | tail -n +2; exit 2; }
folder=$1
shift
python=${CARD_PYTHON:-3.12}

collect() { # collect SUBFOLDER PACKAGE...: exactly these, without what they ask for
  local target=$folder/$1 platforms=()
  shift
  for tag in manylinux_2_34_x86_64 manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 \
    manylinux2014_x86_64 manylinux1_x86_64; do
    platforms+=(--platform "$tag")
  done
  mkdir -p "$target"
  python3 -m pip download --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --abi "cp${python/./}" --abi abi3 --abi none "${platforms[@]}" -d "$target" "$@"
}

# The versions of constraints/py311.txt, which the tests run with; what is not there is the newest that fits them.
collect needed attrs==26.1.0 cattrs==24.1.3 tomlkit==0.12.0 diffusers==0.31.0 transformers==4.46.1 tokenizers==0.20.3 \
  huggingface-hub==0.26.2 safetensors==0.5.3 prodigyopt==1.1.2 lion-pytorch==0.2.5 schedulefree==1.4.1 \
  importlib-metadata==8.7.0 zipp==3.23.0 regex==2026.11.15 psutil==7.1.0 Pillow==11.3.0 PyYAML==6.0.3 requests==2.34.2 tqdm==4.66.1 \
  packaging==25.0 filelock==4.2.11 fsspec==2026.9.0 numpy==2.2.6 typing-extensions==4.16.0 urllib3==2.8.0 certifi==2026.10.18 \
  charset-normalizer==3.5.2 idna==3.20

for choice in "$@"; do
  case $choice in
    --second) collect second bitsandbytes==0.50.2 "xformers${XFORMERS_VERSION:+==$XFORMERS_VERSION}" ;;
    --sd-scripts) git clone --quiet --depth 1 https://github.com/kohya-ss/sd-scripts "$folder/sd-scripts" ;;
    *) echo "unknown: $choice" >&2; exit 2 ;;
  esac
done
du -sh "$folder"/*
