#!/usr/bin/env bash
# Run the self-check's AVX-512 kernels, bf16 dot products included, on a machine without AVX-512: under Linux in the
# emulator Bochs, in some minutes. No test calls this script. It needs a Debian kernel's vmlinuz (linux-image-cloud-amd64),
# the packages isolinux, syslinux-common, genisoimage and cpio, and the folder of a Bochs that emulates AVX-512 (3 or later).
# usage: emulate.sh BOCHS_FOLDER VMLINUZ [CASES [INSTRUCTION_SET...]]
set -eu
bochs=$(realpath "$1") vmlinuz=$(realpath "$2")
shift 2
arguments=${*:-60 avx512_bf16 avx512}
here=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
trap 'kill "${emulator:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

CXXFLAGS="-O2 -static ${CXXFLAGS:-}" "${PYTHON:-python3}" "$here/build.py" "$work/build" selfcheck >/dev/null
mkdir "$work/root" "$work/disc"
mv "$work/build/selfcheck" "$work/root/init"
(cd "$work/root" && echo init | cpio --quiet -o -H newc | gzip >"$work/disc/initrd.gz")
cp "$vmlinuz" "$work/disc/vmlinuz"
cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/disc"
# The kernel panics when its first process, the self-check, ends, and prints the exit status.
cat >"$work/disc/isolinux.cfg" <<EOF
DEFAULT selfcheck
PROMPT 0
LABEL selfcheck
  KERNEL vmlinuz
  INITRD initrd.gz
  APPEND console=ttyS0 quiet noapic nosmp acpi=off mitigations=off lpj=1000000 tsc=reliable -- $arguments
EOF
cd "$work"
genisoimage -quiet -o disc.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table disc
# Linux boots on this model, which does not report bf16: the arguments name the sets to run.
cat >bochsrc <<EOF
config_interface: textconfig
display_library: nogui
cpu: model=corei7_skylake_x, ips=50000000, add_features="avx512bf16"
memory: guest=512, host=512
romimage: file=$bochs/bios/BIOS-bochs-latest
vgaromimage: file=$bochs/bios/VGABIOS-lgpl/VGABIOS-lgpl-latest.bin
ata0-master: type=cdrom, path=disc.iso, status=inserted
boot: cdrom
clock: sync=none
com1: enabled=1, mode=file, dev=serial.txt
log: bochs.log
panic: action=fatal
EOF
"$bochs/bochs" -q -f bochsrc >messages.txt 2>&1 &
emulator=$!
until grep -aqs 'exitcode=' serial.txt; do
  kill -0 "$emulator" 2>/dev/null || { cat messages.txt; tail -n 5 bochs.log; exit 1; }
  sleep 1
done
grep -av '^\[' serial.txt
grep -aq 'exitcode=0x00000000' serial.txt
