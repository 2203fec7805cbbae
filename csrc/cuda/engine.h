// The CUDA kernels as ops_cuda.cpp calls them, in plain types. No torch. Contracts of the ops: ../crp.h and so on, but
// weights are not packed: (out_channels, in_channels) matrices, contiguous, and (channels) where depthwise.
#pragma once
#include "../crp.h"
#include "../fusion.h"
#include "../normalise.h"
#include "../upsample_argmax.h"

namespace lwrn_fast::cuda {

// Inputs of a fusion.
constexpr int64_t kMaxInputs = 16;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Device {
  int index;
  int capability;  // 90 for 9.0
  int multiprocessors;
  int smem_bytes;  // maximum of a block
  void* stream;    // cudaStream_t
};

// Allow only the kernel of this name, such as "large_resident", in each op; null: all. For tests and measurements.
void use_only(const char* name);
// Return true where use_only() allows the kernel.
bool may_use(const char* name);

// Memory that a call needs besides its arguments.
struct Scratch {
  int64_t bytes;     // contents irrelevant, aligned to 256 bytes
  int64_t counters;  // int32, zero before the launch and after it
};

// The way to multiply float32: exactly, or by tensor cores after rounding to TF32.
enum class Multiply { exact, tf32 };

// Write the facts about a device, which must be current. Return null, or an error text that says why no kernel can run
// on it.
const char* describe(int index, void* stream, Device* device);

// Return true while the device's stream is captured into a graph.
bool recording(const Device& device);

// Each op launches one kernel on the device's stream, does not wait for it, and returns null or an error text.
// Maps and out have at least one element.
Scratch crp_scratch(const CrpArgs& args, Multiply multiply, const Device& device);
const char* crp(const CrpArgs& args, Multiply multiply, const Device& device, void* scratch, int32_t* counters);

// Return how many channels of a crp that is not depthwise fit into the device's shared memory.
int64_t crp_max_channels(Dtype dtype, const Device& device);

const char* fusion(const FusionArgs& args, Multiply multiply, const Device& device);

const char* upsample_argmax(const UpsampleArgmaxArgs& args, const Device& device);

const char* normalise(const NormaliseArgs& args, const Device& device);

}  // namespace lwrn_fast::cuda
