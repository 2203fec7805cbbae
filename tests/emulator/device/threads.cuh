#pragma once
#include "../machine.h"

#define LWRN_DEVICE inline
#define LWRN_BOTH inline

namespace lwrn_fast::cuda {

LWRN_DEVICE int thread() { return emulator::current->index; }
LWRN_DEVICE int threads() { return emulator::thread_count(); }
LWRN_DEVICE int block() { return emulator::block_index(); }
LWRN_DEVICE int blocks() { return emulator::block_count(); }
LWRN_DEVICE char* shared_memory() { return emulator::shared_memory(); }
LWRN_DEVICE int opaque(int value) { return value; }
LWRN_DEVICE void sync() { emulator::sync(); }

}  // namespace lwrn_fast::cuda
