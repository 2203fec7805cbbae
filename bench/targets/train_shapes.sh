#!/usr/bin/env bash
# Trains lwrn_fast/checkpoints/rf_lw_mbv2_shapes.safetensors anew, in DIR: `bench/targets/train_shapes.sh DIR`. Three hours on two
# cores that had other work too; killed, it continues where it was. Float32 sums differ between processors, so the weights will too.
set -euo pipefail
mkdir -p "$1" && cd "$1"
rates="--weight-decay 5e-5 --warmup 100 --clip 1"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}

[ -d few ] || lwrn-fast generate few --images 3000 --size 192 192 --seed 0
[ -d more ] || lwrn-fast generate more --images 6000 --size 192 192 --seed 0  # begins with the images of the others
[ -d most ] || lwrn-fast generate most --images 12000 --size 192 192 --seed 2

lwrn-fast train few --out first --model rf_lw_mbv2 --epochs 24 --batch 8 --crop 128 --scales 0.7 1.1 \
  --encoder-lr 0.1 --decoder-lr 0.1 $rates --seed 0 --half --backend cpu --resume
lwrn-fast train more --val few --out second --checkpoint first/best.safetensors --epochs 7 --batch 8 --crop 160 \
  --scales 0.8 1.1 --encoder-lr 0.05 --decoder-lr 0.05 $rates --seed 1 --half --backend cpu --resume
lwrn-fast train most --val few --out third --checkpoint second/best.safetensors --epochs 3 --batch 8 --crop 160 \
  --scales 0.8 1.1 --encoder-lr 0.025 --decoder-lr 0.025 $rates --seed 2 --half --backend cpu --resume
lwrn-fast eval more --split test --checkpoint third/best.safetensors --out test.json
