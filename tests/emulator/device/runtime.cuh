#pragma once
#include "launch.cuh"

namespace lwrn_fast::cuda {

inline const char* query_device(int index, Device* device) {
  const emulator::Settings& settings = emulator::settings;
  *device = {index, settings.capability, settings.multiprocessors, settings.smem_bytes, nullptr};
  return nullptr;
}

inline bool is_capturing(void*) { return false; }

}  // namespace lwrn_fast::cuda
