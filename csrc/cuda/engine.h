// The GPU's kernels as ops_cuda.cpp calls them, in plain types. No torch. Contracts of the ops: ../crp.h and so on, but
// weights are not packed: (out_planes, in_planes) matrices, contiguous, and (planes) where depthwise.
#pragma once
#include "../crp.h"
#include "../fusion.h"
#include "../normalise.h"
#include "../upsample_argmax.h"

namespace lwrn_fast::cuda {

constexpr int64_t kMostInputs = 16;  // of a fusion

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Device {
  int index;
  int capability;  // 90 for 9.0
  int multiprocessors;
  int shared_bytes;  // that a block may have
  void* stream;      // cudaStream_t
};

// For tests and measurements: null, or the name of the only kernel of its op that may run, such as "large_resident".
void use_only(const char* name);
bool may_use(const char* name);

// What a call needs beside its arguments.
struct Scratch {
  int64_t bytes;     // contents irrelevant, aligned to 256 bytes
  int64_t counters;  // int32, zero before the launch and after it
};

// How float32 is multiplied: exactly, or by tensor cores after rounding.
enum class Multiply { exact, tf32 };

// Facts about a device, which must be current. Null, or in words why no kernel can run on it.
const char* describe(int index, void* stream, Device* device);

// Whether the device's stream is recording a graph.
bool recording(const Device& device);

// Each launches one kernel on the device's stream and does not wait. They return null, or the error in words.
// Maps and out: at least one element.
Scratch crp_scratch(const CrpArgs& args, Multiply multiply, const Device& device);
const char* crp(const CrpArgs& args, Multiply multiply, const Device& device, void* scratch, int32_t* counters);

// How many planes fit into the device's shared memory, of a crp that is not depthwise.
int64_t crp_most_planes(Dtype dtype, const Device& device);

const char* fusion(const FusionArgs& args, Multiply multiply, const Device& device);

const char* upsample_argmax(const UpsampleArgmaxArgs& args, const Device& device);

const char* normalise(const NormaliseArgs& args, const Device& device);

}  // namespace lwrn_fast::cuda
